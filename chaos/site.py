"""A web site on loopback whose every answer follows from its path: good pictures, copies, errors, rubbish, poison.

Knows what each line of a list must come to. Must never listen on anything but 127.0.0.1.
"""

import asyncio
import functools
import io
import random
import threading
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from aiohttp import web
from PIL import Image

from models.outcomes import Reason
from tests.support.poison import slow_jpeg

ACCEPTED = "accepted"
KINDS = {"good": 70, "copy": 10, "slow": 5, "missing": 6, "corrupt": 4, "page": 3, "busy": 2}
"""How many of a hundred lines are of each kind."""
EXPECTED = {"missing": Reason.HTTP_STATUS, "corrupt": Reason.CORRUPT, "page": Reason.NOT_AN_IMAGE}
"""What a kind comes to when it is not accepted."""
SLOW_SECONDS = 0.6
POISON_SIDE = 7000
COPIES = 1 << 31
"""Pictures from here on are those of groups."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a list: its URL, what it must come to, and the ``group`` of equal bytes that it is in, if any.

    One of a group is accepted and the others are duplicates.
    """

    url: str
    outcome: str
    group: str | None = None


class Site:
    """A context manager that serves in a thread of its own. An answer takes up to ``pace_seconds``."""

    def __init__(self, pace_seconds: float = 0.2) -> None:
        self.pace_seconds = pace_seconds
        self.url = ""
        self._asked = Counter[str]()
        self._lists = 0

    def __enter__(self) -> Self:
        listening: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(listening)), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{listening.result(10)}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(10)

    def make_list(self, chance: random.Random, size: int, poison: int = 0) -> list[Line]:
        """Make ``size`` lines that no other list has, of all kinds in random order; ``poison`` of them kill."""
        self._lists += 1
        kinds = chance.choices(list(KINDS), list(KINDS.values()), k=size)
        for place in chance.sample(range(size), poison):
            kinds[place] = "poison"
        return [self._line(kind, self._lists * 100_000 + number) for number, kind in enumerate(kinds)]

    def _line(self, kind: str, number: int) -> Line:
        if kind == "copy":
            group = f"{number // 16 * 16}"
            return Line(f"{self.url}/copy/{group}/{number}", ACCEPTED, group)
        outcome = Reason.WORKER_LOST if kind == "poison" else EXPECTED.get(kind, ACCEPTED)
        return Line(f"{self.url}/{kind}/{number}", str(outcome))

    async def _serve(self, listening: "Future[int]") -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        listening.set_result(runner.addresses[0][1])
        await self._leave.wait()
        await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        kind, number = f"{request.path}/".split("/")[1:3]
        if kind not in {*KINDS, "poison"}:  # robots.txt and tdmrep.json: everybody may have everything.
            return web.Response(status=404)
        await asyncio.sleep(SLOW_SECONDS if kind == "slow" else self.pace_seconds * random.random())
        self._asked[request.path] += 1
        if kind == "missing":
            return web.Response(status=404)
        if kind == "busy" and self._asked[request.path] % 2:
            return web.Response(status=503, headers={"Retry-After": "0"})
        return web.Response(body=body(kind, int(number)), content_type="image/png")


def body(kind: str, number: int) -> bytes:
    """What is sent for a path that has something."""
    match kind:
        case "page":
            return b"<!doctype html><p>No picture.</p>"
        case "corrupt":
            return picture(number)[:-20]
        case "poison":
            return poison()
        case "copy":
            return picture(COPIES + number)
    return picture(number)


def picture(number: int) -> bytes:
    """A small PNG that no other number has."""
    image = Image.new("RGB", (24, 16), (number % 256, number // 256 % 256, number // 65536 % 256))
    image.putpixel((0, 0), (number // 16_777_216 % 256, 0, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@functools.cache
def poison() -> bytes:
    """A picture within every bound that takes a decoder more than a minute."""
    return slow_jpeg(POISON_SIDE)
