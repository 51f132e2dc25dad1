"""Sitemaps: what pages and images a site names itself (sitemaps.org, and Google's extension for images). Pure.

XML is read by expat as it comes, within bounds; a document type declaration, where entities would be defined, ends
it. A file that breaks off gives what was read until there.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.parsers import expat

BYTES_MAX = 50 * 1024 * 1024
URLS_MAX = 50_000
"""Of one file, as the protocol has them."""
IMAGES_MAX = 100_000
DEPTH_MAX = 50
TEXT_CHARACTERS_MAX = 8192
PIECE_BYTES = 64 * 1024

_GZIP = b"\x1f\x8b"
_MARK = b"\xef\xbb\xbf"
_ROOTS = frozenset({"urlset", "sitemapindex"})
_ROBOTS_FIELD = "sitemap"


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image that a sitemap names, and the page on which it is."""

    url: str
    page: str
    title: str | None = None
    caption: str | None = None
    licence: str | None = None


@dataclass(slots=True)
class Sitemap:
    """What one file names, in its order. ``broken`` says why it was not read to its end; None: it was."""

    pages: list[str] = field(default_factory=list)
    sitemaps: list[str] = field(default_factory=list)
    images: list[NamedImage] = field(default_factory=list)
    broken: str | None = None


def read_sitemap(body: bytes) -> Sitemap | None:
    """Read a file, compressed or not. None: it is no sitemap in XML."""
    if not (
        body.startswith(_GZIP)
        or body.removeprefix(_MARK).lstrip()[:1] == b"<"
        or body[:2] in {b"\xff\xfe", b"\xfe\xff"}
    ):
        return None
    reader = _Reader()
    try:
        reader.feed(_pieces(body))
    except (expat.ExpatError, zlib.error, _StopError) as error:
        reader.sitemap.broken = str(error)
    return reader.sitemap if reader.is_sitemap else None


def read_text_sitemap(body: bytes) -> Sitemap:
    """Read a sitemap that is a text file of URLs, one a line."""
    sitemap = Sitemap()
    try:
        lines = b"".join(_pieces(body)).removeprefix(_MARK).decode("utf-8", "replace").splitlines()
    except (zlib.error, _StopError) as error:
        sitemap.broken = str(error)
        return sitemap
    named = [line.strip() for line in lines if line.strip()]
    if len(named) > URLS_MAX:
        sitemap.broken = f"it names more than {URLS_MAX:,} URLs"
    sitemap.pages = named[:URLS_MAX]
    return sitemap


def sitemaps_of_robots(body: bytes) -> list[str]:
    """The sitemaps that a robots.txt names: they are for everybody, wherever in the file they stand."""
    found = []
    for line in body.removeprefix(_MARK).decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition("#")[0].partition(":")
        if colon and name.strip().lower() == _ROBOTS_FIELD and value.strip():
            found.append(value.strip())
    return list(dict.fromkeys(found))[:URLS_MAX]


class _StopError(Exception):
    """A bound is reached. The message says which."""


class _Reader:
    """One pass over one file. Names are taken without their prefixes, which some files do not declare."""

    def __init__(self) -> None:
        self.sitemap = Sitemap()
        self.is_sitemap = False
        self._path: list[str] = []
        self._text = ""
        self._entry: dict[str, str] = {}
        self._images: list[dict[str, str]] = []
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._add_text
        self._parser.StartDoctypeDeclHandler = self._refuse

    def feed(self, pieces: Iterator[bytes]) -> None:
        """Read all pieces. Raises ExpatError or _StopError."""
        for piece in pieces:
            self._parser.Parse(piece, False)
        self._parser.Parse(b"", True)

    def _start(self, name: str, _: Mapping[str, str]) -> None:
        name = name.rpartition(":")[2].lower()
        if not self._path:
            if name not in _ROOTS:
                raise _StopError(f"its root is {name[:40]}")
            self.is_sitemap = True
        self._path.append(name)
        if len(self._path) > DEPTH_MAX:
            raise _StopError("it is nested too deep")
        self._text = ""
        if len(self._path) == 2:
            self._entry, self._images = {}, []
        elif self._path[2:] == ["image"]:
            self._images.append({})

    def _add_text(self, text: str) -> None:
        if len(self._text) < TEXT_CHARACTERS_MAX:
            self._text += text

    def _end(self, _: str) -> None:
        path, text = self._path, self._text.strip()
        if len(path) == 3 and path[2] == "loc":
            self._entry.setdefault("loc", text)
        elif len(path) == 4 and path[2] == "image" and text:
            self._images[-1].setdefault(path[3], text)
        elif len(path) == 2:
            self._take(path[1])
        path.pop()
        self._text = ""

    def _take(self, kind: str) -> None:
        url = self._entry.get("loc")
        sitemap = self.sitemap
        if not url:
            return
        if len(sitemap.pages) + len(sitemap.sitemaps) >= URLS_MAX:
            raise _StopError(f"it names more than {URLS_MAX:,} URLs")
        if kind == "sitemap":
            sitemap.sitemaps.append(url)
            return
        sitemap.pages.append(url)
        for image in self._images:
            if "loc" in image:
                texts = (image.get(name) for name in ("title", "caption", "license"))
                sitemap.images.append(NamedImage(image["loc"], url, *texts))
        if len(sitemap.images) > IMAGES_MAX:
            raise _StopError(f"it names more than {IMAGES_MAX:,} images")

    def _refuse(self, *_: object) -> None:
        raise _StopError("it has a document type declaration")


def _pieces(body: bytes) -> Iterator[bytes]:
    """The bytes of a file, decompressed if it is gzip, BYTES_MAX at most. Raises zlib.error or _StopError."""
    size = 0
    for piece in _inflated(body) if body.startswith(_GZIP) else _cut(body):
        size += len(piece)
        if size > BYTES_MAX:
            raise _StopError(f"it is larger than {BYTES_MAX // 1024**2} MiB")
        yield piece


def _cut(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), PIECE_BYTES):
        yield body[start : start + PIECE_BYTES]


def _inflated(body: bytes) -> Iterator[bytes]:
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    while body and not inflater.eof:
        piece = inflater.decompress(body, PIECE_BYTES)
        body = inflater.unconsumed_tail
        if piece:
            yield piece
    if not inflater.eof:
        raise zlib.error("it ends early")
