"""What a host bears is found and kept to, by one child and by several together; minutes pass in virtual time."""

import asyncio
import itertools

import pytest

from models.outcomes import Reason
from models.settings import Settings, read_settings
from tests.support.peers import Peer, crawl
from tests.support.virtual_time import VirtualRedis, run
from worker.host import Turn
from worker.politeness import Politeness

BURST_SECONDS = 0.5
HEARD_SECONDS = 0.5
"""After so long all children know of a refusal, and nobody starts any more."""


class Limited(Peer):
    """Lets so many requests a second through, half a second's worth at once, and refuses others."""

    def __init__(self, rate: float, wait_seconds: float | None = 1.0, latency_seconds: float = 0.02) -> None:
        super().__init__(self.limit)
        self.rate, self.tokens = rate, max(1.0, rate * BURST_SECONDS)
        self.filled_at = 0.0
        self.wait_seconds, self.latency_seconds = wait_seconds, latency_seconds
        self.answered: list[float] = []

    async def limit(self, _peer: Peer, turn: Turn) -> float | None:
        """Take a token, if there is one."""
        now = asyncio.get_running_loop().time()
        most = max(1.0, self.rate * BURST_SECONDS)
        self.tokens = min(most, self.tokens + (now - self.filled_at) * self.rate)
        self.filled_at = now
        if self.tokens < 1:
            self.refusals.append(now)
            turn.refused(self.wait_seconds, "the server answered 429")
            return self.wait_seconds or 0.0
        self.tokens -= 1
        self.answered.append(now)
        await asyncio.sleep(self.latency_seconds)
        turn.answered(self.latency_seconds)
        return None


@pytest.fixture
def settings() -> Settings:
    """As they are by default."""
    return read_settings()


async def visit(redis: VirtualRedis, settings: Settings, peer: Peer, children: int, seconds: float) -> float:
    """Let so many children crawl a host that has more than they can get in so long; when they began."""
    began = asyncio.get_running_loop().time()
    crawls = []
    for number in range(children):
        politeness = Politeness(settings, redis, child=f"{peer.name}/{number}")
        candidates = peer.candidates(5000, 5000 * number)
        crawls.append(asyncio.ensure_future(crawl(politeness, candidates, peer, seconds=seconds)))
        await asyncio.sleep(0.07)
    peer.shares = [len(outcomes) for outcomes in await asyncio.gather(*crawls)]
    return began


@pytest.mark.parametrize(
    ("rate", "children", "seconds", "wait_seconds", "latency_seconds"),
    [
        (5, 1, 60, 1.0, 0.02),
        (5, 2, 60, 1.0, 0.02),
        (40, 1, 30, 1.0, 0.02),
        (40, 2, 30, 1.0, 0.02),
        (40, 2, 30, None, 0.02),
        (40, 2, 30, 1.0, 0.15),
        (200, 2, 20, 1.0, 0.02),
    ],
)
def test_a_host_with_a_limit_is_used_nearly_to_it(
    services, monkeypatch, settings, rate, children, seconds, wait_seconds, latency_seconds
) -> None:
    """By as many children as there are, with few refusals; and what it asks for is waited for by all of them."""
    peer = Limited(rate, wait_seconds, latency_seconds)
    began = run(
        monkeypatch, services.redis_url, lambda redis: visit(redis, settings, peer, children, seconds)
    )
    learned = [when for when in peer.answered if began + 10 <= when < began + seconds]
    assert 0.8 < len(learned) / rate / (seconds - 10) < 1.02
    assert len([when for when in peer.answered if when < began + seconds]) > 0.75 * rate * seconds
    assert len(peer.refusals) < 0.08 * len(peer.asked)
    assert rate < 40 or min(peer.shares) > 0.75 * sum(peer.shares) / children
    for refused in peer.refusals if wait_seconds else peer.refusals[:1]:
        until = refused + (wait_seconds or 1.0)
        assert not [when for when in peer.asked if refused + HEARD_SECONDS < when < until]


