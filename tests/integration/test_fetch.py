"""The fetch of one candidate: redirects, statuses, attempts and deadlines, from servers good and bad."""

import asyncio
import datetime
import email.utils
import inspect
import random
import socket
import time

import httpx
import pytest

from models.outcomes import Candidate, Reason
from tests.support.fetching import PIXELS, Sleeps, door, failure
from tests.support.hostile_server import (
    always,
    by_path,
    endless,
    in_loop,
    loopback_settings,
    pieces,
    response,
    serve,
    tls_server,
)
from worker.body_memory import BodyMemory
from worker.errors import AddressError, TransferError
from worker.fetch import ACCEPT, REASONS, Hooks
from worker.visit import REFUSALS_MAX, Visit


@in_loop
async def test_an_image_is_fetched():
    """A plain answer becomes Fetched with its status, type and sizes; the request says who asks."""
    async with serve(always(response(PIXELS))) as server, door(user_agent="Test/1 (me@example.com)") as get:
        fetched = await get(f"{server.origin}/a%27.png?x#y")
    assert fetched.body == PIXELS
    assert (fetched.url, fetched.final_url) == (
        f"{server.origin}/a%27.png?x#y",
        f"{server.origin}/a%27.png?x",
    )
    assert (fetched.http_status, fetched.content_type) == (200, "image/png")
    assert (fetched.wire_bytes, fetched.redirects) == (len(PIXELS), 0)
    (request,) = server.requests
    assert request.target == "/a%27.png?x"
    assert request.headers["user-agent"] == "Test/1 (me@example.com)"
    assert request.headers["accept"] == ACCEPT
    assert request.headers["accept-encoding"] == "identity"
    assert "cookie" not in request.headers


@in_loop
async def test_bad_and_blocked_urls_send_nothing():
    """A URL that is malformed or private ends at once, without a connection or a second attempt."""
    async with serve(always(response(PIXELS))) as server:
        async with door(allowed_networks=(), transfer_attempts=3) as get:
            error = await failure(get(f"{server.origin}/"))
            assert (error.reason, error.transient) == (Reason.BLOCKED_ADDRESS, False)
            assert error.final_url == f"{server.origin}/"
            assert (await failure(get("ftp://example.com/"))).reason is Reason.INVALID_URL
            assert (await failure(get("http://0x7f.1/"))).reason is Reason.BLOCKED_ADDRESS
        assert server.connections == 0


@in_loop
async def test_redirects_are_followed_by_hand():
    """Absolute, relative and odd Locations of all five statuses lead to the image, byte-exact."""
    hops = {}

    async def answer(request, write):
        status, location = hops[request.target]
        await write(response(PIXELS, status, {"Location": location}))

    async with serve(answer) as server:
        hops |= {
            "/1": (301, f"{server.origin}/2?sig=%2f%7E"),
            "/2?sig=%2f%7E": (302, "a/3"),
            "/a/3": (303, "../4 x"),
            "/4%20x": (307, f"//127.0.0.1:{server.port}/5"),
            "/5": (308, "?6"),
            "/5?6": (200, ""),
        }

        async with door() as get:
            fetched = await get(f"{server.origin}/1")
        assert fetched.final_url == f"{server.origin}/5?6"
        assert fetched.redirects == 5
        assert [request.target for request in server.requests] == list(hops)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://10.0.0.1/", Reason.BLOCKED_ADDRESS),
        ("http://169.254.169.254/latest/meta-data/", Reason.BLOCKED_ADDRESS),
        ("http://[::1]/", Reason.BLOCKED_ADDRESS),
        ("http://0x0a.1/", Reason.BLOCKED_ADDRESS),
        ("http://localhost.localdomain@10.0.0.1/", Reason.REDIRECTS),
        ("javascript:alert(1)", Reason.REDIRECTS),
        ("file:///etc/passwd", Reason.REDIRECTS),
        ("/again", Reason.REDIRECTS),
    ],
)
@in_loop
async def test_a_bad_redirect_is_refused(location, reason):
    """A redirect to a private address, to another scheme or to itself is not followed and not tried again."""
    answer = by_path({"/again": response(status=302, headers={"Location": location})})
    async with serve(answer) as server, door(transfer_attempts=3) as get:
        error = await failure(get(f"{server.origin}/again"))
    assert (error.reason, error.transient) == (reason, False)
    assert len(server.requests) == 1


@in_loop
async def test_redirects_are_bounded():
    """A chain that is longer than allowed ends; one that is just as long does not."""

    async def chain(request, write):
        number = int(request.target[1:])
        await write(response(PIXELS, 302 if number else 200, {"Location": f"/{number - 1}"}))

    async with serve(chain) as server, door(redirects_max=3) as get:
        assert (await get(f"{server.origin}/3")).redirects == 3
        error = await failure(get(f"{server.origin}/4"))
    assert (error.reason, error.transient) == (Reason.REDIRECTS, False)


