"""Rules for URLs and addresses."""

import contextlib
import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.outcomes import Reason
from models.settings import Settings
from worker.address import URL_LENGTH_MAX, check_address, check_port, is_literal, parse_url, resolve_location
from worker.errors import AddressError

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)


def reason_of(url):
    """Say why a URL is refused."""
    with pytest.raises(AddressError) as caught:
        parse_url(url)
    assert not caught.value.transient
    return caught.value.reason


def is_refused(address, allowed=()):
    """Say whether an address is refused."""
    try:
        check_address(address, allowed)
    except AddressError as error:
        return error.reason is Reason.BLOCKED_ADDRESS
    return False


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/a.png",
        "//example.com/a.png",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "http://",
        "http:///a.png",
        "http:/example.com/",
        "http://user@example.com/",
        "http://user:word@example.com/",
        "http://example.com@127.0.0.1/",
        "http://example.com\\@127.0.0.1/",
        "http://127.0.0.1%2f@example.com/",
        "http://ex%61mple.com/",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:http/",
        "http://example..com/",
        "http://.example.com/",
        f"http://{'a' * 64}.com/",
        f"http://{'a.' * 130}com/",
        "http://[::1/",
        "http://[::1%25eth0]/",
        "http://[fe80::12345]/",
        "http://1.2.3.4.5/",
        "http://256.1.1.1/",
        "http://exa mple.com/",
        "http://example.com/a b.png",
        "http://example.com/a\r\nHost: evil",
        "http://example.com/a\tb",
        "http://example.com/\x00",
        " http://example.com/",
        "http://example.com/\ud800",
        "http://\ud800.com/",
        f"http://example.com/{'a' * URL_LENGTH_MAX}",
    ],
)
def test_what_is_no_url_is_invalid(url):
    """A URL that is malformed, or that two parsers could read differently, is invalid_url."""
    assert reason_of(url) is Reason.INVALID_URL


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "0",
        "10.1",
        "0x7f.1.",
        "\uff112\uff17.1",
    ],
)
def test_a_hidden_ipv4_address_is_blocked(host):
    """IPv4 in decimal, octal, hexadecimal or short form is blocked_address, whatever it hides."""
    assert reason_of(f"http://{host}/") is Reason.BLOCKED_ADDRESS


@pytest.mark.parametrize(
    ("given_url", "url", "host", "port"),
    [
        ("http://example.com", "http://example.com/", "example.com", 80),
        ("HTTPS://Example.COM:443/A?b#c", "https://example.com/A?b", "example.com", 443),
        ("http://example.com:/x", "http://example.com/x", "example.com", 80),
        ("http://example.com:8080?q=1", "http://example.com:8080/?q=1", "example.com", 8080),
        ("http://example.com./x", "http://example.com./x", "example.com", 80),
        (
            "http://bücher.example/ü?ü",
            "http://xn--bcher-kva.example/%C3%BC?%C3%BC",
            "xn--bcher-kva.example",
            80,
        ),
        ("http://i❤.example/", "http://xn--i-7iq.example/", "xn--i-7iq.example", 80),
        ("http://\uff11\uff12\uff17.0.0.1/", "http://127.0.0.1/", "127.0.0.1", 80),
        ("http://[2001:DB8:0::1]:81/", "http://[2001:db8::1]:81/", "2001:db8::1", 81),
        ("http://a_b-.example/", "http://a_b-.example/", "a_b-.example", 80),
        ("http://h/%27%7E%20%3d'~?s=%2F+&&x=%zz", "http://h/%27%7E%20%3d'~?s=%2F+&&x=%zz", "h", 80),
    ],
)
def test_a_url_is_taken_apart(given_url, url, host, port):
    """The authority becomes canonical; path and query stay byte-exact; the fragment goes."""
    parsed = parse_url(given_url)
    assert (parsed.url, parsed.host, parsed.port) == (url, host, port)
    assert parse_url(parsed.url) == parsed


