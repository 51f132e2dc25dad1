"""The fetch of one candidate, from servers on loopback that behave well and badly."""

import asyncio
import contextlib
import datetime
import email.utils
import gzip
import inspect
import random
import socket
import tracemalloc
import zlib

import httpx
import pytest

from models.outcomes import Reason
from tests.support.hostile_server import always, by_path, in_loop, loopback_settings, response, serve
from worker import body as body_module
from worker.body import FREE_BYTES, BodyMemory
from worker.errors import AddressError, CandidateError, TransferError
from worker.fetch import ACCEPT, REASONS, Hooks, fetch
from worker.transport import GuardedTransport

PIXELS = bytes(range(256)) * 40


class Sleeps(list):
    """A sleep that only writes down how long it was asked to wait."""

    async def __call__(self, seconds):
        self.append(seconds)


@contextlib.asynccontextmanager
async def door(**overrides):
    """Open a transport and give a function that fetches through it."""
    settings = loopback_settings(**overrides)
    async with GuardedTransport(settings) as transport:

        async def get(url, **named):
            named = {"random": random.Random(7), "sleep": Sleeps(), **named}
            return await fetch(transport, url, settings, **named)

        get.transport = transport
        yield get


async def failure(awaitable):
    """Await what must fail, and give its CandidateError."""
    with pytest.raises(CandidateError) as caught:
        await awaitable
    return caught.value


def pieces(*parts, pause=0.0, then=None):
    """Answer with parts one after the other; then raise what ends the connection."""

    async def answer(_, write):
        for part in parts:
            await write(part)
            await asyncio.sleep(pause)
        if then is not None:
            raise then

    return answer


def endless(head, part, pause=0.0):
    """Answer with a head and then the same part for ever."""

    async def answer(_, write):
        await write(head)
        while True:
            await write(part)
            await asyncio.sleep(pause)

    return answer


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
    async with serve(lambda request, write: answer(request, write)) as server:
        hops = {
            "/1": (301, f"{server.origin}/2?sig=%2f%7E"),
            "/2?sig=%2f%7E": (302, "a/3"),
            "/a/3": (303, "../4 x"),
            "/4%20x": (307, f"//127.0.0.1:{server.port}/5"),
            "/5": (308, "?6"),
            "/5?6": (200, ""),
        }

        async def answer(request, write):
            status, location = hops[request.target]
            await write(response(PIXELS, status, {"Location": location}))

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
    async with serve(by_path({"/again": response(status=302, headers={"Location": location})})) as server:
        async with door(transfer_attempts=3) as get:
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
    assert len(server.requests) == (2 if transient else 1)


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
    """Seconds and dates are waited for when they are short; a long wait ends the candidate and is passed on."""
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=6)
    asked = {
        "/seconds": (429, "7"),
        "/date": (503, email.utils.format_datetime(soon, usegmt=True)),
        "/nonsense": (429, "soon"),
        "/long": (429, "3600"),
        "/unavailable": (503, "120"),
    }
    answers = {
        path: response(status=status, headers={"Retry-After": text}) for path, (status, text) in asked.items()
    }
    waited, errors = {}, {}
    async with serve(by_path(answers)) as server, door(transfer_attempts=2) as get:
        for path in asked:
            waited[path] = Sleeps()
            errors[path] = await failure(get(server.origin + path, sleep=waited[path]))
    assert all((error.reason, error.transient) == (Reason.RATE_LIMITED, True) for error in errors.values())
    assert waited["/seconds"] == [7.0]
    assert 4 < waited["/date"][0] <= 6
    assert waited["/nonsense"][0] < 1
    assert waited["/long"] == waited["/unavailable"] == []
    assert errors["/long"].retry_after_seconds == 3600
    assert errors["/nonsense"].retry_after_seconds is None


