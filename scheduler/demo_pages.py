"""The pages of the demo site: each with its bytes, its line in the URL list, and its expected outcome.

Must never start a server or read a clock: the same seed gives the same pages.
"""

import io
import random
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Literal

from models.outcomes import Reason
from scheduler.landscape import draw_landscape

Outcome = Literal["accepted"] | Reason
CONTENT_TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
WIDTHS = (240, 240, 320, 320, 400, 480, 480, 640, 800, 1024)
BOMB_SIDE = 30_000


@dataclass(frozen=True, slots=True)
class Resource:
    """How one path is answered."""

    status: int
    body: bytes
    content_type: str
    headers: Mapping[str, str] = field(default_factory=dict)
    busy_answers: int = 0
    trickle_pieces: int = 0
    trickle_seconds: float = 0
    endless_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """A path and its answer, and a line of the list with its outcome; either half may be missing.

    ``{site}`` in ``line`` is the site's URL, and ``{authority}`` its host and port. Pages of one ``group``
    have equal bytes. What is ``forbidden`` must not even be asked for.
    """

    path: str
    resource: Resource | None
    line: str
    outcome: Outcome | None
    group: str | None = None
    forbidden: bool = False


def make_resources(photographs: int, seed: int, image_bytes_max: int, pool: Executor) -> list[Page]:
    """Make every page; about twelve of the ``photographs`` hide behind redirects, delays and errors."""
    special = 12
    names = [_name(seed, number) for number in range(max(photographs, special))]
    bodies = list(pool.map(lambda item: _photograph(f"{seed}/{item[0]}", item[1]), enumerate(names)))
    good = [_listed(f"/photos/{name}", _image(name, body)) for name, body in zip(names, bodies, strict=True)]
    hidden = good[:special]
    return [
        *_with_copies(good[special:]),
        *_detours(hidden[:5]),
        *_slow(hidden[5:9]),
        *_unsteady(hidden[9:12]),
        *_gone(),
        *_broken(seed),
        *_too_much(image_bytes_max),
        *_opt_outs(seed),
        *_bad_lines(),
    ]


def _name(seed: int, number: int) -> str:
    extension = random.Random(f"{seed}/{number}").choices(("jpg", "webp", "png"), (85, 10, 5))[0]
    return f"{number:05d}.{extension}"


