"""What may be connected to: the rules for URLs and for IP addresses. Pure; it never resolves or connects."""

import functools
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import NamedTuple

import idna

from models.outcomes import Reason
from models.settings import IPNetwork
from worker.errors import AddressError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

URL_LENGTH_MAX = 8192
HOST_LENGTH_MAX = 253
DEFAULT_PORTS = {"http": 80, "https": 443}

# The authority allows so little that no two parsers can disagree about which host is meant: no userinfo, no
# backslash, no percent sign, no control character and no space anywhere.
_URL = re.compile(
    r"(https?)://"
    r"(?:\[([0-9a-f:.]+)\]|([^\x00-\x20\x7f/?#@:\[\]\\%]+))"
    r"(?::([0-9]{0,5}))?"
    r"((?:[/?][^#\x00-\x20\x7f]*)?)"
    r"(?:#[^\x00-\x20\x7f]*)?",
    re.IGNORECASE,
)
_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_ENDS_IN_A_NUMBER = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$")
_DOT_SEGMENT = re.compile(r"(?<=/)(?:\.|%2e){1,2}(?=/|$)", re.IGNORECASE)
_BEFORE_PATH = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//[^/?#]*", re.IGNORECASE)
_UNSAFE_IN_LOCATION = re.compile(rb"[\x80-\xff ]")

