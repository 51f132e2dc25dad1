"""Nothing that is not public is ever connected to, however it is written and whoever leads there.

A listener at one port of every local address, IPv4 and IPv6, counts connections and datagrams and, as root, the
packets on the loopback interface. Every count must be 0.
"""

# ruff: noqa: RUF001 - digits of other scripts are what the table is about.

import asyncio
import random
import socket

import httpx
import pytest
from aiohttp.abc import AbstractResolver

from models.outcomes import Reason
from tests.support.fetching import Sleeps, failure, fetch
from tests.support.hostile_server import in_loop, loopback_settings, response
from tests.support.private_listener import listening
from worker.transport import GuardedTransport, RefusedError, make_client

# The one host that may be connected to here, and the only server that a redirect can come from.
OPEN = "127.0.0.3"

HOSTS = [
    # Loopback, in the forms that some resolver or parser somewhere understands.
    "127.0.0.1", "127.0.0.2", "127.1", "127.0.1", "127.255.255.254", "2130706433", "2130706434", "4294967295",
    "0x7f000001", "0x7F000001", "0x7f.1", "0x7f.0.0.1", "0x7f.0x0.0x0.0x1", "0x7f.0.0x1", "017700000001",
    "0177.0.0.1", "0177.1", "00000177.0.0.01", "0177.0x0.0.1", "127.0.0.01", "127.0.0.0x1", "127.0x0.1",
    "127.00.0.1", "0x0000007f.0.0.1", "127.0.0.1.", "127.1.", "0x7f000001.", "2130706433.", "127.0.0.1..",
    "127..0.1", ".127.0.0.1", "0", "0.0.0.0", "00", "0x0", "0.0", "0.0.0.0.", "000.000.000.000", "0.1.2.3",
    "0x", "127.0.0.1.0", "256.0.0.1", "127.0.0.257", "127.65536", "4294967296", "+127.0.0.1", "-1",
    "127.0.0.-1", "1e3", "127.0.0.1_", "_127.0.0.1",
    # Percent signs, other scripts' digits and dots, and what they become.
    "127%2e0%2e0%2e1", "%31%32%37.0.0.1", "127.0.0.1%00", "127.0.0.1%20", "127.0.0.1%0d%0a", "127.0.0.1%2523",
    "１２７.0.0.1", "１２７．０．０．１", "127。0。0。1", "127｡0｡0｡1", "①②⑦.⓪.⓪.①", "⑫⑦.0.0.1", "𝟏𝟐𝟕.𝟎.𝟎.𝟏",
    "१२७.०.०.१",
    "127.0.0.1\u00ad", "127\u200b.0.0.1", "0x７f.1", "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ", "ｌｏｃａｌｈｏｓｔ", "loc\u00adalhost",
    "localhost。",
    "127.0.0.1\u2024",
    # Names.
    "localhost", "LOCALHOST", "LocalHost.", "localhost.localdomain", "ip6-localhost", "private.test",
    "PRIVATE.test.", "private6.test", "mapped.test", "mixed.test", "mixed-last.test", "metadata.test",
    "translated.test", "zoned.test",
    # IPv6, and IPv4 in IPv6.
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[0000:0000:0000:0000:0000:0000:0000:0001]", "[::0001]", "[0::1]",
    "[::0]", "[::127.0.0.1]", "[::7f00:1]", "[::ffff:127.0.0.1]", "[::FFFF:7f00:1]", "[::ffff:7f00:0001]",
    "[0:0:0:0:0:ffff:127.0.0.1]", "[::ffff:0.0.0.0]", "[::ffff:0:127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[64:ff9b::7f00:1]", "[64:ff9b:1::127.0.0.1]", "[64:ff9b:1:fffe::7f00:1]", "[2002:7f00:1::]",
    "[2002:7f00:0001::1]", "[2002:7f00:1::5efe:8.8.8.8]", "[2002:808:808::5efe:127.0.0.1]",
    "[2001:0:7f00:1::f7f7:f7f7]", "[2001:0:808:808:0:0:80ff:fffe]", "[2606:4700::5efe:127.0.0.1]",
    "[2606:4700::200:5efe:7f00:1]", "[fe80::5efe:127.0.0.1]", "[fe80::1]", "[fe80::1%lo]", "[fe80::1%25lo]",
    "[::1%lo]", "[::1%25lo]", "[::1%1]", "[::1]]", "[[::1]]", "[::1", "::1", "[::ffff:127.0.0.1]%20",
    "[::ffff:127.1]", "[::ffff:0177.0.0.1]", "[v1.::1]", "[127.0.0.1]", "[localhost]", "[::ffff:127.0.0.1.]",
    "[fd00::1]", "[fd00:ec2::254]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[ff0e::1]", "[100::1]",
    "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[4000::1]", "[2001:2::1]",
    # Userinfo and what only looks like it.
    "x@127.0.0.1", "x:y@127.0.0.1", "192.0.2.9@127.0.0.1", "192.0.2.9%40127.0.0.1", "127.0.0.1@192.0.2.9",
    "@127.0.0.1", ":@127.0.0.1", "192.0.2.9\\@127.0.0.1", "127.0.0.1\\@192.0.2.9", "192.0.2.9#@127.0.0.1",
    "127.0.0.1\\.192.0.2.9", "127.0.0.1 192.0.2.9", "127.0.0.1\t", "127.\t0.0.1", "127.0.0.1\n",
    "12\r\n7.0.0.1", "127.0.0.1\x00", "\x00127.0.0.1", "127.0.0.1\u2028",
    # Other networks that are not public.
    "10.0.0.1", "10.1", "0x0a000001", "012.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.1.1",
    "192.168.257", "3232235777", "100.64.0.1", "100.100.100.200", "169.254.169.254", "169.254.170.2",
    "169.254.43518", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "[::ffff:169.254.169.254]",
    "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "192.0.0.192", "192.0.0.8",
    "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16",
]  # fmt: skip
WHOLE = [
    "http:127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http:///127.0.0.1:{port}/",
    "http:\\\\127.0.0.1:{port}\\", "http://\\127.0.0.1:{port}/", "http:/\\127.0.0.1:{port}/",
    "https:127.0.0.1:{port}", "//127.0.0.1:{port}/", "/\\127.0.0.1:{port}/", "\\\\127.0.0.1:{port}\\",
    "///127.0.0.1:{port}/", "h\tttp://127.0.0.1:{port}/", "ht\ntp://127.0.0.1:{port}/",
    "\x01http://127.0.0.1:{port}/", "https://127.0.0.1:{port}/", "HTTP://127.0.0.1:{port}/",
    "http://127.0.0.1:0{port}/", "http://127.0.0.1:{port} /", "http://127.0.0.1:+{port}/",
    "http://127.0.0.1:{port}:80/", "http://127.0.0.1:{port}@127.0.0.3/", "url:http://127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/", "gopher://127.0.0.1:{port}/_x", "ws://127.0.0.1:{port}/",
    "file://127.0.0.1:{port}/x", "dict://127.0.0.1:{port}/", "ldap://127.0.0.1:{port}/",
    "view-source:http://127.0.0.1:{port}/", "unix:///run/x.sock", "http://[::ffff:7f00:1]:{port}?x",
    "http://127.0.0.1:{port}#x", "http://127.0.0.1:{port}?@127.0.0.3/", "http+unix://127.0.0.1:{port}/",
]  # fmt: skip
URLS = [*(f"http://{host}:{{port}}/" for host in HOSTS), *WHOLE]
PORTS = [
    1,
    7,
    9,
    19,
    21,
    22,
    23,
    25,
    53,
    79,
    110,
    111,
    139,
    143,
    389,
    445,
    465,
    514,
    587,
    631,
    993,
    1023,
    2049,
    3659,
]
PORTS += [4045, 5060, 6000, 6566, 6665, 6667, 6697, 10080]

