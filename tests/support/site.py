"""A small site whose tester decides when some of its pictures arrive: what happens meanwhile needs no clock."""

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from aiohttp import web
from PIL import Image

from tests.support.loopback import LoopbackSite
from tests.support.poison import garbled_png, slow_jpeg

if TYPE_CHECKING:
    from collections.abc import Callable


def picture(number: int) -> bytes:
    """A PNG that no other number has."""
    image = Image.new("RGB", (24, 16), (number % 256, number // 256 % 256, 7))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Site(LoopbackSite):
    """Serves /free/N at once, so /garbled/N (a PNG of right form whose pixels are nonsense), /cut/N (one that
    breaks off) and /slow/SIDE (a picture that takes a decoder many seconds), /held/N when ``release`` was called,
    /later/N after 503 until ``release``, /deadly/N never, and nothing else, while it is open.
    """

    def __enter__(self) -> Self:
        self.asked: set[str] = set()
        self.served: list[str] = []
        self.log: list[tuple[float, str]] = []
        """Every request: when, by ``time.monotonic``, and what for."""
        self.refuse: Callable[[str], str | None] = lambda _: None
        """The Retry-After with which a path is refused by 429; None: it is not."""
        self.robots: str | None = None
        """Its robots.txt; None: there is none."""
        self.wishes: list[tuple[float, str]] = []
        """Like ``log``, for what owners keep for crawlers; it stands in neither ``log`` nor ``asked``."""
        self.waiting = 0
        """Requests for held pictures that are open now."""
        self.strike: Callable[[int], None] = lambda _: None
        """Called with the port of who asks for a deadly picture; it never arrives."""
        return super().__enter__()

    def write_list(self, path: Path, free: int, held: int, missing: int = 0) -> Path:
        """Write a list of so many URLs of each kind."""
        kinds = (("free", free), ("held", held), ("missing", missing))
        lines = [f"{self.url}/{kind}/{number}" for kind, count in kinds for number in range(count)]
        path.write_text("\n".join(lines) + "\n")
        return path

    def held_asked(self) -> int:
        """How many held pictures were asked for."""
        return sum(path.startswith("/held/") for path in self.asked)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """What the kind of path gives."""
        if request.path in {"/robots.txt", "/.well-known/tdmrep.json"}:
            self.wishes.append((time.monotonic(), request.path))
            said = self.robots if request.path == "/robots.txt" else None
            return web.Response(status=404) if said is None else web.Response(text=said)
        self.asked.add(request.path)
        self.log.append((time.monotonic(), request.path))
        if (wait := self.refuse(request.path)) is not None:
            return web.Response(status=429, headers={"Retry-After": wait} if wait else {})
        kind, _, number = request.path[1:].partition("/")
        if kind == "deadly":
            self.strike(request.transport.get_extra_info("peername")[1])
            await self.leave.wait()
        if kind not in {"free", "held", "slow", "later", "garbled", "cut"}:
            return web.Response(status=404)
        if kind == "later" and not self.released.is_set():
            return web.Response(status=503)
        if kind == "slow":
            return web.Response(body=slow_jpeg(int(number)), content_type="image/jpeg")
        if kind == "held":
            self.waiting += 1
            try:
                await self.released.wait()
            finally:
                self.waiting -= 1
        self.served.append(request.path)
        return web.Response(body=body(kind, int(number)), content_type="image/png")


def body(kind: str, number: int) -> bytes:
    """What a kind of path gives."""
    match kind:
        case "garbled":
            return garbled_png(number)
        case "cut":
            return picture(number)[:-16]
        case "held":
            return picture(number + 10_000)
    return picture(number)
