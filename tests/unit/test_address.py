"""Rules for URLs and addresses."""

import ipaddress
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.outcomes import Reason
from worker.address import URL_LENGTH_MAX, check_address, is_literal, parse_url, resolve_location
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
    "location", ["javascript:alert(1)", "mailto:a@b", "data:image/png;base64,", "http://", "http:x"]
)
def test_a_location_of_another_kind_is_refused(location):
    """Only http and https are followed."""
    with pytest.raises(AddressError):
        resolve_location(parse_url("http://example.com/"), location)


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
