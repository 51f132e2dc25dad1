"""The guarded door against real servers on loopback."""

import asyncio
import gzip
import inspect
import socket
import ssl
import zlib

import aiohttp
import httpx
import pytest
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError

from models.outcomes import Reason
from tests.support.hostile_server import (
    CERTIFICATE,
    always,
    by_path,
    in_loop,
    loopback_settings,
    response,
    serve,
    tls_server,
)
from worker.transport import (
    ERRORS,
    GuardedTransport,
    HeadersTooLargeError,
    RefusedError,
    ResolveError,
    TLSError,
    make_client,
    trusted,
)


class Names(AbstractResolver):
    """A name server of the test's own: each lookup takes the next answer, the last one for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.lookups = 0

    async def resolve(self, host, port=0, family=socket.AF_UNSPEC):
        """Give the next answer."""
        self.lookups += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return [
            {"hostname": host, "host": address, "port": port, "family": family, "proto": 0, "flags": 0}
            for address in answer
        ]

    async def close(self):
        """Hold nothing."""


async def get(transport, url, **named):
    """Send and read everything."""
    received = await transport.send("GET", url, **named)
    body = b""
    try:
        while some := await received.read_some():
            body += some
    finally:
        received.release()
    return received.status, body


@in_loop
async def test_no_connection_is_made_to_a_refused_address():
    """Every form of a loopback address is refused before a connection: a counting listener sees none."""
    async with serve(always(response(b"x"))) as server:
        transport = GuardedTransport(loopback_settings(allowed_networks=()))
        async with make_client(transport, loopback_settings()) as client:
            for host in (
                "127.0.0.1",
                "127.1",
                "0x7f000001",
                "2130706433",
                "[::ffff:127.0.0.1]",
                "[::]",
                "0.0.0.0",
            ):
                with pytest.raises(RefusedError) as caught:
                    await client.get(f"http://{host}:{server.port}/")
                assert caught.value.refusal.reason is Reason.BLOCKED_ADDRESS
            for host in ("127.0.0.1", "127.0.0.2", "[::ffff:127.0.0.1]", "[::1]", "[::]", "0.0.0.0"):
                with pytest.raises(RefusedError):
                    await transport.send("GET", f"http://{host}:{server.port}/")
            for host in ("2130706433", "127.1", "127.0.0.1."):
                with pytest.raises((RefusedError, httpx.LocalProtocolError)):
                    await transport.send("GET", f"http://{host}:{server.port}/")
        assert server.connections == 0


@in_loop
async def test_a_host_with_one_refused_address_is_refused_whole():
    """When any answer of the name server is refused, none is connected to."""
    async with serve(always(response(b"x"))) as server:
        names = Names(["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "::1"])
        transport = GuardedTransport(loopback_settings(), resolver=names)
        for _ in range(3):
            with pytest.raises(RefusedError):
                await transport.send("GET", f"http://images.test:{server.port}/")
        await transport.aclose()
        assert (names.lookups, server.connections) == (3, 0)


@in_loop
async def test_a_name_that_is_rebound_is_checked_again():
    """A name that was good and now leads to a private address is refused at the next connect."""
    async with serve(always(response(b"x"), then_close=True)) as server:
        transport = GuardedTransport(loopback_settings(), resolver=Names(["127.0.0.1"], ["169.254.169.254"]))
        url = f"http://images.test:{server.port}/"
        assert await get(transport, url) == (200, b"x")
        transport._session.connector.clear_dns_cache()
        with pytest.raises(RefusedError):
            await get(transport, url)
        await transport.aclose()


@in_loop
async def test_a_cached_answer_is_checked_at_the_socket():
    """The socket itself refuses, even if an address came past the resolver's check."""
    async with serve(always(response(b"x"))) as server:
        transport = GuardedTransport(loopback_settings(allowed_networks=()))
        transport._resolver.resolve = Names(["127.0.0.1"]).resolve
        with pytest.raises(RefusedError):
            await transport.send("GET", f"http://images.test:{server.port}/")
        await transport.aclose()
        assert server.connections == 0


