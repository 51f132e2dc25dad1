"""A hostile server is given up within bounds, and nothing that it says late or twice becomes somebody's picture."""

import asyncio
import gzip
import random
import ssl
import time
import warnings
import zlib

import httpx
import pytest

from models.outcomes import Reason
from tests.support.fetching import PIXELS, door, failure
from tests.support.hostile_server import (
    CERTIFICATE,
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
from worker.coding import MEMBERS_MAX
from worker.connection import FRAMING_BYTES
from worker.errors import CandidateError
from worker.fetch import Fetched
from worker.transport import GuardedTransport

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
HINT = b"HTTP/1.1 103 Early Hints\r\nLink: " + b"a" * 10_000 + b"\r\n\r\n"
EXPIRED = CERTIFICATE.with_name("expired.pem")

FLOODS = {
    "100 Continue": (b"", GO_ON * 1000),
    "103 Early Hints": (b"", HINT * 10),
    "empty lines": (b"", b"\r\n" * 30_000),
    "chunks of a byte": (CHUNKED, b"1\r\nx\r\n" * 10_000),
    "extensions": (CHUNKED, b"1;" + b"e" * 60_000 + b"\r\nx\r\n"),
    "one extension": (CHUNKED + b"1;", b"e" * 65_536),
    "a chunk's size": (CHUNKED, b"0" * 65_536),
}
ENDLESS_PARTS = {
    "status line": (b"HTTP/1.1 200 ", b"O" * 65_536),
    "header field": (OK + b"X-A: ", b"b" * 65_536),
    "header name": (OK, b"b" * 65_536),
    "header": (OK, b"X-A: b\r\n" * 1000),
    "trailer": (CHUNKED + b"1\r\nx\r\n0\r\nX-A: ", b"b" * 65_536),
    "trailers": (CHUNKED + b"1\r\nx\r\n0\r\n", b"X-A: b\r\n" * 1000),
    "gzip members": (OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(b"") * 2000),
}


@pytest.mark.parametrize("name", FLOODS)
@in_loop
async def test_a_flood_beside_the_body_ends(name):
    """What goes on for ever without becoming a body ends after a megabyte or so, and is not tried again."""
    async with serve(endless(*FLOODS[name])) as server, door(transfer_attempts=3) as get:
        error = await failure(get(f"{server.origin}/"))
        assert (error.reason, error.transient) == (Reason.TOO_LARGE, False)
        assert f"{FRAMING_BYTES} bytes arrived beside the body" in error.detail
        await asyncio.wait_for(server.closed_by_peer.wait(), 10)
        assert server.connections == 1


@pytest.mark.parametrize("name", ENDLESS_PARTS)
@in_loop
async def test_an_endless_part_ends(name):
    """A line, a header, trailers or gzip members without an end are a protocol failure at once."""
    async with serve(endless(*ENDLESS_PARTS[name])) as server, door() as get:
        assert (await failure(get(f"{server.origin}/"))).reason is Reason.PROTOCOL
        await asyncio.wait_for(server.closed_by_peer.wait(), 10)


@in_loop
async def test_an_endless_trailer_ends_whatever_a_header_may_have():
    """A field is measured within what is read at once, so no setting makes it longer than that."""
    async with serve(endless(*ENDLESS_PARTS["trailer"])) as server, door(header_bytes_max=1_000_000) as get:
        assert (await failure(get(f"{server.origin}/"))).reason is Reason.PROTOCOL


@in_loop
async def test_others_go_on_beside_floods():
    """While every kind of flood runs, the event loop answers and a picture from elsewhere arrives."""
    async with door(transfers=50) as get:
        servers = [serve(endless(*flood)) for flood in FLOODS.values()]
        opened = [await server.__aenter__() for server in servers]
        try:
            floods = [asyncio.ensure_future(failure(get(f"{server.origin}/"))) for server in opened]
            async with serve(always(response(PIXELS))) as good:
                for _ in range(20):
                    assert (await asyncio.wait_for(get(f"{good.origin}/"), 5)).body == PIXELS
            await asyncio.gather(*floods)
        finally:
            for server in servers:
                await server.__aexit__(None, None, None)


@in_loop
async def test_an_honest_body_in_small_chunks_is_whole():
    """Chunks of 64 bytes, a few interim answers and trailers are no flood."""
    body = PIXELS * 100
    chunks = b"".join(b"40\r\n%s\r\n" % body[start : start + 64] for start in range(0, len(body), 64))
    answer = GO_ON * 5 + HINT + CHUNKED + chunks + b"0\r\nX-A: b\r\n\r\n"
    async with serve(always(answer)) as server, door() as get:
        for _ in range(3):
            assert (await get(f"{server.origin}/")).body == body
        assert server.connections == 1


POISON = response(b"poison")
FIRST = {
    "plain": response(b"good"),
    "chunked": CHUNKED + b"4\r\ngood\r\n0\r\n\r\n",
    "204": response(status=204),
    "304": response(status=304),
    "404": response(b"x", 404),
    "empty": response(),
}


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("name", FIRST)
@in_loop
async def test_a_response_that_nobody_asked_for_is_dropped(name, late):
    """Bytes behind an answer, at once or when the connection rests, never become the answer to the next request."""
    connections = []

    async def answer(request, write):
        connections.append(write)
        first = FIRST[name] if late else FIRST[name] + POISON
        await write(first if request.target == "/first" else response(request.target.encode()))

    async with serve(answer) as server, door() as get:
        await asyncio.gather(get(f"{server.origin}/first"), return_exceptions=True)
        if late:
            await connections[0](POISON)
        for number in range(3):
            target = f"/{number}"
            assert (await get(server.origin + target)).body == target.encode()


@pytest.mark.parametrize(
    "status", [100, 101, 102, 103, 199, 204, 205, 206, 300, 304, 306, 399, 418, 451, 599, 999]
)
@in_loop
async def test_no_other_status_gives_an_image(status):
    """A body under any status but 200 and 203 is no image, and its bytes reach nobody."""
    headers = {"Upgrade": "websocket", "Connection": "upgrade"} if status == 101 else {}
    answer = pieces(response(PIXELS, status, headers), then=EOFError())
    async with serve(answer) as server, door() as get:
        error = await failure(get(f"{server.origin}/"))
    assert error.reason in {Reason.HTTP_STATUS, Reason.PROTOCOL}


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"<html>",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 99 OK\r\n\r\n",
        b"HTTP/1.1 20000 OK\r\n\r\n",
        b"HTTP/1.1 -200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        OK + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        OK + b"Content-Length: 1, 1\r\n\r\nx",
        OK + b"Content-Length: +1\r\n\r\nx",
        OK + b"Content-Length: -1\r\n\r\nx",
        OK + b"Content-Length: 0x1\r\n\r\nx",
        OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx",
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        OK + b"X-A: a\0b\r\nContent-Length: 1\r\n\r\nx",
        OK + b": 1\r\n\r\nx",
        CHUNKED + b"-1\r\nx\r\n",
        CHUNKED + b"fffffffffffffffff\r\nx\r\n",
        CHUNKED + b"1\r\nxy\r\n0\r\n\r\n",
        CHUNKED + b"1\r\nx\r\n",
        OK + b"Content-Length: 5\r\n\r\nx",
        b"\0\0\0\x04\0\0\0\0\0",
    ],
)
@in_loop
async def test_what_is_not_http_is_a_protocol_failure(head):
    """HTTP/0.9, HTTP/2 frames, contradicting lengths and everything cut: nothing of it is accepted."""
    async with serve(always(head, then_close=True)) as server, door() as get:
        assert (await failure(get(f"{server.origin}/"))).reason is Reason.PROTOCOL