def test_what_a_host_asks_of_one_child_all_heed(services, monkeypatch, settings) -> None:
    """After a Retry-After nobody starts before its time, to the millisecond."""

    async def busy_once(peer: Peer, turn: Turn) -> float | None:
        if len(peer.asked) == 1:
            turn.refused(1.9876543, "the server answered 429")
            return 1.9876543
        turn.answered(0.02)
        return None

    peer = Peer(busy_once)

    async def visit_both(redis: VirtualRedis) -> None:
        one, two = (Politeness(settings, redis, child=name) for name in ("one", "two"))
        first = asyncio.ensure_future(crawl(one, peer.candidates(1), peer))
        await asyncio.sleep(0.5)  # One child's news are the other's by then.
        assert len(await crawl(two, peer.candidates(20, 10), peer)) == 20
        assert len(await first) == 1

    run(monkeypatch, services.redis_url, visit_both)
    assert min(peer.asked[1:]) >= peer.asked[0] + 1.9876


def test_a_host_that_grows_is_used_more_soon(services, monkeypatch, settings) -> None:
    """Its edge is remembered and not believed in for ever."""
    peer = Limited(10)

    async def grow(redis: VirtualRedis) -> float:
        asyncio.get_running_loop().call_later(20, lambda: setattr(peer, "rate", 60))
        return await visit(redis, settings, peer, 1, 70)

    began = run(monkeypatch, services.redis_url, grow)
    assert sum(began + 60 <= when < began + 70 for when in peer.answered) > 0.75 * 60 * 10


def test_a_host_that_becomes_slow_is_asked_less_at_once(services, monkeypatch, settings) -> None:
    """Until it answers as it used to; no answer is lost by that."""
    slow = (1015.0, 1040.0)

    async def answer(peer: Peer, turn: Turn) -> None:
        now = asyncio.get_running_loop().time()
        seconds = 2.0 if slow[0] < now < slow[1] else 0.1
        at_once.append((now, peer.running))
        await asyncio.sleep(seconds)
        turn.answered(seconds)

    at_once: list[tuple[float, int]] = []
    peer = Peer(answer)
    run(monkeypatch, services.redis_url, lambda redis: visit(redis, settings, peer, 2, 60))
    most = {
        second: max((running for when, running in at_once if second <= when < second + 5), default=0)
        for second in (1005, 1032, 1055)
    }
    assert most[1005] == most[1055] == settings.host_transfers
    assert most[1032] <= 3


def test_starts_that_were_not_used_are_not_made_up_for(services, monkeypatch, settings) -> None:
    """A host that was silent for a while is not asked in one burst for what it was spared."""
    silent = (1010.0, 1020.0)

    async def answer(_peer: Peer, turn: Turn) -> None:
        now = asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.02, silent[1] - now) if silent[0] < now else 0.02)
        turn.answered(0.02)

    peer = Peer(answer)
    paced = settings.model_copy(update={"host_rate": 20})
    run(monkeypatch, services.redis_url, lambda redis: visit(redis, paced, peer, 1, 30))
    after = [when for when in peer.asked if when >= silent[1]]
    assert len(after) > 100
    assert max(sum(first <= when < first + 1 for when in after) for first in after) < 36


def test_a_dead_host_does_not_teach_a_pace(services, monkeypatch, settings) -> None:
    """Silence closes a host; when it is back, it is asked as before."""
    back_at = 1070.0

    async def answer(_peer: Peer, turn: Turn) -> float | None:
        if asyncio.get_running_loop().time() < back_at:
            turn.failed(Reason.CONNECT, "refused")
            return 1.0
        await asyncio.sleep(0.02)
        turn.answered(0.02)
        return None

    peer = Peer(answer)

    async def twice(redis: VirtualRedis) -> None:
        await visit(redis, settings, peer, 1, 5)
        await asyncio.sleep(70)
        await visit(redis, settings, peer, 1, 2)

    run(monkeypatch, services.redis_url, twice)
    after = [when for when in peer.asked if when > back_at]
    assert len(after) > 200
    assert max(later - earlier for earlier, later in itertools.pairwise(after[20:])) < 0.5