def test_an_origin_names_its_port():
    """An origin has scheme, host and port, with brackets round IPv6."""
    assert parse_url("https://EXAMPLE.com/x").origin == "https://example.com:443"
    assert parse_url("http://[::1]/x").origin == "http://[::1]:80"


@pytest.mark.parametrize(
    ("path", "resolved"),
    [
        ("/a/../b", "/b"),
        ("/./b?/../c", "/b?/../c"),
        ("/a/%2e%2E/%2e/b", "/b"),
        ("/a/.%2e", "/"),
        ("/a/..?b", "/?b"),
        ("/a/.b/..c/.../d.", None),
        ("/a?/../b", None),
        ("/a%2f../b", None),
    ],
)
def test_a_path_with_dots_has_two_readings(path, resolved):
    """As it stands, and as servers and browsers resolve it."""
    url = f"http://example.com{path}"
    readings = parse_url(url).readings
    assert readings[0] == url
    assert readings[-1] == (f"http://example.com{resolved}" if resolved else url)


def test_a_literal_is_told_from_a_name():
    """Hosts that are addresses are known without a lookup."""
    assert is_literal("127.0.0.1")
    assert is_literal("::1")
    assert not is_literal("example1.com")


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16",
        "169.254.169.254", "169.254.170.2", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1",
        "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.255", "240.0.0.1", "255.255.255.255",
        "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:8.8.8.8",
        "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8", "100::1", "fc00::1", "fd00:ec2::254",
        "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "2001:db8::1", "2001:10::1", "2001:2::1", "3fff::1",
        "5f00::1", "4000::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2002:c0a8:101::1",
        "2001:0:808:808:0:0:80ff:fffe", "2001:0:7f00:1::f7f7:f7f7",
        "2606:4700::5efe:127.0.0.1", "2606:4700::200:5efe:10.0.0.1", "fe80::5efe:8.8.8.8",
        "2002:7f00:1::5efe:8.8.8.8", "2002:808:808::5efe:127.0.0.1", "64:ff9b:1:fffe::10.0.0.1",
        "not an address", "",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_blocked(address):
    """Private, special, multicast and metadata addresses are refused in every dress."""
    assert is_refused(address)


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "1.1.1.1", "100.63.255.255", "172.32.0.1", "192.0.1.1", "223.255.255.255",
        "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1",
        "2001:0:808:808::f7f7:f7f7", "2606:4700::5efe:8.8.8.8",
    ],
)  # fmt: skip
def test_a_public_address_passes(address):
    """Globally reachable addresses pass, also inside the transition forms."""
    assert not is_refused(address)


def test_an_allowed_network_passes_in_every_dress():
    """A network from the settings may be connected to, mapped too; its neighbours may not."""
    assert not is_refused("127.0.0.1", LOOPBACK)
    assert not is_refused("::ffff:127.0.0.1", LOOPBACK)
    assert is_refused("::1", LOOPBACK)
    assert is_refused("10.0.0.1", LOOPBACK)


def dressed(number, noise):
    """One IPv4 address in every form of IPv6 that carries one, the bits that are free filled with noise."""
    prefix, identifier = 0x2606_4700 << 96 | (noise & 0xFFFF_FFFF) << 64, noise >> 32 & 0xFFFF_FFFF
    yield 0xFFFF << 32 | number
    yield 0x64FF9B << 96 | number
    yield 0x2002 << 112 | number << 80 | noise & (1 << 80) - 1
    yield 0x2001_0000 << 96 | number << 64 | identifier << 32 | 0xFFFF_FFFF ^ 0x0808_0808
    yield 0x2001_0000 << 96 | 0x0808_0808 << 64 | identifier << 32 | 0xFFFF_FFFF ^ number
    yield prefix | 0x0000_5EFE << 32 | number
    yield prefix | 0x0200_5EFE << 32 | number
    yield 0x2002 << 112 | number << 80 | 0x5EFE << 32 | 0x0808_0808
    yield 0x2002 << 112 | 0x0808_0808 << 80 | 0x5EFE << 32 | number