def _photograph(seed: str, name: str, width: int | None = None) -> bytes:
    chance = random.Random(seed)
    width = width or chance.choice(WIDTHS)
    high, wide = chance.choice(((3, 4), (2, 3), (9, 16), (1, 1), (5, 4)))
    if name.endswith("png"):
        # A PNG of grain is three times as long as a JPEG.
        width = min(width, 480)
    image = draw_landscape(seed, width, min(1024, width * high // wide))
    buffer = io.BytesIO()
    match name.rpartition(".")[2]:
        case "png":
            image.save(buffer, "PNG", compress_level=1)
        case "webp":
            image.save(buffer, "WEBP", quality=80, method=1)
        case _:
            image.save(buffer, "JPEG", quality=chance.choice((82, 88, 92)), progressive=chance.random() < 0.1)
    return buffer.getvalue()


def _image(name: str, body: bytes) -> Resource:
    return Resource(200, body, CONTENT_TYPES[name.rpartition(".")[2]])


def _listed(path: str, resource: Resource | None, outcome: Outcome = "accepted") -> Page:
    return Page(path, resource, "{site}" + path, outcome)


def _body(page: Page) -> bytes:
    return page.resource.body if page.resource is not None else b""


def _with_copies(pages: list[Page]) -> list[Page]:
    """Put the first six photographs into groups of two, three and four equal bodies under other names."""
    made = []
    for page, copies in zip(pages, (1, 1, 1, 2, 2, 3), strict=False):
        name = page.path.rpartition("/")[2]
        paths = (page.path, *(f"/mirror-{copy + 1}/{name}" for copy in range(copies)))
        made += [Page(path, page.resource, "{site}" + path, "accepted", group=name) for path in paths]
    return [*made, *pages[6:]]


def _redirect(path: str, location: str, status: int = 302) -> Page:
    resource = Resource(status, b"<html><a>Elsewhere</a></html>", "text/html", {"Location": location})
    return Page(path, resource, "", None)


def _detours(pages: list[Page]) -> list[Page]:
    """Redirects of one hop and of several, one that turns in a circle, and one into a private network."""
    made = []
    for number, page in enumerate(pages):
        made.append(Page(page.path, page.resource, "", None))
        target = page.path
        for hop, status in zip(range((1, 1, 2, 3, 4)[number]), (301, 302, 307, 308), strict=False):
            made.append(_redirect(f"/moved/{number}/{hop}", target, status))
            target = f"/moved/{number}/{hop}"
        made.append(_listed(target, made[-1].resource))
    return [
        *made,
        _redirect("/circle/a", "/circle/b"),
        _redirect("/circle/b", "/circle/a"),
        _listed("/circle/a", None, Reason.REDIRECTS),
        _redirect("/inside/0", "http://10.0.0.1/private.jpg"),
        _listed("/inside/0", None, Reason.BLOCKED_ADDRESS),
        _redirect("/inside/1", "http://169.254.169.254/latest/meta-data/"),
        _listed("/inside/1", None, Reason.BLOCKED_ADDRESS),
    ]


def _slow(pages: list[Page]) -> list[Page]:
    """Good pictures that arrive in pieces over one to two seconds."""
    made = []
    for number, page in enumerate(pages):
        name = page.path.rpartition("/")[2]
        body = _body(page)
        seconds = 1 + number / 3
        resource = Resource(
            200, body, _image(name, body).content_type, trickle_pieces=10, trickle_seconds=seconds
        )
        made.append(_listed(f"/slow/{name}", resource))
    return made


def _unsteady(pages: list[Page]) -> list[Page]:
    """Servers that are busy once and then answer, and one that never does."""
    made = []
    for page in pages:
        name = page.path.rpartition("/")[2]
        body = _body(page)
        resource = Resource(200, body, _image(name, body).content_type, busy_answers=1)
        made.append(_listed(f"/busy/{name}", resource))
    failing = Resource(500, b"Out of order.", "text/plain")
    return [*made, _listed("/failing/photo.jpg", failing, Reason.HTTP_STATUS)]


def _gone() -> list[Page]:
    removed = Resource(410, b"<html>Removed</html>", "text/html")
    missing = [_listed(f"/missing/{number}.jpg", None, Reason.HTTP_STATUS) for number in range(5)]
    return [*missing, *(_listed(f"/gone/{number}.jpg", removed, Reason.HTTP_STATUS) for number in range(2))]


def _broken(seed: int) -> list[Page]:
    """Bodies cut in the middle but served with their own length, web pages named .jpg, and nothing."""
    made = []
    for extension in CONTENT_TYPES:
        name = f"cut.{extension}"
        body = _photograph(f"{seed}/{name}", name, width=320)
        made.append(_listed(f"/broken/{name}", _image(name, body[: len(body) * 3 // 5]), Reason.CORRUPT))
    page = (
        b"<!doctype html><html><title>Sign in</title><body>Please sign in to see this picture.</body></html>"
    )
    for number in range(3):
        path = f"/broken/login-{number}.jpg"
        made.append(_listed(path, Resource(200, page, "image/jpeg"), Reason.NOT_AN_IMAGE))
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    made.append(_listed("/broken/drawing.svg", Resource(200, drawing, "image/svg+xml"), Reason.NOT_AN_IMAGE))
    made.append(_listed("/broken/empty.jpg", Resource(200, b"", "image/jpeg"), Reason.NOT_AN_IMAGE))
    return made


def _too_much(image_bytes_max: int) -> list[Page]:
    """A decompression bomb and a body that goes on for three times as long as is allowed."""
    bomb = Resource(200, make_bomb(), "image/png")
    start = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
    endless = Resource(200, start, "image/jpeg", endless_bytes=3 * image_bytes_max)
    return [
        _listed("/bombs/small-file.png", bomb, Reason.TOO_MANY_PIXELS),
        _listed("/bombs/endless.jpg", endless, Reason.TOO_LARGE),
    ]


def make_bomb() -> bytes:
    """Return a valid one-bit PNG of 30,000 by 30,000 black pixels in about 110 kB."""
    rows = bytes(1000 * (1 + BOMB_SIDE // 8))
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    # Every thousand rows are the same bytes, packed without looking back, so they are packed only once.
    packed = packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)
    length = len(rows) * BOMB_SIDE // 1000
    data = b"\x78\xda" + packed * (BOMB_SIDE // 1000) + b"\x03\0" + struct.pack(">HH", length % 65521, 1)
    header = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    parts = b""
    for kind, content in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        checksum = zlib.crc32(kind + content)
        parts += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return b"\x89PNG\r\n\x1a\n" + parts


def _opt_outs(seed: int) -> list[Page]:
    """Pictures whose owners do not want them collected: by robots.txt, tdmrep.json, and two response headers."""
    robots = Resource(200, b"User-agent: *\nDisallow: /private/\n", "text/plain")
    tdmrep = Resource(200, b'[{"location": "/mined/", "tdm-reservation": 1}]', "application/json")
    picture = _image("private.jpg", _photograph(f"{seed}/private", "private.jpg", width=320))
    pages = [Page("/robots.txt", robots, "", None), Page("/.well-known/tdmrep.json", tdmrep, "", None)]
    for path, reason in (("/private/photo.jpg", Reason.ROBOTS), ("/mined/photo.jpg", Reason.OPT_OUT)):
        pages.append(Page(path, picture, "{site}" + path, reason, forbidden=True))
    for name, value in (("X-Robots-Tag", "noai, noimageai"), ("tdm-reservation", "1")):
        refusing = replace(picture, headers={name: value})
        pages.append(_listed(f"/reserved/{name.lower()}.jpg", refusing, Reason.OPT_OUT))
    return pages


def _bad_lines() -> list[Page]:
    lines = (
        "not a URL",
        "ftp://{authority}/photo.jpg",
        "http://user:secret@{authority}/photo.jpg",
        "http://",
        "www.example.com/photo.jpg",
        "file:///etc/hostname",
    )
    return [Page("", None, line, Reason.INVALID_URL) for line in lines]
