"""Many candidates at once, each to one outcome."""

import asyncio
import gc

import pytest

from models.outcomes import Candidate, Outcome, Reason, Refused
from worker.transfers import Transfers

CANDIDATES = [Candidate(place, f"http://images.test/{place}", place + 1) for place in range(20)]


def outcome_of(candidate: Candidate) -> Outcome:
    """An outcome without any transfer."""
    return Refused(candidate.position, candidate.url, Reason.DNS, "none")


def places(found: list) -> list[int]:
    """Positions of candidates or outcomes, in order."""
    return sorted(each.position for each in found)


class Gate:
    """A crawl that counts what runs and lets nothing end before it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.started: list[int] = []
        self.running = self.running_max = 0

    async def crawl(self, candidate: Candidate) -> Outcome:
        """Wait for the gate."""
        self.started.append(candidate.position)
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            await self.opened.wait()
        finally:
            self.running -= 1
        return outcome_of(candidate)


def test_every_candidate_gets_one_outcome_and_no_more_run_than_allowed():
    """They start in their order, as many at once as asked for; what is taken meanwhile takes nothing away."""

    async def run() -> None:
        gate = Gate()
        transfers = Transfers(CANDIDATES, gate.crawl, 7)
        transfers.start()
        assert not await transfers.wait(0.01)
        assert (gate.running, len(transfers.unresolved), transfers.take()) == (7, 20, [])
        gate.opened.set()
        assert await transfers.wait(5)
        assert gate.running_max == 7
        assert gate.started == list(range(20))
        assert transfers.unresolved == []
        assert places(transfers.take()) == list(range(20))
        assert transfers.take() == []

    asyncio.run(run())


def test_no_candidates_are_done_at_once():
    """A chunk whose candidates all have outcomes needs no waiting."""

    async def run() -> None:
        transfers = Transfers([], Gate().crawl, 7)
        transfers.start()
        assert await transfers.wait(0)
        await transfers.stop()
        assert transfers.unresolved == []

    asyncio.run(run())


def test_a_stop_leaves_the_others_unresolved():
    """What runs is cancelled and keeps its place among the unresolved; nothing runs afterwards."""

    async def run() -> None:
        gate = Gate()

        async def crawl(candidate: Candidate) -> Outcome:
            return outcome_of(candidate) if candidate.position < 5 else await gate.crawl(candidate)

        transfers = Transfers(CANDIDATES, crawl, 3)
        transfers.start()
        assert not await transfers.wait(0.01)
        await transfers.stop()
        await transfers.stop()
        assert gate.running == 0
        assert places(transfers.take()) == [0, 1, 2, 3, 4]
        assert places(transfers.unresolved) == list(range(5, 20))

    asyncio.run(run())


def test_an_outcome_that_comes_with_the_cancellation_is_kept():
    """A picture that was being stored when the stop came has its outcome, and no other candidate is begun."""

    async def run() -> None:
        started: list[int] = []

        async def crawl(candidate: Candidate) -> Outcome:
            started.append(candidate.position)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if candidate.position == 0:
                    return outcome_of(candidate)
                raise
            raise AssertionError

        transfers = Transfers(CANDIDATES, crawl, 2)
        transfers.start()
        assert not await transfers.wait(0.01)
        await transfers.stop()
        assert places(transfers.take()) == [0]
        assert places(transfers.unresolved) == list(range(1, 20))
        assert started == [0, 1]

    asyncio.run(run())


def test_what_a_crawl_raises_is_raised_once_and_loses_no_outcome():
    """The first error ends the waiting, outcomes before it stay, and nothing complains of the errors beside it."""

    async def run() -> None:
        complaints: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

        async def crawl(candidate: Candidate) -> Outcome:
            if candidate.position in {4, 5, 6}:
                raise OSError(candidate.position)
            return outcome_of(candidate)

        transfers = Transfers(CANDIDATES[:7], crawl, 4)
        transfers.start()
        with pytest.raises(OSError, match=r"^[456]$"):
            await transfers.wait(5)
        await transfers.stop()
        assert places(transfers.take()) == [0, 1, 2, 3]
        assert places(transfers.unresolved) == [4, 5, 6]
        del transfers
        gc.collect()
        assert complaints == []

    asyncio.run(run())