@in_loop
async def test_a_redirect_body_is_not_read():
    """An endless body of a redirect costs nothing: the connection is closed and the target fetched."""
    async with serve(always(response(PIXELS))) as target:
        head = f"HTTP/1.1 302 Found\r\nLocation: {target.origin}/\r\n\r\n".encode()
        async with serve(endless(head, b"x" * 65536)) as server, door() as get:
            fetched = await get(f"{server.origin}/")
            assert (fetched.body, fetched.wire_bytes) == (PIXELS, len(PIXELS))
            await asyncio.wait_for(server.closed_by_peer.wait(), 10)


@pytest.mark.parametrize(
    ("status", "reason", "transient"),
    [
        (204, Reason.HTTP_STATUS, False),
        (206, Reason.HTTP_STATUS, False),
        (304, Reason.HTTP_STATUS, False),
        (302, Reason.HTTP_STATUS, False),
        (403, Reason.HTTP_STATUS, False),
        (404, Reason.HTTP_STATUS, False),
        (410, Reason.HTTP_STATUS, False),
        (408, Reason.HTTP_STATUS, True),
        (429, Reason.RATE_LIMITED, True),
        (500, Reason.HTTP_STATUS, True),
        (501, Reason.HTTP_STATUS, False),
        (503, Reason.HTTP_STATUS, True),
        (504, Reason.HTTP_STATUS, True),
        (200, Reason.NOT_AN_IMAGE, False),
    ],
)
@in_loop
async def test_a_status_has_its_reason(status, reason, transient):
    """Each status without an image, and an empty 200, has one reason, and only some are tried again."""
    async with serve(always(response(status=status))) as server, door(transfer_attempts=2) as get:
        error = await failure(get(f"{server.origin}/"))
    assert (error.reason, error.transient, error.http_status) == (reason, transient, status)
    attempts = REFUSALS_MAX if reason is Reason.RATE_LIMITED else 2
    assert len(server.requests) == (attempts if transient else 1)


@in_loop
async def test_transient_failures_are_tried_again():
    """Attempts follow with growing, jittered waits; the bytes of all of them are counted."""
    answers = [response(status=503), response(PIXELS, headers={"Content-Length": "99999"}), response(PIXELS)]

    async def answer(_, write):
        data = answers.pop(0)
        await write(data)
        if b"99999" in data:
            raise EOFError

    sleeps = Sleeps()
    async with serve(answer) as server, door(transfer_attempts=3) as get:
        fetched = await get(f"{server.origin}/", sleep=sleeps)
    assert fetched.body == PIXELS
    assert fetched.wire_bytes == 2 * len(PIXELS)
    assert 0.25 <= sleeps[0] <= 0.5 <= sleeps[1] <= 1.0


@in_loop
async def test_retry_after_is_honoured():
    """Seconds and dates are waited for; a wait beyond all patience ends the candidate and is passed on."""
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=6)
    asked = {
        "/seconds": (429, "7"),
        "/date": (503, email.utils.format_datetime(soon, usegmt=True)),
        "/nonsense": (429, "soon"),
        "/year": (429, "Mon, 01 Jan 99999999999999 00:00:00 GMT"),
        "/zone": (429, "Mon, 01 Jan 2024 00:00:00 +99999999999999999"),
        "/long": (429, "3600"),
        "/unavailable": (503, "120"),
    }
    answers = {
        path: response(status=status, headers={"Retry-After": text}) for path, (status, text) in asked.items()
    }
    waited, errors = {}, {}
    async with serve(by_path(answers)) as server, door(host_patience_seconds=100) as get:
        for path in asked:
            waited[path] = Sleeps()
            errors[path] = await failure(get(server.origin + path, sleep=waited[path]))
    assert all((error.reason, error.transient) == (Reason.RATE_LIMITED, True) for error in errors.values())
    assert waited["/seconds"] == [7.0] * (REFUSALS_MAX - 1)
    assert 4 < waited["/date"][0] <= 6
    assert max(waited[path][0] for path in ("/nonsense", "/year", "/zone")) == 0
    assert waited["/long"] == waited["/unavailable"] == []
    assert errors["/long"].retry_after_seconds == 3600
    assert errors["/nonsense"].retry_after_seconds is None


@in_loop
async def test_a_drip_meets_the_deadline():
    """A request has one deadline, to the end of its body, although each byte is in time."""
    drip = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x", pause=0.02)
    async with serve(drip) as target:
        go = response(status=302, headers={"Location": f"{target.origin}/"})
        async with serve(always(go)) as server, door(transfer_seconds_max=0.3, transfer_attempts=2) as get:
            error = await failure(get(f"{server.origin}/"))
    assert (error.reason, error.transient) == (Reason.TIMEOUT, True)
    assert error.final_url == f"{target.origin}/"
    assert len(target.requests) == 2
    assert error.attempts == 2
    assert error.elapsed_ms >= 2 * 300


