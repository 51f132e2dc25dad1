"""Many candidates at once, each to one outcome. Knows nothing of chunks, rows or money."""

import asyncio
import collections
from collections.abc import Awaitable, Callable, Iterable

from models.outcomes import Candidate, Outcome


class Transfers:
    """Runs ``crawl`` over candidates, at most ``at_once`` together, in their order.

    ``outcomes`` collects what is done until ``take`` is called, ``finished`` counts it. The first exception of
    ``crawl`` is raised by ``wait``. A cancelled ``crawl`` may still return an outcome: it is kept.
    """

    def __init__(
        self,
        candidates: Iterable[Candidate],
        crawl: Callable[[Candidate], Awaitable[Outcome]],
        at_once: int,
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._crawl = crawl
        self._waiting = collections.deque(candidates)
        self._running: dict[int, Candidate] = {}
        self._at_once = at_once
        self._lanes: set[asyncio.Future[None]] = set()
        self.finished = 0
        self.stopping = False

    def start(self) -> None:
        """Begin, unless it was cancelled before."""
        lanes = min(self._at_once, len(self._waiting))
        self._lanes = {asyncio.ensure_future(self._lane()) for _ in range(lanes)}

    @property
    def unresolved(self) -> list[Candidate]:
        """Candidates that have no outcome, once stopped."""
        return [*self._running.values(), *self._waiting]

    async def wait(self, seconds: float) -> bool:
        """Wait at most ``seconds``; whether nothing runs any more. Raises what ``crawl`` raised."""
        if self._lanes:
            done, self._lanes = await asyncio.wait(
                self._lanes, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION
            )
            errors = [
                error for lane in done if not lane.cancelled() and (error := lane.exception()) is not None
            ]
            if errors:
                raise errors[0]
        return not self._lanes

    def take(self) -> list[Outcome]:
        """The outcomes since the last call."""
        taken, self.outcomes = self.outcomes, []
        return taken

    def cancel(self) -> None:
        """Start no more and cancel what is being transferred, now; ``stop`` waits for it. Again does nothing."""
        if not self.stopping:
            self.stopping = True
            for lane in self._lanes:
                lane.cancel()

    async def stop(self, seconds: float | None = None) -> None:
        """Cancel, and wait until nothing runs, or for ``seconds``.

        What then still runs stays unresolved: its outcome comes too late for ``take``.
        """
        self.cancel()
        lanes, self._lanes = self._lanes, set()
        if lanes:
            done, _ = await asyncio.wait(lanes, timeout=seconds)
            for lane in done:
                lane.cancelled() or lane.exception()  # Seen; ``wait`` is what raises.

    async def _lane(self) -> None:
        while self._waiting and not self.stopping:
            candidate = self._waiting.popleft()
            self._running[candidate.position] = candidate
            outcome = await self._crawl(candidate)
            self.outcomes.append(outcome)  # Not in one line: ``take`` may give away the list meanwhile.
            del self._running[candidate.position]
            self.finished += 1
