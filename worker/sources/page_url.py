"""URLs of pages as a crawl keeps them apart: which are one page, of one pattern, or lead nowhere. Pure.

What is asked for is the URL as it stands; only its key and its pattern are made from a normal form.
"""

import hashlib
import re
from urllib.parse import quote, unquote_to_bytes

from worker.address import ParsedURL

KEY_BYTES = 16
URL_LENGTH_MAX = 2_000
SEGMENTS_MAX = 20
PARAMETERS_MAX = 12
REPEATS_MAX = 3
"""So often one name may stand in a path; more is a link that is relative by mistake, and grows at each click."""

SESSION_NAMES = frozenset(
    {
        *("sid", "sessid", "session", "sessionid", "session_id", "phpsessid", "jsessionid", "aspsessionid"),
        *("cfid", "cftoken", "zenid", "oscsid", "s_id"),
    }
)
TRACKING_NAMES = frozenset(
    {
        "fbclid",
        "gclid",
        "dclid",
        "gbraid",
        "wbraid",
        "msclkid",
        "yclid",
        "mc_cid",
        "mc_eid",
        "igshid",
        "_ga",
        "_gl",
    }
)
TRACKING_PREFIX = "utm_"

_PATH_SESSION = re.compile(r";(?:jsessionid|phpsessid|sid)=[^/;?]*", re.IGNORECASE)
_ASP_SESSION = re.compile(r"/\((?:[A-Z]\([^/()]*\))+\)", re.IGNORECASE)
_ESCAPED = re.compile(r"%[0-9A-Fa-f]{2}")
_NUMBER = re.compile(r"[0-9]+")
_UNRESERVED = "-._~"


def normal_form(url: ParsedURL) -> str:
    """The form in which equal pages are equal: without what names a session or where a visitor came from.

    ``parse_url`` has dropped the fragment, the default port and capitals in the host. Parameters are sorted.
    """
    path, _, query = url.url[len(url.url) - len(_rest(url)) :].partition("?")
    path = _ASP_SESSION.sub("", _PATH_SESSION.sub("", path)) or "/"
    path = re.sub("/{2,}", "/", _ESCAPED.sub(_unescape, path))
    kept = sorted(_ESCAPED.sub(_unescape, part) for part in query.split("&") if part and not _is_noise(part))
    return f"{url.origin}{path}" + (f"?{'&'.join(kept)}" if kept else "")


def page_key(url: ParsedURL) -> bytes:
    """By what a page is known: once in a job."""
    return _digest(normal_form(url))


def page_pattern(url: ParsedURL) -> bytes:
    """What URLs of one kind share: host and path with every number alike, and no query.

    The days of a calendar are one pattern, and so are all views of a list.
    """
    path = normal_form(url).partition("?")[0]
    return _digest(_NUMBER.sub("0", path[len(url.origin) :]) + "\0" + url.origin)


def leads_nowhere(url: ParsedURL) -> bool:
    """Whether a URL looks like those that a site makes without end."""
    path, _, query = _rest(url).partition("?")
    segments = [segment for segment in path.split("/") if segment]
    return (
        len(url.url) > URL_LENGTH_MAX
        or len(segments) > SEGMENTS_MAX
        or query.count("&") >= PARAMETERS_MAX
        or any(segments.count(segment) > REPEATS_MAX for segment in set(segments))
    )


def _rest(url: ParsedURL) -> str:
    """Path and query."""
    return "/" + url.url.partition("://")[2].partition("/")[2]


def _is_noise(parameter: str) -> bool:
    name = parameter.partition("=")[0].lower()
    return name in SESSION_NAMES or name in TRACKING_NAMES or name.startswith(TRACKING_PREFIX)


def _unescape(found: re.Match[str]) -> str:
    """Unreserved characters as they are, others in capitals (RFC 3986, section 6.2.2)."""
    return quote(unquote_to_bytes(found[0]), safe=_UNRESERVED)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:KEY_BYTES]
