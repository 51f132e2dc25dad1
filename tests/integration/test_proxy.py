"""The operator's proxy: everything goes through it, and nothing private is asked of it."""

import contextlib
import random
import socket
import ssl

import pytest

from models.outcomes import Reason
from tests.integration.test_ssrf import HOSTS, Names
from tests.support.fetching import PIXELS, Sleeps, failure, fetch
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
from tests.support.private_listener import listening
from tests.support.small_proxy import small_proxy
from worker.transport import GuardedTransport, make_client

# A public address: looked up and checked, never connected to. The proxy's own lookup leads to the test's server.
PUBLIC = {"images.test": ["8.8.8.8"], "proxy.test": ["127.0.0.1"], "mixed.test": ["8.8.8.8", "127.0.0.1"]}
THERE = {"images.test": "127.0.0.1"}


@contextlib.asynccontextmanager
async def through(
    proxy, *, user="", host="127.0.0.1", scheme="http", names=PUBLIC, ssl_context=None, **named
):
    """Give a fetch that goes through the proxy; no network is allowed."""
    settings = loopback_settings(
        allowed_networks=(), proxy_url=f"{scheme}://{user}{host}:{proxy.port}", **named
    )
    transport = GuardedTransport(settings, resolver=Names(names), ssl_context=ssl_context)

    async def get(url):
        return await fetch(transport, url, settings, random=random.Random(7), sleep=Sleeps())

    get.transport, get.settings = transport, settings
    async with transport:
        yield get


@in_loop
async def test_http_and_https_go_through_the_proxy():
    """Plain URLs are asked of the proxy whole, https is tunnelled and verified end to end, redirects likewise."""
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with serve(always(response(PIXELS)), tls_server()) as secret:
        go = response(status=302, headers={"Location": f"https://images.test:{secret.port}/b"})
        async with (
            serve(by_path({"/a?x=%27": response(PIXELS), "/go": go})) as plain,
            small_proxy(THERE) as proxy,
            through(proxy, host="proxy.test", ssl_context=trusting) as get,
        ):
            fetched = await get(f"http://images.test:{plain.port}/a?x=%27")
            assert (fetched.body, plain.requests[0].target) == (PIXELS, "/a?x=%27")
            fetched = await get(f"http://images.test:{plain.port}/go")
            assert fetched.final_url == f"https://images.test:{secret.port}/b"
            lines = [head.split(b"\r\n")[0] for head in proxy.heads]
            assert lines[0] == b"GET http://images.test:%d/a?x=%%27 HTTP/1.1" % plain.port
            assert lines[-1] == b"CONNECT images.test:%d HTTP/1.1" % secret.port
            assert secret.requests[0].headers["host"] == f"images.test:{secret.port}"
            assert await get.transport.addresses("images.test", plain.port) == ["8.8.8.8"]


@in_loop
async def test_the_way_to_the_proxy_may_be_tls():
    """An https proxy's certificate is verified, and so is the target's inside the tunnel."""
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with (
        serve(always(response(PIXELS)), tls_server()) as secret,
        serve(always(response(PIXELS))) as plain,
        small_proxy(THERE, "me:hunter2", tls_server()) as proxy,
    ):
        urls = [f"https://images.test:{secret.port}/", f"http://images.test:{plain.port}/"]
        async with through(proxy, user="me:hunter2@", scheme="https", ssl_context=trusting) as get:
            for url in urls:
                assert (await get(url)).body == PIXELS
        proxy.heads.clear()
        async with through(proxy, user="me:hunter2@", scheme="https") as get:
            for url in urls:
                assert (await failure(get(url))).reason in {Reason.TLS, Reason.CONNECT}
        assert proxy.heads == []


@in_loop
async def test_a_certificate_is_verified_behind_the_proxy():
    """A proxy that answers with a certificate of its own is refused like any other."""
    async with (
        serve(always(response(PIXELS)), tls_server()) as secret,
        small_proxy(THERE) as proxy,
        through(proxy) as get,
    ):
        error = await failure(get(f"https://images.test:{secret.port}/"))
        assert (error.reason, secret.requests) == (Reason.TLS, [])