RANDOM = random.Random(7)
REFUSED = {Reason.BLOCKED_ADDRESS, Reason.INVALID_URL}
DEAD_ENDS = {Reason.BLOCKED_ADDRESS, Reason.REDIRECTS}

NAMES = {
    "open.test": [OPEN],
    "private.test": ["127.0.0.1"],
    "private6.test": ["::1"],
    "mapped.test": ["::ffff:127.0.0.1"],
    "mixed.test": ["127.0.0.1", OPEN],
    "mixed-last.test": [OPEN, "127.0.0.1"],
    "metadata.test": ["169.254.169.254"],
    "translated.test": ["64:ff9b::7f00:1"],
    "zoned.test": ["fe80::1%lo"],
}


class Names(AbstractResolver):
    """A name server that answers at once, and gives loopback addresses for every name that it does not know."""

    def __init__(self, names=NAMES):
        self.names = dict(names)

    async def resolve(self, host, port=0, family=socket.AF_INET):
        """Answer."""
        return [
            {"hostname": host, "host": answer, "port": port, "family": family, "proto": 0, "flags": 0}
            for answer in self.names.get(host.rstrip(".").lower(), ["::1", "127.0.0.1"])
        ]

    async def close(self):
        """Hold nothing."""


async def error_of(transport, url, settings):
    """The CandidateError that a fetch must end in."""
    return await failure(fetch(transport, url, settings, random=RANDOM, sleep=Sleeps()))