@in_loop
async def test_members_may_end_where_reads_do():
    """A gzip body of two members is whole wherever it is cut into packets, and padding behind it is ignored."""
    first, second = gzip.compress(PIXELS[:5000]), gzip.compress(PIXELS[5000:])
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
    for parts in (
        (first, second),
        (first, second[:1], second[1:]),
        (first, second, b"\0" * 9),
        (first, second, b"\0"),
    ):
        whole = head % sum(map(len, parts))
        async with serve(pieces(whole, *parts, pause=0.02)) as server, door() as get:
            assert (await get(f"{server.origin}/")).body == PIXELS
    assert MEMBERS_MAX > 2


@in_loop
async def test_nested_and_unknown_codings_are_no_image():
    """Only one gzip or deflate is undone: a coding in a coding, br and zstd are not."""
    twice = gzip.compress(gzip.compress(b"\0" * 10_000_000))
    labels = [
        "gzip, gzip",
        "deflate, gzip",
        "br",
        "zstd",
        "dcb",
        "compress",
        "gzip;q=1",
        "\xff",
        "gzip," * 1000,
    ]
    answers = {
        f"/{place}": response(twice, headers={"Content-Encoding": text}) for place, text in enumerate(labels)
    }
    answers["/twice"] = response(twice, headers={"Content-Encoding": "gzip"})
    answers["/deflated"] = response(zlib.compress(twice), headers={"Content-Encoding": "deflate"})
    async with serve(by_path(answers)) as server, door() as get:
        for place in range(len(labels)):
            assert (await failure(get(f"{server.origin}/{place}"))).reason is Reason.NOT_AN_IMAGE
        assert (await get(f"{server.origin}/twice")).body == gzip.decompress(twice)
        assert (await get(f"{server.origin}/deflated")).body == twice


@in_loop
async def test_a_transfer_ends_in_time_however_it_trickles():
    """A header, interim answers, chunk sizes and trailers that come byte by byte meet the deadline."""
    for head, part in [
        (OK, b"X: y\r\n"),
        (b"", GO_ON),
        (CHUNKED + b"1", b";"),
        (CHUNKED + b"0\r\n", b"X: y\r\n"),
    ]:
        async with serve(endless(head, part, pause=0.02)) as server, door(transfer_seconds_max=0.3) as get:
            started = time.monotonic()
            assert (await failure(get(f"{server.origin}/"))).reason is Reason.TIMEOUT
            assert time.monotonic() - started < 3