@in_loop
async def test_a_declared_length_over_the_bound_is_refused_unread():
    """Content-Length over image_bytes_max ends the transfer before a byte of the body is read."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n"
    async with serve(endless(head, b"x" * 1000)) as server, door(image_bytes_max=1_000_000) as get:
        error = await failure(get(f"{server.origin}/"))
    assert (error.reason, error.wire_bytes, error.http_status) == (Reason.TOO_LARGE, 0, 200)


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"),
    ],
)
@in_loop
async def test_an_endless_body_is_cut(head, part):
    """A body without a length ends at image_bytes_max, and its connection is closed."""
    async with serve(endless(head, part)) as server, door(image_bytes_max=1_000_000) as get:
        error = await failure(get(f"{server.origin}/"))
        await asyncio.wait_for(server.closed_by_peer.wait(), 10)
    assert (error.reason, error.transient) == (Reason.TOO_LARGE, False)
    assert 1_000_000 < error.wire_bytes < 2_000_000


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate", "bare deflate", "members", "padded"])
@in_loop
async def test_content_coding_is_undone(coding):
    """Gzip, also in several members, and both kinds of deflate are decoded, whatever was asked for."""
    bare = zlib.compressobj(wbits=-15)
    coded = {
        "deflate": zlib.compress(PIXELS),
        "bare deflate": bare.compress(PIXELS) + bare.flush(),
        "members": gzip.compress(PIXELS[:5000]) + gzip.compress(PIXELS[5000:]),
        "padded": gzip.compress(PIXELS) + b"\0" * 20,
    }.get(coding, gzip.compress(PIXELS))
    label = {"bare deflate": "deflate", "members": "gzip", "padded": "gzip"}.get(coding, coding)
    parts = [coded[start : start + 1] for start in range(40)] + [coded[40:]]
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {label}\r\nContent-Length: {len(coded)}\r\n\r\n".encode()
    async with serve(pieces(head, *parts)) as server, door() as get:
        fetched = await get(f"{server.origin}/")
    assert (fetched.body, fetched.wire_bytes) == (PIXELS, len(coded))


@in_loop
async def test_other_codings_are_no_image():
    """What we cannot decode is not_an_image; a label that names no compression is passed over."""
    answers = {
        f"/{label}": response(PIXELS, headers={"Content-Encoding": label})
        for label in ("br", "zstd", "gzip,gzip", "identity", "aws-chunked", "none")
    }
    async with serve(by_path(answers)) as server, door() as get:
        for label in ("br", "zstd", "gzip,gzip"):
            assert (await failure(get(f"{server.origin}/{label}"))).reason is Reason.NOT_AN_IMAGE
        for label in ("identity", "aws-chunked", "none"):
            assert (await get(f"{server.origin}/{label}")).body == PIXELS


@in_loop
async def test_a_gzip_bomb_stays_small():
    """A bomb of 200 MB ends at the decoded bound, and memory never holds much more than that bound."""
    bomb = gzip.compress(b"\0" * 200_000_000, 1)
    async with serve(always(response(bomb, headers={"Content-Encoding": "gzip"}))) as server:
        async with door(image_bytes_max=4_000_000) as get:
            tracemalloc.start()
            error = await failure(get(f"{server.origin}/"))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert error.reason is Reason.TOO_LARGE
    assert peak < 9_000_000


@pytest.mark.parametrize(
    "answer",
    [
        pieces(response(PIXELS, headers={"Content-Length": "99999"}), then=EOFError()),
        pieces(response(PIXELS, headers={"Content-Length": "99999"}), then=ConnectionResetError()),
        pieces(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", then=EOFError()),
        pieces(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabcde\r\n", then=EOFError()),
        pieces(response(gzip.compress(PIXELS)[:-9], headers={"Content-Encoding": "gzip"})),
        pieces(response(b"\x1f\x8b\x08broken" * 9, headers={"Content-Encoding": "gzip"})),
        pieces(response(b"x", headers={"Content-Encoding": "deflate"})),
        pieces(b"nonsense\r\n\r\n"),
        pieces(b"", then=EOFError()),
        pieces(b"HTTP/1.1 200 OK\r\nX-Large: " + b"a" * 40_000 + b"\r\n\r\n"),
    ],
    ids=[
        "short",
        "reset",
        "chunks end",
        "bad chunk",
        "cut gzip",
        "bad gzip",
        "cut deflate",
        "nonsense",
        "silent",
        "header",
    ],
)
@in_loop
async def test_a_broken_answer_is_a_protocol_failure(answer):
    """Truncated, reset, badly chunked or badly coded answers are transient; no part of a body is ever accepted."""
    async with serve(answer) as server, door() as get:
        error = await failure(get(f"{server.origin}/"))
    assert error.reason in {Reason.PROTOCOL, Reason.CONNECT}
    assert error.transient


@in_loop
async def test_extra_bytes_after_a_body_are_dropped():
    """Bytes after Content-Length belong to no image, and the connection is not used again."""
    async with serve(always(response(PIXELS) + b"<script>")) as server, door() as get:
        assert (await get(f"{server.origin}/")).body == PIXELS
        assert (await get(f"{server.origin}/")).body == PIXELS
        assert server.connections == 2


@in_loop
async def test_a_drip_meets_the_deadline():
    """Redirects and body together have one deadline, although each byte is in time."""
    drip = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x", pause=0.02)
    async with serve(drip) as target:
        go = response(status=302, headers={"Location": f"{target.origin}/"})
        async with serve(always(go)) as server, door(transfer_seconds_max=0.3, transfer_attempts=2) as get:
            error = await failure(get(f"{server.origin}/"))
    assert (error.reason, error.transient) == (Reason.TIMEOUT, True)
    assert error.final_url == f"{target.origin}/"
    assert len(target.requests) == 2


@in_loop
async def test_silence_meets_the_read_timeout():
    """A header that never comes, and a body that stops, end after read_seconds_max."""
    for parts in ([], [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"]):
        async with serve(pieces(*parts, b"", pause=3)) as server, door(read_seconds_max=0.2) as get:
            assert (await failure(get(f"{server.origin}/"))).reason is Reason.TIMEOUT


@in_loop
async def test_a_slow_transfer_is_too_slow():
    """After ten seconds a transfer under the minimum rate ends; the clock is the test's own."""
    now = iter(float(second) for second in range(1000))
    drip = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100, pause=0.001)
    async with serve(drip) as server, door() as get:
        error = await failure(get(f"{server.origin}/", clock=lambda: next(now)))
        assert (error.reason, error.transient) == (Reason.TOO_SLOW, True)
        assert next(now) == 12
    async with serve(always(response(PIXELS))) as server, door(transfer_rate_min=0) as get:
        assert (await get(f"{server.origin}/", clock=lambda: next(now) * 100)).body == PIXELS


