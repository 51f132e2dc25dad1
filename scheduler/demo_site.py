"""A small web site on loopback with generated photographs and every way in which a candidate can go wrong.

Owns the answers and what they should lead to. Must never listen on anything but 127.0.0.1.
"""

import asyncio
import contextlib
import os
import random
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from aiohttp import web

from models.outcomes import Reason
from scheduler.demo_pages import Page, Resource, make_resources

START_SECONDS_MAX = 10
STOP_SECONDS_MAX = 5
PIECE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Expected:
    """What line ``line`` (from 1) of the list must come to.

    Lines of one ``group`` lead to equal bytes: exactly one of them is accepted, whichever comes first, and
    the others are ``duplicate``; their ``outcome`` says accepted.
    """

    line: int
    text: str
    outcome: Literal["accepted"] | Reason
    group: str | None = None


@dataclass(slots=True)
class Traffic:
    """Requests for one path, and bytes of bodies sent."""

    count: int = 0
    sent_bytes: int = 0


@dataclass(slots=True)
class DemoSite:
    """A context manager that serves the site in a thread of its own while it is open.

    ``photographs`` is the number of distinct good pictures; about forty further lines go wrong on purpose.
    The same seed gives the same bytes and the same order.
    """

    photographs: int = 300
    seed: int = 7
    image_bytes_max: int = 20 * 1024 * 1024
    url: str = field(default="", init=False)
    lines: list[str] = field(default_factory=list, init=False)
    expected: list[Expected] = field(default_factory=list, init=False)
    requests: dict[str, Traffic] = field(default_factory=dict, init=False)
    _forbidden: frozenset[str] = field(default=frozenset(), init=False, repr=False)
    _resources: dict[str, Resource] = field(default_factory=dict, init=False, repr=False)
    _thread: threading.Thread | None = field(default=None, init=False, repr=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False, repr=False)
    _leave: asyncio.Event | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Self:
        # More threads than processors would only wait for each other.
        with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="demo-site") as pool:
            pages = make_resources(self.photographs, self.seed, self.image_bytes_max, pool)
        self.lines, self.expected, self.requests = [], [], {}
        self._resources = {page.path: page.resource for page in pages if page.resource is not None}
        self._forbidden = frozenset(page.path for page in pages if page.forbidden)
        listening: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listening)), name="demo-site", daemon=True
        )
        self._thread.start()
        self.url = f"http://127.0.0.1:{listening.result(timeout=START_SECONDS_MAX)}"
        self._write_lines([page for page in pages if page.outcome is not None])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None and self._leave is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._leave.set)
            self._thread.join(STOP_SECONDS_MAX)

    def expected_counts(self) -> Counter[str]:
        """How many lines must be accepted, and how many must fail with each reason."""
        counts = Counter[str]()
        groups = set()
        for entry in self.expected:
            second = entry.group is not None and entry.group in groups
            counts[Reason.DUPLICATE if second else entry.outcome] += 1
            groups.add(entry.group)
        return counts

    def differences(self, outcomes: Mapping[int, str]) -> list[str]:
        """Compare what became of each line (from 1) with what must, and what was asked for with what might be; one
        sentence per difference.
        """
        found = []
        accepted: Counter[str] = Counter()
        for entry in self.expected:
            outcome = str(outcomes.get(entry.line, "nothing"))
            if entry.group is not None and outcome in {"accepted", Reason.DUPLICATE}:
                accepted[entry.group] += outcome == "accepted"
            elif outcome != entry.outcome:
                found.append(f"line {entry.line} ({entry.text}): {outcome} instead of {entry.outcome}")
        groups = sorted({entry.group for entry in self.expected if entry.group is not None})
        found += [
            f"group {group} of equal bytes: {accepted[group]} accepted instead of 1"
            for group in groups
            if accepted[group] != 1
        ]
        asked = sorted(self._forbidden & self.requests.keys())
        found += [f"{path} was asked for, and its owner forbids that" for path in asked]
        return found

    def _write_lines(self, pages: list[Page]) -> None:
        random.Random(self.seed).shuffle(pages)
        for line, page in enumerate(pages, start=1):
            text = page.line.replace("{site}", self.url).replace(
                "{authority}", self.url.removeprefix("http://")
            )
            self.lines.append(text)
            self.expected.append(Expected(line, text, page.outcome or "accepted", page.group))

    async def _serve(self, listening: "Future[int]") -> None:
        try:
            self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
            runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.2)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            listening.set_result(runner.addresses[0][1])
        except BaseException as error:
            listening.set_exception(error)
            raise
        await self._leave.wait()
        await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        traffic = self.requests.setdefault(request.path, Traffic())
        traffic.count += 1
        resource = self._resources.get(request.path, Resource(404, b"There is nothing here.", "text/plain"))
        if traffic.count <= resource.busy_answers:
            return web.Response(status=503, text="Too busy; try once more.", headers={"Retry-After": "0"})
        headers = {"Content-Type": resource.content_type, **resource.headers}
        response = web.StreamResponse(status=resource.status, headers=headers)
        if resource.endless_bytes == 0:
            response.content_length = len(resource.body)
        await response.prepare(request)
        if request.method != "HEAD":
            # A crawler that has seen enough hangs up, which is no error here.
            with contextlib.suppress(ConnectionError):
                await self._send(response, resource, traffic)
        return response

    async def _send(self, response: web.StreamResponse, resource: Resource, traffic: Traffic) -> None:
        """Send a body at once, trickling, or without end as far as anybody will read."""
        pieces = max(1, resource.trickle_pieces)
        step = -(-len(resource.body) // pieces) or 1
        for start in range(0, len(resource.body), step):
            if start and resource.trickle_pieces:
                await asyncio.sleep(resource.trickle_seconds / pieces)
            piece = resource.body[start : start + step]
            await response.write(piece)
            traffic.sent_bytes += len(piece)
        filler = bytes(PIECE_BYTES)
        while traffic.sent_bytes < resource.endless_bytes:
            await response.write(filler)
            traffic.sent_bytes += len(filler)
        await response.write_eof()