@in_loop
async def test_cookies_and_passwords_cross_no_host():
    """A cookie set on the way is sent to nobody, nor is a referrer; a redirect with a password is refused."""
    async with serve(always(response(PIXELS))) as target:
        headers = {"Set-Cookie": "a=b; Domain=127.0.0.1; Path=/", "Location": f"{target.origin}/"}
        bad = {"Location": target.origin.replace("//", "//user:word@")}
        answers = {"/go": response(status=302, headers=headers), "/bad": response(status=302, headers=bad)}
        async with serve(by_path(answers)) as server, door() as get:
            await get(f"{server.origin}/go")
            assert (await failure(get(f"{server.origin}/bad"))).reason is Reason.REDIRECTS
        (request,) = target.requests
        assert not {"cookie", "referer", "authorization", "origin"} & set(request.headers)


@in_loop
async def test_a_circle_is_found_whatever_its_fragment():
    """A redirect to the same URL with another fragment is a circle."""
    for location in ("#x", "/again#y", "?#", "/again"):
        answer = always(response(status=302, headers={"Location": location}))
        async with serve(answer) as server, door() as get:
            assert (await failure(get(f"{server.origin}/again"))).reason is Reason.REDIRECTS
            assert len(server.requests) <= 2


@in_loop
async def test_https_may_lead_to_http():
    """A redirect from https to http is followed, and the final URL says so: the picture is judged, not the way."""
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with serve(always(response(PIXELS))) as plain:
        go = response(status=302, headers={"Location": f"{plain.origin}/x"})
        async with serve(always(go), tls_server()) as secret, door() as get:
            get.transport._session.connector._ssl = trusting
            assert (await get(f"{secret.origin}/")).final_url == f"{plain.origin}/x"


@in_loop
async def test_tls_is_verified_and_new():
    """An expired certificate and an old protocol are refused before anything is sent."""
    expired = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    expired.load_cert_chain(EXPIRED)
    old = tls_server()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    for certificate, context in ((EXPIRED, expired), (CERTIFICATE, old)):
        trusting = ssl.create_default_context(cafile=str(certificate))
        async with serve(always(response(b"x")), context) as server:
            async with GuardedTransport(loopback_settings(), ssl_context=trusting) as transport:
                with pytest.raises(httpx.ConnectError):
                    await transport.send("GET", f"{server.origin}/")
            assert server.requests == []


ANSWERS = [
    *(response(PIXELS[:2048]), response(gzip.compress(PIXELS), headers={"Content-Encoding": "gzip"})),
    CHUNKED + b"".join(b"64\r\n%s\r\n" % PIXELS[:100] for _ in range(5)) + b"0\r\nX: y\r\n\r\n",
    *(GO_ON + response(PIXELS), response(status=204), response(b"x", 304), b"HTTP/1.0 200 OK\r\n\r\nabc"),
    *(response(status=302, headers={"Location": to}) for to in ("/x", "//127.0.0.1/", "?x", "http://[::1]/")),
    *(response(status=503, headers={"Retry-After": when}) for when in ("5", "Mon, 01 Jan 2024 00:00:00 GMT")),
    b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nabc",
]
SNIPPETS = [
    b"\r\n",
    b"\n",
    b"\0",
    b":",
    b" ",
    b"\xff",
    b"0",
    b"9" * 30,
    b"-1",
    b"chunked",
    b"gzip",
    OK,
    GO_ON,
]
SNIPPETS += [
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n",
]
SNIPPETS += [b"Location: http://[::1\r\n", b"Retry-After: \xd9\xa1\r\n", b"Content-Encoding: \xff\r\n"]
MUTATIONS = 250


@in_loop
async def test_any_answer_ends_in_a_body_or_a_reason():
    """Hundreds of damaged answers, on kept connections, too, end in a body or a CandidateError."""
    chance, ended = random.Random(11), set()

    async def answer(_, write):
        damaged = bytearray(chance.choice(ANSWERS))
        for _ in range(chance.choice((1, 1, 2, 3, 6))):
            place, size = chance.randrange(min(len(damaged), 200)), chance.randrange(20)
            damaged[place : place + chance.choice((0, size))] = chance.choice([*SNIPPETS, b""])
        await write(bytes(damaged))
        if chance.random() < 0.8:
            raise EOFError

    async with serve(answer) as server, door(read_seconds_max=0.2, transfer_seconds_max=1) as get:
        for _ in range(MUTATIONS):
            try:
                ended.add(type(await get(f"{server.origin}/")))
            except CandidateError as error:
                ended.add(error.reason)
    assert {Fetched, Reason.PROTOCOL, Reason.HTTP_STATUS} <= ended
