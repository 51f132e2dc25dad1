"""Many candidates at once, each to one result, and none at a host that may not be asked now.

A candidate whose host has no turn for it waits here and takes up nothing. Knows nothing of chunks, rows or money.
"""

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Generic, Protocol, TypeVar

from models.outcomes import Candidate
from worker.host import Host, Turn
from worker.politeness import Politeness
from worker.visit import Visit

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Crawler(Protocol[Result_co]):
    """What becomes of candidates: outcomes, or for those that are pages whatever these bring."""

    def begin(self, candidate: Candidate) -> Visit | Result_co:
        """Let a candidate begin; its result if it cannot."""

    async def crawl_visit(self, visit: Visit, turn: Turn) -> Result_co | float:
        """Use one turn of a visit: its result, or in how many seconds it wants another."""

    def closed(self, visit: Visit, host: Host) -> Result_co:
        """The result of a visit whose host nobody asks at present."""


class Transfers(Generic[Result]):
    """Crawls candidates, at most ``at_once`` together, at each host in their order.

    ``outcomes`` collects what is done until ``take`` is called, ``finished`` counts it. The first exception of the
    crawler is raised by ``wait``. A cancelled crawl may still return an outcome: it is kept.
    """

    def __init__(
        self, candidates: Iterable[Candidate], crawler: Crawler[Result], politeness: Politeness, at_once: int
    ) -> None:
        self.outcomes: list[Result] = []
        self.finished = 0
        self.stopping = False
        self._crawler = crawler
        self._politeness = politeness
        self._at_once = at_once
        self._candidates = list(candidates)
        """Those that have not begun, or were broken off."""
        self._queues: dict[str, deque[Visit]] = {}
        self._ready: dict[str, None] = {}
        """Hosts, in the order of their turns, at which a visit waits that may be able to start."""
        self._later: list[tuple[float, int, Visit | str]] = []
        """Heap of (when, number, a visit that is tried again or a host that may be asked then)."""
        self._due: set[str] = set()
        """Hosts in that heap."""
        self._numbers = count()
        self._running: dict[asyncio.Task[Result | float], tuple[Visit, Turn]] = {}
        self._locating: dict[asyncio.Task[None], tuple[Visit, bool]] = {}
        """Lookups under way of what counts as the host of a visit, and whether it has begun before."""
        self._errors: list[BaseException] = []
        self._changed = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, unless it was cancelled before."""
        if self.stopping:
            return
        candidates, self._candidates = self._candidates, []
        for candidate in candidates:
            begun = self._crawler.begin(candidate)
            if isinstance(begun, Visit):
                self._enqueue(begun)
            else:
                self._finish(begun)
        self._pump()

    @property
    def unresolved(self) -> list[Candidate]:
        """Candidates that have no outcome, once stopped."""
        running = [visit for visit, _ in (*self._running.values(), *self._locating.values())]
        waiting = [visit for queue in self._queues.values() for visit in queue]
        later = [what for _, _, what in self._later if isinstance(what, Visit)]
        return [*(visit.candidate for visit in (*running, *waiting, *later)), *self._candidates]

    @property
    def running(self) -> int:
        """Visits that use a turn now."""
        return len(self._running)

    @property
    def stragglers(self) -> int:
        """Visits under way, or to be tried again, when no other waits for its turn; 0 as long as one does."""
        if any(self._queues.values()):
            return 0
        return (
            len(self._running)
            + len(self._locating)
            + sum(isinstance(what, Visit) for _, _, what in self._later)
        )

    def hurry(self) -> None:
        """Once no candidate waits for its first turn any more, all that are left are stragglers."""
        if not (self._locating or any(self._queues.values())):
            later = [what for _, _, what in self._later if isinstance(what, Visit)]
            for visit in (*(visit for visit, _ in self._running.values()), *later):
                visit.straggler = True

    def idle_seconds(self) -> float:
        """For how long nothing can start, at the least, while nothing runs; 0 when that is not known."""
        if self._running or self._ready or self._locating:
            return 0.0
        now = time.monotonic()
        waits = [when - now for when, _, _ in self._later]
        for name, queue in self._queues.items():
            if queue:
                waits.append(self._politeness.host(name).wait_seconds(now) or 0.0)
        return min(waits, default=0.0)

    async def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait at most ``seconds``, until all is done or ``until`` says so; whether all is. Raises what the crawler
        raised.
        """
        await asyncio.sleep(0)  # Others go on, whatever ``until`` says.
        try:
            async with asyncio.timeout(seconds):
                while not (self._errors or self._done() or until()):
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pass
        if self._errors:
            raise self._errors[0]
        return self._done()

    def take(self) -> list[Result]:
        """The outcomes since the last call."""
        taken, self.outcomes = self.outcomes, []
        return taken

    def start_no_more(self) -> None:
        """Let what is being transferred end, and nothing else begin."""
        self._at_once = 0

    def cancel(self) -> None:
        """Start no more and cancel what is being transferred, now; ``stop`` waits for it. Again does nothing."""
        if not self.stopping:
            self.stopping = True
            if self._alarm is not None:
                self._alarm.cancel()
            for name, queue in self._queues.items():
                if queue:  # A host where nobody waits may be forgotten by now, and stays so.
                    self._politeness.host(name).waiting -= len(queue)
            for task in (*self._running, *self._locating):
                task.cancel()

    async def stop(self, seconds: float | None = None) -> None:
        """Cancel, and wait until nothing runs, or for ``seconds``.

        What then still runs stays unresolved: its outcome comes too late for ``take``.
        """
        self.cancel()
        if self._running or self._locating:
            await asyncio.wait((*self._running, *self._locating), timeout=seconds)

    def _done(self) -> bool:
        if self._running or self._locating:
            return False
        return self.stopping or not (self._later or self._ready or any(self._queues.values()))

    def _enqueue(self, visit: Visit, *, first: bool = False) -> None:
        """Let a visit wait at the host where it stands; ``first`` if it has begun before."""
        name = self._politeness.name_of(visit.target)
        if name is None:
            self._locate(visit, first=first)
            return
        queue = self._queues.setdefault(name, deque())
        (queue.appendleft if first else queue.append)(visit)
        host = self._politeness.host(name)
        host.waiting += 1
        self._politeness.wanted(host)
        self._ready[name] = None

    def _locate(self, visit: Visit, *, first: bool) -> None:
        """Learn what counts as the host of a visit; until then it waits for nobody."""
        task = asyncio.ensure_future(self._politeness.locate(visit.target))
        self._locating[task] = visit, first
        task.add_done_callback(self._located)

    def _located(self, task: asyncio.Task[None]) -> None:
        visit, first = self._locating.pop(task)
        if self.stopping or task.cancelled():
            self._candidates.append(visit.candidate)
        elif error := task.exception():
            self._candidates.append(visit.candidate)
            self._errors.append(error)
        else:
            self._enqueue(visit, first=first)
        self._pump()

    def wake(self, names: Iterable[str]) -> None:
        """Something new is known of these hosts, or a turn there is over, one of this chunk's or another's."""
        ready = dict.fromkeys(name for name in names if self._queues.get(name))
        if ready:
            self._ready.update(ready)
            self._pump()

    def _pump(self) -> None:
        """Start what may start."""
        if self.stopping:
            self._changed.set()
            return
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            what = heapq.heappop(self._later)[2]
            if isinstance(what, Visit):
                self._enqueue(what, first=True)
            else:
                self._due.remove(what)
                self._ready[what] = None
        while self._ready and len(self._running) < self._at_once:
            self._try(next(iter(self._ready)), now)
        self._arm()
        self._changed.set()

    def _try(self, name: str, now: float) -> None:
        """Start the next visit of a host that is thought ready, if it is."""
        del self._ready[name]
        queue = self._queues.get(name)
        if not queue:
            self._queues.pop(name, None)
            return
        host = self._politeness.host(name)
        if host.closed(now):
            self._finish(self._crawler.closed(queue.popleft(), host))
        else:
            wait = host.wait_seconds(now)
            if wait and name not in self._due:
                self._due.add(name)
                heapq.heappush(self._later, (now + wait, next(self._numbers), name))
            if wait != 0:
                return
            self._start(queue.popleft(), host)
        host.waiting -= 1
        if queue:
            self._ready[name] = None

    def _start(self, visit: Visit, host: Host) -> None:
        turn = host.begin()
        task = asyncio.ensure_future(self._crawler.crawl_visit(visit, turn))
        self._running[task] = visit, turn
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Result | float]) -> None:
        """One turn of a visit is over: it has its outcome, or wants another turn."""
        visit, turn = self._running.pop(task)
        turn.close()
        if task.cancelled():
            self._candidates.append(visit.candidate)
        elif error := task.exception():
            self._candidates.append(visit.candidate)
            self._errors.append(error)
        else:
            result = task.result()
            if isinstance(result, float):
                self._again(visit, result)
            else:
                self._finish(result)
        if self._queues.get(turn.host_name):
            self._ready[turn.host_name] = None
        self._pump()

    def _again(self, visit: Visit, seconds: float) -> None:
        if self.stopping:
            self._candidates.append(visit.candidate)
        elif seconds > 0:
            heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), visit))
        else:
            self._enqueue(visit, first=True)

    def _finish(self, outcome: Result) -> None:
        self.outcomes.append(outcome)
        self.finished += 1

    def _arm(self) -> None:
        """Come back when the first of those that wait for a time may go on."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._later and not self.stopping:
            seconds = max(0.0, self._later[0][0] - time.monotonic())
            self._alarm = asyncio.get_running_loop().call_later(seconds, self._pump)