PRIVATE_BLOCKS = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4",
]  # fmt: skip
private_addresses = st.sampled_from(PRIVATE_BLOCKS).flatmap(lambda block: st.ip_addresses(network=block))


@given(private_addresses, st.integers(0, 2**80 - 1))
def test_no_private_address_passes_in_any_tunnel(address, noise):
    """Whatever else an IPv6 address says, one private IPv4 address in it refuses it, also as a mapped one."""
    assert is_refused(address)
    for number in dressed(int(address), noise):
        assert is_refused(ipaddress.IPv6Address(number)), ipaddress.IPv6Address(number)


@given(private_addresses, st.integers(0, 2**80 - 1))
def test_an_allowed_ipv6_network_opens_no_ipv4(address, noise):
    """All of IPv6 may be allowed, and what is IPv4 inside stays closed; both allowed, both are open."""
    both = (ipaddress.ip_network("::/0"), ipaddress.ip_network("0.0.0.0/0"))
    for number in dressed(int(address), noise):
        assert is_refused(ipaddress.IPv6Address(number), both[:1])
        assert not is_refused(ipaddress.IPv6Address(number), both)


def spellings(address):
    """The forms in which an IPv4 address can stand in a URL."""
    a, b, c, d = address.packed
    number = int(address)
    low, lower = number & 0xFFFF, number & 0xFFFFFF
    yield from (
        str(address),
        f"{address}.",
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{lower}",
        f"{a}.{b}.{low}",
    )
    yield from (
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:#x}.{lower}",
        f"0{a:o}.{b}.{low:#x}",
    )
    yield str(address).translate({ord(digit): 0xFF10 + int(digit) for digit in "0123456789"})
    yield str(address).replace(".", "\u3002")
    yield from (f"[::ffff:{address}]", f"[64:ff9b::{address}]", f"[2002:{number >> 16:x}:{low:x}::]")


@given(private_addresses)
def test_no_spelling_of_a_private_address_passes(address):
    """Each form is refused as it is parsed, or means an address that is."""
    for host in spellings(address):
        try:
            parsed = parse_url(f"http://{host}/")
        except AddressError:
            continue
        assert is_literal(parsed.host)
        assert is_refused(parsed.host), host


@given(st.integers(1, 65535))
def test_ports_are_web_ports(port):
    """By default 80, 443 and those over 1023 pass, but for other protocols' own; named by itself each passes."""
    default = Settings().ports
    if port in {80, 443} or (port > 1023 and port not in FETCH_BAD_PORTS):
        check_port(port, default)
    else:
        with pytest.raises(AddressError, match=f"port {port} ") as caught:
            check_port(port, default)
        assert caught.value.reason is Reason.BLOCKED_ADDRESS
    check_port(port, Settings(allowed_ports=f"80,{port}").ports)


# https://fetch.spec.whatwg.org/#bad-port, those over 1023.
FETCH_BAD_PORTS = [
    1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697,
    10080,
]  # fmt: skip


@given(st.ip_addresses())
def test_nothing_that_the_standard_library_calls_private_passes(address):
    """Whatever passes is global and no multicast by the standard library's tables as well."""
    if not is_refused(address):
        embedded = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        assert embedded.is_global
        assert not embedded.is_multicast


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_judged_like_itself(address):
    """Mapped, NAT64 and 6to4 forms are refused exactly when the IPv4 address is."""
    number = int(address)
    refused = is_refused(address)
    for prefix, shift in ((0xFFFF << 32, 0), (0x64FF9B << 96, 0), (0x2002 << 112, 80)):
        assert is_refused(ipaddress.IPv6Address(prefix | number << shift)) is refused