@in_loop
async def test_connections_that_fail_have_their_reasons():
    """A closed port is connect, an unknown name dns, a server that speaks no TLS tls."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with serve(always(b"no TLS\r\n\r\n")) as server, door() as get:
            refused = await failure(get(f"http://127.0.0.1:{closed.getsockname()[1]}/"))
            unknown = await failure(get("http://name.invalid/"))
            plain = await failure(get(f"https://127.0.0.1:{server.port}/"))
    assert (refused.reason, refused.transient) == (Reason.CONNECT, True)
    assert unknown.reason is Reason.DNS
    assert (plain.reason, plain.transient) == (Reason.TLS, False)


@in_loop
async def test_rules_of_others_are_obeyed():
    """A hook may refuse a redirect before it is asked for, and a header before its body is read."""
    head = b"HTTP/1.1 200 OK\r\nX-Robots-Tag: noai\r\n\r\n"

    async def answer(request, write):
        if request.target == "/go":
            return await write(response(status=302, headers={"Location": "/forbidden"}))
        return await endless(head, b"x" * 65536)(request, write)

    async def admit(target):
        raise TransferError(Reason.ROBOTS, f"robots.txt forbids {target.url}")

    def header(headers):
        raise TransferError(Reason.OPT_OUT, headers["x-robots-tag"])

    async with serve(answer) as server, door() as get:
        robots = await failure(get(f"{server.origin}/go", hooks=Hooks(admit=admit)))
        opt_out = await failure(get(f"{server.origin}/", hooks=Hooks(header=header)))
    assert (robots.reason, robots.final_url) == (Reason.ROBOTS, f"{server.origin}/forbidden")
    assert (opt_out.reason, opt_out.wire_bytes) == (Reason.OPT_OUT, 0)
    assert [request.target for request in server.requests] == ["/go", "/"]


@in_loop
async def test_large_bodies_share_their_memory():
    """However many bodies grow at once, those over the free size hold no more than what is shared."""
    most = 0
    body = b"x" * (FREE_BYTES * 2)

    async with serve(always(response(body))) as server, door(image_bytes_max=len(body)) as get:
        memory = get.transport.memory = BodyMemory(3 * len(body))

        async def one():
            nonlocal most
            with memory.lease() as lease:
                fetched = await get(f"{server.origin}/", lease=lease)
                most = max(most, 3 * len(body) - memory.free_bytes)
                await asyncio.sleep(0)
                return len(fetched.body)

        assert await asyncio.gather(*[one() for _ in range(24)]) == [len(body)] * 24
        assert most == 3 * len(body)
        assert memory.free_bytes == 3 * len(body)


@in_loop
async def test_waiting_for_memory_meets_the_deadline():
    """A large body that gets no memory ends at its deadline and leaves nothing reserved; a small one passes."""
    answers = {"/large": response(b"x" * (FREE_BYTES + 1)), "/small": response(PIXELS)}
    async with serve(by_path(answers)) as server, door(transfer_seconds_max=0.3) as get:
        memory = get.transport.memory
        with memory.lease() as all_of_it:
            await all_of_it.reserve(memory.free_bytes)
            large, small = await asyncio.gather(
                failure(get(f"{server.origin}/large")), get(f"{server.origin}/small")
            )
            assert (large.reason, small.body) == (Reason.TIMEOUT, PIXELS)
        assert memory.free_bytes == body_module.SHARED_BYTES


@in_loop
async def test_memory_is_given_in_the_order_of_asking():
    """A large claim is not starved by small ones behind it, and one that is given up lets the next pass."""
    memory = BodyMemory(10)
    first, large, small = memory.lease(), memory.lease(), memory.lease()
    await first.reserve(6)
    wants_large = asyncio.ensure_future(large.reserve(9))
    await asyncio.sleep(0)
    wants_small = asyncio.ensure_future(small.reserve(4))
    await asyncio.sleep(0)
    assert not wants_small.done()
    wants_large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wants_large
    await wants_small
    assert memory.free_bytes == 0
    with pytest.raises(RuntimeError):
        await small.reserve(1)
    first.release()
    small.release()
    assert memory.free_bytes == 10


def test_every_error_of_httpx_has_its_reason():
    """The table covers each transport error class of httpx; refusals carry their own reason."""
    for _, kind in inspect.getmembers(httpx, inspect.isclass):
        if issubclass(kind, httpx.TransportError):
            row = next(base for base in kind.__mro__ if base in REASONS)
            assert row is not httpx.TransportError or kind in {httpx.TransportError, httpx.ProtocolError}


def test_a_refused_url_is_an_address_error():
    """Refusals are AddressError: nothing was sent."""
    error = asyncio.run(failure(fetch(None, "nothing", loopback_settings(), random=random.Random(1))))
    assert isinstance(error, AddressError)
