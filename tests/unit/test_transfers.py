"""Many candidates at once, each to one outcome, and none at a host that has no turn for it."""

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from models.outcomes import Candidate, Outcome, Reason, Refused
from models.settings import read_settings
from worker.body_memory import BodyMemory
from worker.host import Host, Turn
from worker.politeness import Politeness
from worker.transfers import Transfers
from worker.visit import Visit

MEMORY = BodyMemory(1)
CANDIDATES = [Candidate(place, f"http://images.test/{place}", place + 1) for place in range(20)]
FOREVER = 1e9


def outcome_of(candidate: Candidate) -> Outcome:
    """An outcome without any transfer."""
    return Refused(candidate.position, candidate.url, Reason.DNS, "none")


def places(found: list) -> list[int]:
    """Positions of candidates or outcomes, in order."""
    return sorted(each.position for each in found)


class Crawl:
    """Crawls by a function of the candidate. URLs without a scheme end before they begin."""

    def __init__(self, crawl: Callable[[Candidate], Awaitable[Outcome | float]]) -> None:
        self.crawl = crawl

    def begin(self, candidate: Candidate) -> Visit | Outcome:
        """Begin what has a URL."""
        if "://" not in candidate.url:
            return outcome_of(candidate)
        return Visit(candidate, MEMORY.lease())

    async def crawl_visit(self, visit: Visit, turn: Turn) -> Outcome | float:
        """Crawl one candidate."""
        result = await self.crawl(visit.candidate)
        turn.answered(0.01)
        return result

    def closed(self, visit: Visit, host: Host) -> Outcome:
        """A dead host's outcome names it."""
        return Refused(visit.candidate.position, visit.candidate.url, Reason(host.why), host.name)


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


def polite(**slots: int) -> Politeness:
    """What is known of hosts, without anybody who is asked: so many slots at each, ``images`` has plenty."""
    politeness = Politeness(read_settings(), Redis(), "child")
    for name, number in ({"images": 1000} | slots).items():
        host = politeness.host(f"{name}.test")
        host.slots, host.asked_at = number, time.monotonic()
    return politeness


def transfers_of(candidates, crawl, at_once, politeness=None) -> Transfers:
    """Transfers by a function of the candidate."""
    return Transfers(candidates, Crawl(crawl), politeness or polite(), at_once)


def test_every_candidate_gets_one_outcome_and_no_more_run_than_allowed():
    """They start in their order, as many at once as asked for; what is taken meanwhile takes nothing away."""

    async def run() -> None:
        gate = Gate()
        transfers = transfers_of(CANDIDATES, gate.crawl, 7)
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
    """A chunk whose candidates all have outcomes, or cannot begin, needs no waiting."""

    async def run() -> None:
        for candidates in ([], [Candidate(0, "no URL", 1)]):
            transfers = transfers_of(candidates, Gate().crawl, 7)
            transfers.start()
            assert await transfers.wait(0)
            await transfers.stop()
            assert transfers.unresolved == []
            assert len(transfers.take()) == len(candidates)

    asyncio.run(run())


def test_a_stop_leaves_the_others_unresolved():
    """What runs is cancelled and keeps its place among the unresolved; nothing runs afterwards."""

    async def run() -> None:
        gate = Gate()

        async def crawl(candidate: Candidate) -> Outcome:
            return outcome_of(candidate) if candidate.position < 5 else await gate.crawl(candidate)

        transfers = transfers_of(CANDIDATES, crawl, 3)
        transfers.start()
        assert not await transfers.wait(0.01)
        await transfers.stop()
        await transfers.stop()
        assert gate.running == 0
        assert places(transfers.take()) == [0, 1, 2, 3, 4]
        assert places(transfers.unresolved) == list(range(5, 20))

    asyncio.run(run())


def test_a_stop_before_anything_ran_gives_every_turn_back():
    """Tasks that are cancelled before their first step leave no turn behind."""

    async def run() -> None:
        politeness = polite()
        transfers = transfers_of(CANDIDATES, Gate().crawl, 7, politeness)
        transfers.start()
        await transfers.stop()
        assert places(transfers.unresolved) == list(range(20))
        assert politeness.host("images.test").busy == 0

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

        transfers = transfers_of(CANDIDATES, crawl, 2)
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

        transfers = transfers_of(CANDIDATES[:7], crawl, 4)
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