@in_loop
async def test_names_are_looked_up_once_while_cached():
    """Many requests to one name ask the name server once, and so does who wants to know where they go."""
    async with serve(always(response(b"x"), then_close=True)) as server:
        names = Names(["127.0.0.1"])
        transport = GuardedTransport(loopback_settings(), resolver=names)
        assert await transport.addresses("images.test", server.port) == ["127.0.0.1"]
        for _ in range(5):
            await get(transport, f"http://images.test:{server.port}/")
        await transport.aclose()
        assert (names.lookups, server.connections) == (1, 5)


@in_loop
async def test_a_failed_lookup_says_whether_it_may_pass():
    """No such name is permanent; a name server in trouble is temporary; no answer at all is permanent."""
    no_name = socket.gaierror(socket.EAI_NONAME, "unknown")
    trouble = socket.gaierror(socket.EAI_AGAIN, "try again")
    transport = GuardedTransport(loopback_settings(), resolver=Names(no_name, trouble, []))
    for temporary in (False, True, False):
        with pytest.raises(ResolveError) as caught:
            await transport.send("GET", "http://images.test/")
        assert caught.value.temporary is temporary
    await transport.aclose()


@in_loop
async def test_the_system_resolver_is_guarded():
    """Names that the system itself resolves to loopback are refused."""
    transport = GuardedTransport(loopback_settings(allowed_networks=()))
    with pytest.raises(RefusedError):
        await transport.send("GET", "http://localhost:1/")
    await transport.aclose()


@in_loop
async def test_a_connection_is_reused():
    """Twenty images from one host take one connection."""
    async with serve(always(response(b"x" * 100_000))) as server:
        transport = GuardedTransport(loopback_settings())
        for _ in range(20):
            await get(transport, f"{server.origin}/")
        await transport.aclose()
        assert (len(server.requests), server.connections) == (20, 1)


@in_loop
async def test_idle_connections_are_bounded():
    """With too many sockets open, a request asks the server to close: idle ones cannot use up the files."""
    async with serve(always(response(b"x"))) as server:
        transport = GuardedTransport(loopback_settings(), resolver=Names(["127.0.0.1"]))
        transport._sockets_max = 2
        for number in range(1, 6):
            await get(transport, f"http://{number}.test:{server.port}/")
        await transport.aclose()
        asked = [request.headers.get("connection") for request in server.requests]
        assert asked == [None, None, None, "close", "close"]


@in_loop
async def test_urls_arrive_byte_exact():
    """Percent signs, quotes and signatures reach the server as they were given."""
    targets = [
        "/a%27b%7Ec%20d%3d'~!*().png",
        "/x?X-Amz-Signature=ab%2Fcd%3D%3d&X-Amz-Date=2024%2B01&empty=&&flag",
        "//double//slash/../dots/./here;v=1,2",
        "/%E4%b8%AD%zz%",
    ]
    async with serve(always(response(b"x"))) as server:
        transport = GuardedTransport(loopback_settings())
        for target in targets:
            await get(transport, server.origin + target)
        await transport.aclose()
        assert [request.target for request in server.requests] == targets


@in_loop
async def test_cookies_are_not_kept():
    """A cookie that a server sets is never sent back."""
    async with serve(always(response(b"x", headers={"Set-Cookie": "a=b; Path=/"}))) as server:
        transport = GuardedTransport(loopback_settings())
        await get(transport, f"{server.origin}/")
        await get(transport, f"{server.origin}/")
        await transport.aclose()
        assert all("cookie" not in request.headers for request in server.requests)


@in_loop
async def test_proxies_of_the_environment_are_ignored(monkeypatch):
    """HTTP_PROXY and its kin would lead round the address check: nothing goes to them."""
    async with serve(always(response(b"proxy"))) as proxy, serve(always(response(b"x"))) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.origin)
        settings = loopback_settings()
        async with make_client(GuardedTransport(settings), settings) as client:
            assert (await client.get(f"{server.origin}/")).content == b"x"
            assert await get(client._transport, f"{server.origin}/") == (200, b"x")
        assert proxy.connections == 0


