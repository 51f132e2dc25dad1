"""Hosts that are functions: they are asked as real ones are, and only answer. And what crawls them."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable

from models.outcomes import Candidate, Outcome, Reason, Refused
from worker.body_memory import BodyMemory
from worker.host import Host, Turn
from worker.politeness import Politeness
from worker.transfers import Transfers
from worker.visit import Visit

MEMORY = BodyMemory(1)
numbers = itertools.count()


class Peer:
    """A host of its own name. ``answer`` says what becomes of a turn; ``asked`` is when it was asked, by the loop's
    clock.
    """

    def __init__(self, answer: Callable[["Peer", Turn], Awaitable[float | None]]) -> None:
        self.name = f"host{next(numbers)}-{time.time_ns()}.test"
        self.answer = answer
        self.asked: list[float] = []
        self.first = asyncio.Event()
        self.refusals: list[float] = []
        self.running = self.running_max = 0
        self.shares: list[int] = []
        """Outcomes of each child."""

    def candidates(self, size: int, start: int = 0) -> list[Candidate]:
        """So many URLs of it."""
        return [Candidate(start + place, f"http://{self.name}/{place}", 1) for place in range(size)]


class Crawl:
    """Asks peers by their name."""

    def __init__(self, *peers: Peer) -> None:
        self.peers = {peer.name: peer for peer in peers}

    def begin(self, candidate: Candidate) -> Visit | Outcome:
        """All begin."""
        return Visit(candidate, MEMORY.lease())

    async def crawl_visit(self, visit: Visit, turn: Turn) -> Outcome | float:
        """Ask the peer; a number is when it is asked again."""
        peer = self.peers[visit.target.host]
        peer.asked.append(asyncio.get_running_loop().time())
        peer.first.set()
        peer.running += 1
        peer.running_max = max(peer.running, peer.running_max)
        try:
            again = await peer.answer(peer, turn)
        finally:
            peer.running -= 1
        done = Refused(visit.candidate.position, visit.candidate.url, Reason.CORRUPT, "")
        return done if again is None else again

    def closed(self, visit: Visit, host: Host) -> Outcome:
        """The host's reason."""
        return Refused(visit.candidate.position, visit.candidate.url, Reason(host.why), host.detail)


async def good(_peer: Peer, turn: Turn, seconds: float = 0.01) -> None:
    """An answer after a while."""
    await asyncio.sleep(seconds)
    turn.answered(seconds)


async def crawl(politeness: Politeness, candidates, *peers: Peer, seconds: float = 20) -> list[Outcome]:
    """Crawl candidates to their end, or for so long."""
    transfers = Transfers(candidates, Crawl(*peers), politeness, 1000)
    politeness.join(transfers.wake)
    transfers.start()
    await transfers.wait(seconds)
    await transfers.stop()
    await politeness.leave(transfers.wake)
    return transfers.take()