def test_a_host_without_a_turn_holds_up_no_other():
    """One host has two slots and fills them; all of another host's candidates are done meanwhile."""

    async def run() -> None:
        gate = Gate()
        slow = [Candidate(place, f"http://slow.test/{place}", place + 1) for place in range(20, 40)]

        async def crawl(candidate: Candidate) -> Outcome:
            return await gate.crawl(candidate) if "slow" in candidate.url else outcome_of(candidate)

        transfers = transfers_of([*slow, *CANDIDATES], crawl, 30, polite(slow=2))
        transfers.start()
        assert not await transfers.wait(0.05)
        assert places(transfers.take()) == list(range(20))
        assert (gate.running, gate.started) == (2, [20, 21])
        gate.opened.set()
        assert await transfers.wait(5)
        assert (gate.running_max, gate.started) == (2, list(range(20, 40)))

    asyncio.run(run())


def test_a_visit_that_wants_another_turn_waits_without_one():
    """It is tried again no earlier than it wants, and others run meanwhile."""

    async def run() -> None:
        began: list[tuple[int, float]] = []

        async def crawl(candidate: Candidate) -> Outcome | float:
            again = candidate.position == 0 and not any(place == 0 for place, _ in began)
            began.append((candidate.position, time.monotonic()))
            return 0.05 if again else outcome_of(candidate)

        transfers = transfers_of(CANDIDATES, crawl, 1)
        transfers.start()
        assert await transfers.wait(5)
        times = [when for place, when in began if place == 0]
        assert len(times) == 2
        assert times[1] - times[0] >= 0.05
        assert began[-1][0] == 0
        assert places(transfers.take()) == list(range(20))

    asyncio.run(run())


def test_a_closed_host_ends_all_its_candidates_at_once():
    """None of them is asked for, and each has the host's reason; others go on."""

    async def run() -> None:
        politeness = polite(dead=8)
        dead = politeness.host("dead.test")
        dead.closed_until, dead.why = time.monotonic() + 60, "connect"
        asked: list[str] = []

        async def crawl(candidate: Candidate) -> Outcome:
            asked.append(candidate.url)
            return outcome_of(candidate)

        many = [Candidate(place, f"http://dead.test/{place}", place + 1) for place in range(20, 2020)]
        transfers = transfers_of([*many, *CANDIDATES], crawl, 10, politeness)
        transfers.start()
        assert await transfers.wait(5)
        outcomes = transfers.take()
        assert places(outcomes) == list(range(2020))
        assert sum(outcome.reason is Reason.CONNECT for outcome in outcomes) == 2000
        assert not any("dead" in url for url in asked)

    asyncio.run(run())


def test_idle_is_how_long_nothing_can_start():
    """0 while something runs or is not known; else the first of what hosts and visits wait for."""

    async def run() -> None:
        politeness = polite(far=1, near=1, unknown=0)
        now = time.monotonic()
        politeness.host("far.test").not_before = now + 100
        politeness.host("near.test").not_before = now + 50
        far, near, unknown = (
            Candidate(place, f"http://{name}.test/", 1)
            for place, name in enumerate(("far", "near", "unknown"))
        )

        async def crawl(candidate: Candidate) -> Outcome:
            return outcome_of(candidate)

        for candidates, seconds in (([far], 100), ([far, near], 50), ([far, near, unknown], 0)):
            transfers = transfers_of(candidates, crawl, 10, politeness)
            transfers.start()
            assert not await transfers.wait(0.01)
            assert seconds - 2 < transfers.idle_seconds() <= seconds
            await transfers.stop()
            assert places(transfers.unresolved) == places(candidates)

    asyncio.run(run())


def test_who_is_left_when_nobody_waits_is_a_straggler():
    """Not before: as long as others wait for a turn, a long failure may be tried again."""

    async def run() -> None:
        visits: list[Visit] = []

        class Stragglers(Crawl):
            async def crawl_visit(self, visit: Visit, turn: Turn) -> Outcome | float:
                visits.append(visit)
                return await super().crawl_visit(visit, turn)

        gate = Gate()
        transfers = Transfers(CANDIDATES[:3], Stragglers(gate.crawl), polite(), 2)
        transfers.start()
        assert not await transfers.wait(0.01)
        transfers.hurry()
        assert [visit.straggler for visit in visits] == [False, False]
        gate.opened.set()
        gate.opened = asyncio.Event()
        while len(visits) < 3:  # noqa: ASYNC110 - a step of the loop, no time.
            await asyncio.sleep(0)
        transfers.hurry()
        assert visits[2].straggler
        gate.opened.set()
        assert await transfers.wait(5)

    asyncio.run(run())