@in_loop
async def test_a_self_signed_certificate_is_refused():
    """TLS is verified: an unknown certificate fails, and the request is never sent."""
    async with serve(always(response(b"x")), tls_server()) as server:
        transport = GuardedTransport(loopback_settings())
        with pytest.raises(TLSError):
            await transport.send("GET", f"{server.origin}/")
        await transport.aclose()
        assert not server.requests


def test_an_authority_of_ones_own_is_trusted_by_name(monkeypatch):
    """SSL_CERT_FILE names whom to trust; everything else is verified as ever, and the file is read once."""
    trusted.cache_clear()
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))

    async def ask() -> None:
        async with serve(always(response(b"x")), tls_server()) as server:
            transport = GuardedTransport(loopback_settings(), resolver=Names(["127.0.0.1"]))
            assert await get(transport, f"https://images.test:{server.port}/") == (200, b"x")
            with pytest.raises(TLSError):
                await get(transport, f"https://other.test:{server.port}/")
            await transport.aclose()

    asyncio.run(ask())
    assert trusted() is trusted()
    trusted.cache_clear()


@in_loop
async def test_a_certificate_must_fit_the_name():
    """A trusted certificate serves its own names and no other."""
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with serve(always(response(b"x")), tls_server()) as server:
        transport = GuardedTransport(loopback_settings(), ssl_context=trusting, resolver=Names(["127.0.0.1"]))
        assert await get(transport, f"{server.origin}/") == (200, b"x")
        assert await get(transport, f"https://images.test:{server.port}/") == (200, b"x")
        with pytest.raises(TLSError):
            await get(transport, f"https://other.test:{server.port}/")
        await transport.aclose()


@in_loop
async def test_a_large_body_comes_by_tls():
    """Of many records, whose ends fit no read, by a connection that holds little."""
    body = bytes(range(256)) * 4096
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with serve(always(response(body)), tls_server()) as server:
        transport = GuardedTransport(loopback_settings(), ssl_context=trusting)
        async with asyncio.timeout(10):
            for _ in range(3):
                assert await get(transport, f"{server.origin}/") == (200, body)
        await transport.aclose()


@in_loop
async def test_the_header_is_bounded():
    """One huge field, too many fields, and many large fields are all refused; a hundred of one line are honest."""
    huge = response(b"x", headers={"X-A": "a" * 40_000})
    many = response(b"x", headers={f"X-{number}": "a" for number in range(200)})
    large = response(b"x", headers={f"X-{number}": "a" * 6000 for number in range(6)})
    honest = response(b"x", headers={f"X-{number}": "a" for number in range(100)})
    async with serve(by_path({"/huge": huge, "/many": many, "/large": large, "/": honest})) as server:
        transport = GuardedTransport(loopback_settings())
        assert await get(transport, f"{server.origin}/") == (200, b"x")
        for path in ("/huge", "/many"):
            with pytest.raises(httpx.RemoteProtocolError):
                await transport.send("GET", server.origin + path)
        with pytest.raises(HeadersTooLargeError):
            await transport.send("GET", f"{server.origin}/large")
        await transport.aclose()