@given(
    st.text(max_size=80), st.sampled_from(["", "http://", "https://example.com", "http://example.com/", "//"])
)
def test_parsing_ends_in_a_url_or_a_refusal(text, start):
    """Any text is either refused or becomes printable ASCII that parses to itself; nothing else is raised."""
    try:
        parsed = parse_url(start + text)
    except AddressError:
        return
    assert parsed.url.isascii()
    assert parsed.url.isprintable()
    assert " " not in parsed.url
    assert parse_url(parsed.url) == parsed


@given(st.text(max_size=60))
def test_a_location_ends_in_a_url_or_a_refusal(location):
    """Any Location header is either refused or becomes a URL that parses to itself."""
    try:
        parsed = resolve_location(parse_url("http://example.com/a/b?c"), location)
    except AddressError:
        return
    assert parse_url(parsed.url) == parsed


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("https://other.example/x%27?y=%3d", "https://other.example/x%27?y=%3d"),
        ("HTTP://Other.example", "http://other.example/"),
        ("//other.example/x", "http://other.example/x"),
        ("https://bücher.example/ü", "https://xn--bcher-kva.example/%C3%BC"),
        ("//BÜCHER.example?ü", "http://xn--bcher-kva.example/?%C3%BC"),
        ("/x/%7Ey?z", "http://example.com:81/x/%7Ey?z"),
        ("x.png", "http://example.com:81/a/x.png"),
        ("./x.png?d=1/2", "http://example.com:81/a/x.png?d=1/2"),
        ("../x.png", "http://example.com:81/x.png"),
        ("../../../x.png", "http://example.com:81/x.png"),
        ("..", "http://example.com:81/"),
        ("?d", "http://example.com:81/a/b?d"),
        ("#f", "http://example.com:81/a/b?c=/d"),
        ("", "http://example.com:81/a/b?c=/d"),
        ("/a b.png", "http://example.com:81/a%20b.png"),
        ("/\udcfc.png", "http://example.com:81/%FC.png"),
        ("/ü.png", "http://example.com:81/%C3%BC.png"),
    ],
)
def test_a_location_is_resolved(location, url):
    """Absolute, relative and odd Location headers lead where a browser would go."""
    assert resolve_location(parse_url("http://example.com:81/a/b?c=/d"), location).url == url


@pytest.mark.parametrize(
    "location",
    [
        "javascript:alert(1)",
        "mailto:a@b",
        "data:image/png;base64,",
        "http://",
        "http:x",
        "http://a b.example/",
        "http://b\udcfccher.example/",
    ],
)
def test_a_location_of_another_kind_is_refused(location):
    """Only http and https are followed."""
    with pytest.raises(AddressError):
        resolve_location(parse_url("http://example.com/"), location)


@pytest.mark.parametrize("character", ["ﷺ", "\u0300", "a\u0327", "❤", "ﷺ.", "\u200d", "%", "[", "@", "a."])
def test_no_url_takes_long(character):
    """The longest names and paths of any characters are refused or taken in no time; CPU time is taken."""
    many = character * (URL_LENGTH_MAX // len(character) - 20)
    started = time.process_time()
    for url in (f"http://{many}/", f"http://{many[:250]}/", f"http://a/{many}", f"http://a?{many}"):
        with contextlib.suppress(AddressError):
            parse_url(url)
        with contextlib.suppress(AddressError):
            resolve_location(parse_url("http://a/b/c"), many)
    assert time.process_time() - started < 0.25


def test_parsing_is_fast():
    """Parsing keeps up with the splitting of a hundred thousand URLs a second on a free core; CPU time is taken."""
    urls = [
        f"https://images-{number}.example.com/photos/{number}/a%20b.jpg?w=100&s=a%3d"
        for number in range(5000)
    ]
    started = time.process_time()
    for url in urls:
        parse_url(url)
    assert time.process_time() - started < 0.25