# Addresses that are not globally reachable, from IANA's special-purpose registries (RFC 6890 and later ones).
# The standard library's is_global is not used: it changes between patch releases.
_REFUSED_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # This network, RFC 791.
        "10.0.0.0/8",  # Private, RFC 1918.
        "100.64.0.0/10",  # Carrier-grade NAT, RFC 6598; Alibaba's metadata service.
        "127.0.0.0/8",  # Loopback, RFC 1122.
        "168.63.129.16/32",  # Azure's host agent: a public address, reachable from inside only.
        "169.254.0.0/16",  # Link-local, RFC 3927; the metadata service of most clouds.
        "172.16.0.0/12",  # Private, RFC 1918.
        "192.0.0.0/24",  # IETF protocol assignments, RFC 6890; Oracle's metadata service.
        "192.0.2.0/24",  # Documentation, RFC 5737.
        "192.88.99.0/24",  # 6to4 relays, deprecated by RFC 7526.
        "192.168.0.0/16",  # Private, RFC 1918.
        "198.18.0.0/15",  # Benchmarking, RFC 2544.
        "198.51.100.0/24",  # Documentation, RFC 5737.
        "203.0.113.0/24",  # Documentation, RFC 5737.
        "224.0.0.0/3",  # Multicast, reserved and broadcast, RFC 1112 and RFC 919.
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_REFUSED_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments, RFC 2928: ORCHID, benchmarking and others.
        "2001:db8::/32",  # Documentation, RFC 3849.
        "3fff::/20",  # Documentation, RFC 9637.
    )
)
# Ports over 1023 of servers that speak something else and may act on what they understand of a request: the
# "bad ports" of the Fetch standard, which no browser connects to either.
_OTHER_PROTOCOLS = frozenset(
    {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, *range(6665, 6670), 6679, 6697, 10080}
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = frozenset({0x0000_5EFE, 0x0200_5EFE})


class ParsedURL(NamedTuple):
    """A URL that may be asked for. ``url`` has a canonical authority, the path and query exactly as given, and
    no fragment; ``host`` is lower-case ASCII without brackets and without a final dot.
    """

    url: str
    scheme: str
    host: str
    port: int

    @property
    def origin(self) -> str:
        """Scheme, host and port: what robots.txt and politeness are about."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def readings(self) -> tuple[str, ...]:
        """The URL; and, if its path has dot segments, as a server resolves them (RFC 3986, section 6.2.2.3).
        What is said about paths is said about both.
        """
        if "/." not in self.url and "/%2" not in self.url:
            return (self.url,)
        path, mark, query = self.url.partition("?")
        start = path.index("/", len("https://")) + 1
        dotted = _DOT_SEGMENT.sub(_plain_dots, path[start - 1 :])
        return self.url, f"{path[:start]}{_without_dots(dotted[1:])}{mark}{query}"


def parse_url(text: str) -> ParsedURL:
    """Check one URL and take it apart.

    Raises AddressError: ``blocked_address`` for an IPv4 address in decimal, octal, hexadecimal or short form
    (RFC 3986, section 7.4, warns of them), ``invalid_url`` for anything else that is wrong.
    """
    match = _URL.fullmatch(text) if len(text) <= URL_LENGTH_MAX else None
    if match is None:
        raise AddressError(Reason.INVALID_URL, _what_is_wrong(text))
    scheme, literal, name, digits, rest = match.groups()
    scheme = scheme.lower()
    host = _ipv6_host(literal) if literal else _named_host(name)
    authority = f"[{host}]" if literal else host
    port = int(digits) if digits else DEFAULT_PORTS[scheme]
    if not 0 < port <= 65535:
        raise AddressError(Reason.INVALID_URL, f"there is no port {port}")
    if port != DEFAULT_PORTS[scheme]:
        authority = f"{authority}:{port}"
    if not rest.startswith("/"):
        rest = f"/{rest}"
    if not rest.isascii():
        rest = _percent_encode(rest)
    return ParsedURL(f"{scheme}://{authority}{rest}", scheme, host.removesuffix("."), port)


def resolve_location(base: ParsedURL, location: str) -> ParsedURL:
    """Find where a Location header leads (RFC 9110, section 10.2.2) and check it as any URL.

    An absolute URL or path stays byte-exact: signed ones would break. Spaces and bytes that are not ASCII are
    percent-encoded behind the host, as browsers do. Raises AddressError.
    """
    location = location.strip(" \t")
    found = _BEFORE_PATH.match(location)
    host = found[0] if found else ""
    try:
        raw = location[len(host) :].encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise AddressError(Reason.INVALID_URL, "the Location header is not valid Unicode") from None
    location = host + _UNSAFE_IN_LOCATION.sub(lambda found: b"%%%02X" % found[0][0], raw).decode("ascii")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", location):
        return parse_url(location)
    scheme, _, after = base.url.partition("://")
    authority, _, path_and_query = after.partition("/")
    path, _, query = path_and_query.partition("?")
    if location.startswith("//"):
        return parse_url(f"{scheme}:{location}")
    if location.startswith("/"):
        return parse_url(f"{scheme}://{authority}{location}")
    if location.startswith("?"):
        return parse_url(f"{scheme}://{authority}/{path}{location}")
    if not location or location.startswith("#"):
        return parse_url(f"{scheme}://{authority}/{path_and_query}" if query else base.url)
    reference, mark, rest = location.partition("?")
    folder = path.rpartition("/")[0]
    segments = _without_dots(f"{folder}/{reference}".removeprefix("/"))
    return parse_url(f"{scheme}://{authority}/{segments}{mark}{rest}")


def check_address(address: str | IPAddress, allowed_networks: tuple[IPNetwork, ...] = ()) -> None:
    """Let a globally reachable address pass, or one inside ``allowed_networks``.

    An IPv6 address that carries an IPv4 one (mapped, NAT64, 6to4, Teredo, ISATAP) is judged by what it
    carries, also where a network is allowed. Raises AddressError with ``blocked_address``.
    """
    if not _may_connect(str(address), allowed_networks):
        raise AddressError(Reason.BLOCKED_ADDRESS, f"{address} is not a public address")


def check_port(port: int, allowed_ports: Iterable[range]) -> None:
    """Let a port pass that one of the ranges holds; those of other protocols must be named by themselves.

    Raises AddressError with ``blocked_address``.
    """
    for ports in allowed_ports:
        if port in ports and (len(ports) == 1 or port not in _OTHER_PROTOCOLS):
            return
    raise AddressError(Reason.BLOCKED_ADDRESS, f"port {port} is not one of PIXTRAWL_ALLOWED_PORTS")


def is_literal(host: str) -> bool:
    """Whether a host that ``parse_url`` gave is an IP address and no name."""
    return ":" in host or _ENDS_IN_A_NUMBER.search(host) is not None


@functools.lru_cache(maxsize=4096)
def _may_connect(text: str, allowed_networks: tuple[IPNetwork, ...]) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return all(
        _is_inside(meant, allowed_networks) or _is_global(meant) for meant in _addresses_meant(address)
    )


def _is_inside(address: IPAddress, networks: tuple[IPNetwork, ...]) -> bool:
    return any(address in network for network in networks)


def _is_global(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return not _is_inside(address, _REFUSED_IPV4)
    return address in _GLOBAL_UNICAST and not _is_inside(address, _REFUSED_IPV6)


def _addresses_meant(address: IPAddress) -> tuple[IPAddress, ...]:
    """Every address that a packet to this one may end at."""
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    last_32_bits = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.ipv4_mapped is not None or address in _NAT64:
        return (last_32_bits,)
    if address.teredo is not None:
        return address.teredo
    # An interface may speak ISATAP behind any prefix, so both halves count.
    outer = address.sixtofour or address
    is_isatap = (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP
    return (outer, last_32_bits) if is_isatap else (outer,)


def _ipv6_host(literal: str) -> str:
    try:
        return str(ipaddress.IPv6Address(literal))
    except ValueError:
        raise AddressError(Reason.INVALID_URL, "the IPv6 address in the URL is malformed") from None


def _named_host(name: str) -> str:
    """Lower-case ASCII form of a host name or IPv4 address."""
    # Measured before it is encoded, too: 8,000 characters that each become eighteen took half a second.
    if len(name) > HOST_LENGTH_MAX:
        raise AddressError(Reason.INVALID_URL, f"the host name is longer than {HOST_LENGTH_MAX} characters")
    host = name.lower() if name.isascii() else _to_ascii(name)
    if len(host) > HOST_LENGTH_MAX or _HOST.fullmatch(host) is None:
        raise AddressError(Reason.INVALID_URL, "the host name is malformed")
    if _ENDS_IN_A_NUMBER.search(host):
        return _ipv4_host(host.removesuffix("."))
    return host


def _ipv4_host(host: str) -> str:
    """Read a name that ends in a number: to every resolver it is an IPv4 address (URL standard)."""
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        pass
    try:
        socket.inet_aton(host)
    except OSError:
        raise AddressError(Reason.INVALID_URL, "the IPv4 address in the URL is malformed") from None
    raise AddressError(Reason.BLOCKED_ADDRESS, f"{host} hides an IPv4 address")


def _to_ascii(name: str) -> str:
    """IDNA as browsers do it (UTS 46); names that only the older IDNA 2003 knows, such as emoji, by that."""
    try:
        return idna.encode(name, uts46=True).decode("ascii").lower()
    except UnicodeError:
        pass
    try:
        return name.encode("idna").decode("ascii").lower()
    except UnicodeError:
        raise AddressError(Reason.INVALID_URL, "the host name is malformed") from None


def _percent_encode(rest: str) -> str:
    """Write characters that are not ASCII as percent-encoded UTF-8 (RFC 3987, section 3.1); nothing else."""
    try:
        raw = rest.encode("utf-8")
    except UnicodeEncodeError:
        raise AddressError(Reason.INVALID_URL, "the URL is not valid Unicode") from None
    return re.sub(rb"[\x80-\xff]", lambda found: b"%%%02X" % found[0][0], raw).decode("ascii")


def _plain_dots(segment: re.Match[str]) -> str:
    return segment[0].lower().replace("%2e", ".")


def _without_dots(path: str) -> str:
    """RFC 3986, section 5.2.4, for a path without its first slash."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/".join(kept)


def _what_is_wrong(text: str) -> str:
    """Say in words why a text did not match; only the first fault is named."""
    if len(text) > URL_LENGTH_MAX:
        return f"the URL is longer than {URL_LENGTH_MAX} characters"
    if re.search(r"[\x00-\x20\x7f]", text):
        return "the URL has a space or a control character"
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in DEFAULT_PORTS:
        return "the URL does not begin with http:// or https://"
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        return "the URL has a user name or password"
    return "the URL has no host" if not authority else "the host or port is malformed"