@in_loop
async def test_what_is_no_http_is_a_protocol_error():
    """A server that speaks something else, or nothing, is a protocol error of httpx."""
    async with serve(always(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")) as server:
        transport = GuardedTransport(loopback_settings())
        with pytest.raises(httpx.RemoteProtocolError):
            await transport.send("GET", f"{server.origin}/")
        await transport.aclose()
    async with serve(always(b"", then_close=True)) as server:
        transport = GuardedTransport(loopback_settings())
        with pytest.raises(httpx.RemoteProtocolError):
            await transport.send("GET", f"{server.origin}/")
        await transport.aclose()


@in_loop
async def test_an_abandoned_response_closes_its_connection():
    """Releasing a half-read response ends its transfer, so that nothing goes on arriving."""

    async def endless(_, write):
        await write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n")
        while True:
            await write(b"x" * 65536)

    async with serve(endless) as server:
        settings = loopback_settings()
        async with make_client(GuardedTransport(settings), settings) as client:
            async with client.stream("GET", f"{server.origin}/") as answer:
                async for _ in answer.aiter_raw():
                    break
            await asyncio.wait_for(server.closed_by_peer.wait(), 10)


@in_loop
async def test_a_client_works_through_the_door():
    """httpx.AsyncClient posts, reads headers and decodes through the transport; redirects are not followed."""
    answers = {
        "/gzip": response(gzip.compress(b"hello"), headers={"Content-Encoding": "gzip"}),
        "/deflate": response(zlib.compress(b"hello"), headers={"Content-Encoding": "deflate"}),
        "/go": response(status=302, headers={"Location": "/gzip"}),
    }
    async with serve(by_path(answers)) as server:
        settings = loopback_settings()
        async with make_client(GuardedTransport(settings), settings) as client:
            assert (await client.get(f"{server.origin}/gzip")).text == "hello"
            assert (await client.get(f"{server.origin}/deflate")).text == "hello"
            assert (await client.get(f"{server.origin}/go")).status_code == 302
            assert (await client.request("POST", f"{server.origin}/none", content=b"")).status_code == 404
    assert server.requests[0].headers["user-agent"] == settings.user_agent
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert server.requests[0].headers["host"] == f"127.0.0.1:{server.port}"


@in_loop
async def test_a_bomb_is_bounded_through_a_client():
    """A gzip bomb or an endless body read through httpx.AsyncClient ends at image_bytes_max."""
    bomb = response(gzip.compress(b"\0" * 10_000_000), headers={"Content-Encoding": "gzip"})
    broken = response(b"\x1f\x8b no gzip at all", headers={"Content-Encoding": "gzip"})
    strange = response(b"x", headers={"Content-Encoding": "br"})
    async with serve(by_path({"/bomb": bomb, "/broken": broken, "/strange": strange})) as server:
        settings = loopback_settings(image_bytes_max=100_000)
        async with make_client(GuardedTransport(settings), settings) as client:
            for path in ("/bomb", "/broken", "/strange"):
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.get(server.origin + path)


@in_loop
async def test_a_client_has_a_total_deadline():
    """A drip through httpx.AsyncClient ends at the deadline, although each read is in time."""

    async def drip(_, write):
        await write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await write(b"x")
            await asyncio.sleep(0.02)

    async with serve(drip) as server:
        settings = loopback_settings(transfer_seconds_max=0.3)
        async with make_client(GuardedTransport(settings), settings) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.get(f"{server.origin}/")


@in_loop
async def test_a_refused_connection_is_a_connect_error():
    """A closed port is httpx.ConnectError; a silent TLS handshake is httpx.ConnectTimeout."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        transport = GuardedTransport(loopback_settings(connect_seconds_max=0.2))
        with pytest.raises(httpx.ConnectError) as caught:
            await transport.send("GET", f"http://127.0.0.1:{closed.getsockname()[1]}/")
        assert type(caught.value) is httpx.ConnectError
        closed.listen()
        with pytest.raises(httpx.ConnectTimeout):
            await transport.send("GET", f"https://127.0.0.1:{closed.getsockname()[1]}/")
        await transport.aclose()


def test_every_error_of_aiohttp_has_its_translation():
    """The table covers each exception class of aiohttp's client; only a WebSocket's TypeError is outside."""
    raised = [
        kind
        for _, kind in inspect.getmembers(aiohttp.client_exceptions, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__.startswith("aiohttp")
    ]
    assert len(raised) > 25
    for kind in [*raised, HttpProcessingError, TimeoutError, ConnectionResetError, UnicodeError]:
        if kind is aiohttp.WSMessageTypeError:
            continue
        row = next(base for base in kind.__mro__ if base in ERRORS)
        assert issubclass(ERRORS[row], httpx.TransportError)
        assert row is not aiohttp.ClientError or kind is aiohttp.ClientError, f"{kind} needs a row of its own"