@in_loop
async def test_the_password_is_the_proxys_alone():
    """Only the proxy gets it; it stands in no request to a server, in no error and in no settings."""
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with (
        serve(always(response(PIXELS)), tls_server()) as secret,
        small_proxy(THERE, "me:hunter2 ü") as proxy,
    ):
        url = f"https://images.test:{secret.port}/"
        async with through(proxy, user="me:hunter2%20%C3%BC@", ssl_context=trusting) as get:
            assert (await get(url)).body == PIXELS
            async with serve(always(response(PIXELS))) as plain:
                assert (await get(f"http://images.test:{plain.port}/")).body == PIXELS
                assert "proxy-authorization" not in plain.requests[0].headers
            assert "hunter2" not in repr(get.settings)
            assert "proxy-authorization" not in secret.requests[0].headers
            assert "authorization" not in secret.requests[0].headers
        async with through(proxy, user="me:hunter3@", ssl_context=trusting) as get:
            error = await failure(get(url))
            assert (error.reason, "hunter3" in error.detail) == (Reason.CONNECT, False)
            error = await failure(get(f"http://images.test:{secret.port}/"))
            assert (error.reason, error.http_status) == (Reason.HTTP_STATUS, 407)
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            proxy.port = closed.getsockname()[1]
            async with through(proxy, user="me:hunter3@") as get:
                error = await failure(get(url))
                assert (error.reason, "hunter3" in error.detail) == (Reason.CONNECT, False)


@in_loop
async def test_nothing_private_is_asked_of_the_proxy():
    """Each spelling of the table is refused before the proxy hears of it; so is a name with one private address."""
    with listening() as listener:
        async with small_proxy({}) as proxy, through(proxy) as get:
            for host in [*HOSTS, "proxy.test", "127.0.0.3"]:
                error = await failure(get(f"http://{host}:{listener.port}/"))
                assert error.reason in {Reason.BLOCKED_ADDRESS, Reason.INVALID_URL}, host
            error = await failure(get(f"http://127.0.0.1:{proxy.port}/"))
            assert error.reason is Reason.BLOCKED_ADDRESS
            assert (await failure(get("http://images.test:25/"))).reason is Reason.BLOCKED_ADDRESS
            assert proxy.heads == []
        assert (listener.connections(), listener.packets()) == (0, 0)


@in_loop
async def test_a_redirect_through_the_proxy_is_checked():
    """A public server behind the proxy cannot send it to a private address."""
    with listening() as listener:
        go = response(status=302, headers={"Location": f"http://private.test:{listener.port}/"})
        async with serve(always(go)) as server, small_proxy(THERE) as proxy, through(proxy) as get:
            error = await failure(get(f"http://images.test:{server.port}/"))
            assert (error.reason, len(proxy.heads)) == (Reason.BLOCKED_ADDRESS, 1)
        assert (listener.connections(), listener.packets()) == (0, 0)


@in_loop
async def test_only_the_proxys_address_is_connected_to():
    """The socket factory itself refuses every address and port that is not the proxy's."""
    async with small_proxy({}) as proxy, through(proxy, host="proxy.test") as get:
        await failure(get("http://images.test:1234/"))
        assert len(proxy.heads) == 1
        for address, port in (("127.0.0.1", proxy.port + 1), ("8.8.8.8", 80), ("8.8.8.8", proxy.port)):
            with pytest.raises(OSError, match="is not the proxy"):
                get.transport._open_socket((socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)))


@in_loop
async def test_a_name_without_an_address_is_dns():
    """What cannot be looked up here is not asked for; the next try looks it up again."""

    class Broken(Names):
        asked = 0

        async def resolve(self, host, port=0, family=socket.AF_INET):
            if host == "unknown.test":
                self.asked += 1
                raise socket.gaierror(socket.EAI_NONAME, "unknown")
            return await super().resolve(host, port, family)

    async with small_proxy({}) as proxy:
        settings = loopback_settings(allowed_networks=(), proxy_url=f"http://127.0.0.1:{proxy.port}")
        names = Broken(PUBLIC)
        async with GuardedTransport(settings, resolver=names) as transport:
            for _ in range(2):
                error = await failure(
                    fetch(
                        transport, "http://unknown.test/", settings, random=random.Random(7), sleep=Sleeps()
                    )
                )
                assert error.reason is Reason.DNS
        assert (names.asked, proxy.heads) == (2, [])


@in_loop
async def test_a_client_goes_through_the_proxy():
    """What comes through httpx goes the same way."""
    async with serve(always(response(b"User-agent: *"))) as server, small_proxy(THERE) as proxy:
        async with through(proxy) as get, make_client(get.transport, get.settings) as client:
            answer = await client.get(f"http://images.test:{server.port}/robots.txt")
            assert answer.text == "User-agent: *"
        assert len(proxy.heads) == 1
