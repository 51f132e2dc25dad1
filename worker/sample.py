"""Some candidates crawled as a chunk's are, to tell what a job may expect: by the same transport, at the same
turns, with the same respect for owners. No row is written; where it stores images is for the caller to throw away.
"""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from models.opt_outs import OptOut
from models.outcomes import Candidate, Outcome, Verification
from worker.candidate import PlainFetcher, begin_visit, closed_host, crawl_visit
from worker.careful import CarefulDecoder
from worker.child import Child
from worker.crawl import STOP_SECONDS_MAX, TICK_SECONDS
from worker.errors import PictureError
from worker.host import Host, Turn
from worker.picture import Picture
from worker.transfers import Transfers
from worker.visit import Visit


@dataclass(frozen=True, slots=True)
class Sampled:
    """What became of the candidates of a sample in ``seconds``.

    ``unanswered`` ones were asked for and had no outcome in time; for ``unasked`` ones there was no turn. A child
    that has many such would need ``slot_seconds`` for these; the host that needs longest, ``slowest_host``, would
    need ``host_seconds`` however many children asked it.
    """

    outcomes: Sequence[Outcome]
    unanswered: Sequence[Candidate]
    unasked: Sequence[Candidate]
    seconds: float
    slot_seconds: float
    slowest_host: str | None
    host_seconds: float


class TimedDecoder(CarefulDecoder):
    """Decodes in a helper, for a command must outlive what kills or stalls a decoder; knows how long that took."""

    seconds = 0.0

    def start(self) -> None:
        """Let the helper be there before anything is timed. Raises HelperError."""
        with contextlib.suppress(PictureError):
            super().inspect(b"")

    def inspect(self, body: bytes) -> Picture:
        """Inspect ``body``. Raises PictureError or HelperError."""
        began = time.monotonic()
        try:
            return super().inspect(body)
        finally:
            self.seconds += time.monotonic() - began


class SampleRun:
    """One sample. The candidates of each host are asked for in the order in which they are given: shuffle them."""

    def __init__(
        self,
        child: Child,
        candidates: Sequence[Candidate],
        store_url: str,
        *,
        verification: Verification = Verification.FULL,
        ignored_opt_outs: Collection[OptOut] = (),
    ) -> None:
        self.child = child
        self.store = child.store(store_url)
        self.decoder = TimedDecoder(child.settings, verification, child.watchdog)
        obeyed = child.opt_outs.obeyed(ignored_opt_outs)
        self.fetcher = PlainFetcher(child.transport, child.settings, child.opt_outs, obeyed)
        self.transfers: Transfers[Outcome] = Transfers(
            candidates, self, child.politeness, child.settings.transfers
        )
        self.asked: dict[int, str] = {}
        """The hosts at which candidates were asked for, by position."""
        self.requests: Counter[str] = Counter()
        self.pauses: dict[str, float] = {}
        """How far apart each host wants its requests, as it was known last."""

    async def run(
        self,
        seconds_max: float,
        stop: Callable[[], bool] = lambda: False,
        tell: Callable[[int], None] = lambda _: None,
    ) -> Sampled:
        """Crawl until all have an outcome, ``seconds_max`` are over, or ``stop`` says so; ``tell`` hears how many
        have one. Raises StoreError, or HelperError when no decoder can be started.
        """
        await self.child.in_decoder(self.decoder.start)
        began, processor = time.monotonic(), time.process_time()
        keeper = self.child.politeness.join(self.transfers.wake)
        try:
            self.transfers.start()
            while not (await self.transfers.wait(TICK_SECONDS) or stop()):
                if keeper.done():
                    keeper.result()
                if time.monotonic() >= began + seconds_max:
                    break
                self.transfers.hurry()
                tell(self.transfers.finished)
            await self.transfers.stop(STOP_SECONDS_MAX)
            tell(self.transfers.finished)
            return self._sampled(time.monotonic() - began, time.process_time() - processor)
        finally:
            self.decoder.close()
            await self.transfers.stop()
            await self.child.politeness.leave(self.transfers.wake)

    def begin(self, candidate: Candidate) -> Visit | Outcome:
        """A candidate's way begins, or ends already because of its URL."""
        return begin_visit(self.child, candidate)

    async def crawl_visit(self, visit: Visit, turn: Turn) -> Outcome | float:
        """One turn of a visit: its outcome, or in how many seconds it wants another."""
        name, seconds = turn.host_name, visit.seconds
        try:
            return await crawl_visit(self.child, self.store, visit, turn, self.decoder, self.fetcher)
        except asyncio.CancelledError:
            self.asked[visit.candidate.position] = name
            raise
        finally:
            if visit.seconds > seconds:  # Not so when its owner had us wait.
                self.asked[visit.candidate.position] = name
                self.requests[name] += 1
            host = self.child.politeness.host(name)
            self.pauses[name] = host.pause_seconds if host.paced else 0.0

    def closed(self, visit: Visit, host: Host) -> Outcome:
        """The outcome of a candidate whose host nobody asks at present."""
        return closed_host(visit, host)

    def _sampled(self, seconds: float, processor_seconds: float) -> Sampled:
        outcomes = self.transfers.take()
        unresolved = self.transfers.unresolved
        unanswered = [candidate for candidate in unresolved if candidate.position in self.asked]
        unasked = [candidate for candidate in unresolved if candidate.position not in self.asked]
        busy: defaultdict[str, float] = defaultdict(float)
        for outcome in outcomes:
            if name := self.asked.get(outcome.position):
                busy[name] += (outcome.elapsed_ms or 0) / 1000
        for candidate in unanswered:
            busy[self.asked[candidate.position]] += seconds
        settings = self.child.settings
        hosts = {
            name: max(self.requests[name] * pause, busy[name] / settings.host_transfers)
            for name, pause in self.pauses.items()
        }
        slowest = max(hosts, key=lambda name: hosts[name], default=None)
        return Sampled(
            outcomes=outcomes,
            unanswered=unanswered,
            unasked=unasked,
            seconds=seconds,
            slot_seconds=max(
                processor_seconds + self.decoder.seconds, sum(busy.values()) / settings.transfers
            ),
            slowest_host=slowest,
            host_seconds=0.0 if slowest is None else hosts[slowest],
        )