@in_loop
async def test_transfers_are_timed_and_pauses_are_not():
    """An outcome tells its attempts and their time together, however long was waited between them."""
    paused = 0.0

    async def pause(seconds):
        nonlocal paused
        paused += 3600

    async def answer(request, write):
        await write(response(PIXELS, 503 if len(server.requests) < 3 else 200))

    async with serve(answer) as server, door(transfer_attempts=3, allowed_networks=()) as blocked:
        assert (await failure(blocked("no URL"))).attempts is None
        async with door(transfer_attempts=3) as get:
            fetched = await get(server.origin, sleep=pause, clock=lambda: time.monotonic() + paused)
    assert paused == 2 * 3600
    assert fetched.attempts == 3
    assert 0 <= fetched.elapsed_ms < 3600 * 1000


@in_loop
async def test_silence_meets_the_read_timeout():
    """A header that never comes, and a body that stops, end after read_seconds_max."""
    for parts in ([], [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]):
        async with serve(pieces(*parts, b"", pause=3)) as server, door(read_seconds_max=0.2) as get:
            assert (await failure(get(f"{server.origin}/"))).reason is Reason.TIMEOUT


@in_loop
async def test_connections_that_fail_have_their_reasons():
    """A closed port is connect, an unknown name dns, a self-signed certificate tls."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with serve(always(response(PIXELS)), tls_server()) as server, door() as get:
            refused = await failure(get(f"http://127.0.0.1:{closed.getsockname()[1]}/"))
            unknown = await failure(get("http://name.invalid/"))
            strange = await failure(get(f"{server.origin}/"))
    assert (refused.reason, refused.transient) == (Reason.CONNECT, True)
    assert unknown.reason is Reason.DNS
    assert (strange.reason, strange.transient) == (Reason.TLS, False)


@in_loop
async def test_rules_of_others_are_obeyed():
    """A hook may refuse any hop before it is asked for, or put it off, and a header before its body is read."""
    head = b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai\r\n\r\n"

    async def answer(request, write):
        if request.target == "/go":
            return await write(response(status=302, headers={"Location": "/forbidden"}))
        return await endless(head, b"x" * 65536)(request, write)

    seen = []

    async def admit(target):
        if target.url.endswith("forbidden"):
            raise TransferError(Reason.ROBOTS, f"robots.txt forbids {target.url}", transient=False)
        seen.append(target.url)
        return len(seen) != 1

    def header(target, headers):
        raise TransferError(Reason.OPT_OUT, f"{target.url}: {headers['x-robots-tag']}")

    async with serve(answer) as server, door() as get:
        robots = await failure(get(f"{server.origin}/go", hooks=Hooks(admit=admit)))
        opt_out = await failure(get(f"{server.origin}/", hooks=Hooks(header=header)))
    assert (robots.reason, robots.final_url) == (Reason.ROBOTS, f"{server.origin}/forbidden")
    assert seen == [f"{server.origin}/go"] * 2
    assert (opt_out.reason, opt_out.detail) == (Reason.OPT_OUT, f"{server.origin}/: noai")
    assert (opt_out.http_status, opt_out.wire_bytes) == (200, 0)
    assert [request.target for request in server.requests] == ["/go", "/"]


def test_every_error_of_httpx_has_its_reason():
    """The table covers each transport error class of httpx; refusals carry their own reason."""
    for _, kind in inspect.getmembers(httpx, inspect.isclass):
        if issubclass(kind, httpx.TransportError):
            row = next(base for base in kind.__mro__ if base in REASONS)
            assert row is not httpx.TransportError or kind in {httpx.TransportError, httpx.ProtocolError}


def test_a_refused_url_is_an_address_error():
    """Refusals are AddressError: nothing was sent."""
    with pytest.raises(AddressError):
        Visit(Candidate(0, "nothing", 1), BodyMemory(1).lease())


def test_a_straggler_is_not_tried_again_after_what_took_long():
    """A whole chunk would wait for it; what failed quickly is tried again all the same."""
    settings, chance = loopback_settings(transfer_attempts=3), random.Random(1)
    for reason, straggler, again in (
        (Reason.TIMEOUT, False, True),
        (Reason.TIMEOUT, True, False),
        (Reason.TOO_SLOW, True, False),
        (Reason.CONNECT, True, True),
    ):
        visit = Visit(Candidate(0, "http://images.test/", 1), BodyMemory(1).lease())
        visit.straggler = straggler
        assert (visit.again_in(TransferError(reason, "late"), settings, chance) is not None) is again