async def reason_of(transport, url, settings):
    """Why a fetch fails."""
    return (await error_of(transport, url, settings)).reason


def settings_of(**named):
    """One host open, no second attempts."""
    return loopback_settings(allowed_networks=f"{OPEN}/32", **named)


async def serve_redirects(status, locations):
    """Serve ``/N`` as a redirect to the Nth location, on the open host."""

    async def answer(reader, writer):
        while request := await reader.readuntil(b"\r\n\r\n"):
            number = int(request.split(b" ", 2)[1][1:])
            location = locations[number].encode("utf-8", "surrogateescape")
            writer.write(b"HTTP/1.1 %d Go\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, location))

    async def serve(reader, writer):
        try:
            await answer(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(serve, OPEN, 0)


def untouched(listener):
    """Nothing arrived; and the counters work, for a connection of the test's own is counted."""
    assert (listener.connections(), listener.packets()) == (0, 0)
    with socket.create_connection(("127.0.0.1", listener.port)):
        assert listener.connections() == 1
    assert listener.packets() > 0 or not listener.sees_packets


def test_the_table_is_long():
    """It has hundreds of spellings, each once."""
    assert len(set(URLS)) == len(URLS) > 200


@in_loop
async def test_no_spelling_reaches_a_private_address():
    """Each URL is refused when it is given, and not one packet is sent."""
    with listening() as listener:
        settings = settings_of()
        async with GuardedTransport(settings, resolver=Names()) as transport:
            for url in URLS:
                error = await error_of(transport, url.format(port=listener.port), settings)
                assert error.reason in REFUSED, (url, error.reason, error.detail)
                assert not error.transient
        untouched(listener)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@in_loop
async def test_no_redirect_reaches_a_private_address(status):
    """Each URL is refused as the target of a redirect, too, by each status that is followed."""
    with listening() as listener:
        settings = settings_of()
        locations = [url.format(port=listener.port) for url in URLS]
        locations = [text for text in locations if not set(text) & {"\r", "\n", "\0"} and text.isprintable()]
        server = await serve_redirects(status, locations)
        port = server.sockets[0].getsockname()[1]
        async with server, GuardedTransport(settings, resolver=Names()) as transport:
            for number, location in enumerate(locations):
                error = await error_of(transport, f"http://open.test:{port}/{number}", settings)
                # A path on the server itself leads to a number that it has not, and the connection ends.
                home = error.final_url and error.final_url.startswith(f"http://open.test:{port}/")
                assert error.reason in DEAD_ENDS or home, (location, error.reason, error.detail)
        untouched(listener)


@in_loop
async def test_no_client_reaches_a_private_address():
    """Robots, providers, pages and webhooks come through httpx, by the same door."""
    with listening() as listener:
        settings = settings_of()
        async with make_client(GuardedTransport(settings, resolver=Names()), settings) as client:
            for url in URLS:
                # httpx itself refuses some of these URLs before the door sees them.
                with pytest.raises((RefusedError, httpx.InvalidURL, httpx.UnsupportedProtocol)):
                    await client.get(url.format(port=listener.port))
        untouched(listener)


@in_loop
async def test_the_door_itself_refuses_what_nobody_parsed():
    """A caller that hands a URL to the transport without parsing it opens nothing."""
    with listening() as listener:
        transport = GuardedTransport(settings_of(), resolver=Names())
        for url in URLS:
            outcome = await asyncio.gather(
                transport.send("GET", url.format(port=listener.port)), return_exceptions=True
            )
            assert isinstance(outcome[0], Exception), url
        await transport.aclose()
        untouched(listener)


@in_loop
async def test_headers_and_markup_lead_nowhere():
    """Refresh, Link, Content-Location and a page's meta are not followed; 300 and 304 are no redirects."""
    with listening() as listener:
        target = f"http://127.0.0.1:{listener.port}/"
        page = f'<meta http-equiv="refresh" content="0;url={target}"><img src="{target}">'.encode()
        for status in (200, 201, 300, 304, 305, 306):
            headers = {
                "Refresh": f"0;url={target}",
                "Link": f"<{target}>; rel=preload",
                "Content-Location": target,
            }
            headers |= {"Location": target, "Alt-Svc": f'h2="127.0.0.1:{listener.port}"'}
            server = await asyncio.start_server(_always(response(page, status, headers)), OPEN, 0)
            async with server, GuardedTransport(settings_of(), resolver=Names()) as transport:
                url = f"http://open.test:{server.sockets[0].getsockname()[1]}/"
                for _ in range(2):
                    transfer = fetch(transport, url, settings_of(), random=RANDOM)
                    outcome = await asyncio.gather(transfer, return_exceptions=True)
                    assert getattr(outcome[0], "final_url", url) == url
        untouched(listener)


def _always(data):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.close()

    return serve


@in_loop
async def test_a_rebound_name_reaches_nothing():
    """Public at first and private at each later lookup: within one transfer, and from one to the next."""
    with listening() as listener:
        names = Names({"swap.test": [OPEN]})
        transport = GuardedTransport(settings_of(), resolver=names)
        server = await serve_redirects(302, [f"http://swap.test:{listener.port}/"])
        port = server.sockets[0].getsockname()[1]
        async with server:
            (await transport.send("GET", f"http://swap.test:{port}/0")).release()
            for private in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"):
                names.names["swap.test"] = [private]
                transport._session.connector.clear_dns_cache()
                url = f"http://swap.test:{listener.port}/"
                assert await reason_of(transport, url, settings_of()) is Reason.BLOCKED_ADDRESS
        await transport.aclose()
        untouched(listener)


@in_loop
async def test_ports_of_other_protocols_are_refused():
    """A public address is not connected to at a port that no web server has, unless the settings name it."""
    settings = settings_of()
    async with GuardedTransport(settings, resolver=Names()) as transport:
        for port in PORTS:
            error = await error_of(transport, f"http://open.test:{port}/", settings)
            assert error.reason is Reason.BLOCKED_ADDRESS
            assert f"port {port} " in error.detail
    with socket.socket() as closed:
        closed.bind((OPEN, 0))
        named = settings_of(allowed_ports="25, 6667")
        async with GuardedTransport(named, resolver=Names()) as transport:
            for port in (25, 6667):
                assert await reason_of(transport, f"http://{OPEN}:{port}/", named) is Reason.CONNECT
            url = f"http://{OPEN}:{closed.getsockname()[1]}/"
            assert await reason_of(transport, url, named) is Reason.BLOCKED_ADDRESS


@in_loop
async def test_an_allowed_network_opens_only_itself():
    """With one address allowed, that one is reached, also mapped into IPv6; its neighbours are not, in any form."""
    with listening() as listener:
        settings = settings_of(read_seconds_max=0.2)
        async with GuardedTransport(settings, resolver=Names()) as transport:
            for host in (OPEN, f"[::ffff:{OPEN}]", "open.test"):
                assert (
                    await reason_of(transport, f"http://{host}:{listener.port}/", settings) is Reason.TIMEOUT
                )
            assert listener.connections() == 3
            assert listener.packets() > 0 or not listener.sees_packets
            for host in ("127.0.0.2", "127.0.0.4", "[::1]", "[::ffff:127.0.0.4]", "[64:ff9b::127.0.0.4]"):
                reason = await reason_of(transport, f"http://{host}:{listener.port}/", settings)
                assert reason is Reason.BLOCKED_ADDRESS
        assert listener.connections() == 0


@in_loop
async def test_a_refusal_is_final():
    """It is not waited for and not tried again."""
    settings, sleeps = settings_of(transfer_attempts=5), Sleeps()
    async with GuardedTransport(settings, resolver=Names()) as transport:
        await failure(fetch(transport, "http://private.test/", settings, random=RANDOM, sleep=sleeps))
    assert sleeps == []
