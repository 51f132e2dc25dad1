"""When a host may be asked, by several children that share one Redis. Hosts are functions, which only answer."""

import asyncio
import itertools
import time
from collections.abc import Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from models.outcomes import Reason
from models.settings import Settings, read_settings
from tests.support.hostile_server import in_loop
from tests.support.peers import Crawl, Peer, crawl, good
from worker import politeness as rules
from worker.host import Turn
from worker.politeness import Lookup, Politeness, look_nowhere
from worker.shared import close_redis, open_redis
from worker.transfers import Transfers


@pytest.fixture
def settings(services, database_url) -> Settings:
    """Settings on the services of the tests."""
    return read_settings(database_url=database_url, redis_url=services.redis_url)


@asynccontextmanager
async def child(settings: Settings, name: str = "one", look_up: Lookup = look_nowhere):
    """One child's politeness, kept."""
    redis = open_redis(settings)
    politeness = Politeness(settings, redis, name, look_up)
    politeness.join(ignore)
    try:
        yield politeness
    finally:
        await politeness.leave(ignore)
        await close_redis(redis)


def ignore(_: Iterable[str]) -> None:
    """Nobody waits for hosts."""


@in_loop
async def test_children_share_the_transfers_of_a_host(settings) -> None:
    """Never more than the limit at once, however many children want it, and each has its share."""
    peer = Peer(partial(good, seconds=0.02))
    settings = settings.model_copy(update={"host_transfers": 6})
    async with AsyncExitStack() as stack:
        children = [await stack.enter_async_context(child(settings, f"{name}")) for name in range(3)]
        done = await asyncio.gather(
            *(crawl(politeness, peer.candidates(1000), peer, seconds=3) for politeness in children)
        )
    assert peer.running_max <= 6
    assert min(len(outcomes) for outcomes in done) > 60


@in_loop
async def test_a_child_takes_no_more_slots_than_it_can_use(settings) -> None:
    """One that comes first, with very many candidates of a host, leaves the rest to the next one's first report."""
    peer = Peer(good)
    settings = settings.model_copy(update={"host_transfers": 6, "transfers": 4})
    slots = []
    async with child(settings, "one") as one, child(settings, "two") as two:
        for politeness in (one, two):
            host = politeness.host(peer.name)
            host.waiting = 1000
            politeness.wanted(host)
            async with asyncio.timeout(5):
                while not host.asked_at:  # noqa: ASYNC110 - nothing tells when a child has asked.
                    await asyncio.sleep(0.01)
            slots.append(host.slots)
    assert slots == [4, 2]


@in_loop
async def test_children_share_the_rate_of_a_host(settings) -> None:
    """Two children together start no more often than the operator allows, and not much less."""
    peer = Peer(good)
    settings = settings.model_copy(update={"host_rate": 40})
    async with child(settings, "one") as one, child(settings, "two") as two:
        began = time.monotonic()
        await asyncio.gather(*(crawl(each, peer.candidates(1000), peer, seconds=3) for each in (one, two)))
        seconds = time.monotonic() - began
    assert 0.8 * 40 * 3 < len(peer.asked) <= 40 * seconds + 1
    for first, last in zip(peer.asked, peer.asked[10:], strict=False):
        assert last - first > 0.6 * 10 / 40


@in_loop
async def test_a_dead_host_is_given_up_by_all(settings) -> None:
    """Ten thousand URLs of it end after a few tries, in another child without any; one try later finds it back."""
    dead = True

    async def answer(peer: Peer, turn: Turn) -> float | None:
        if dead:
            await asyncio.sleep(0.05)
            turn.failed(Reason.CONNECT, "refused")
            return 0.1
        return await good(peer, turn)

    peer = Peer(answer)
    began = time.monotonic()
    async with child(settings, "one") as one, child(settings, "two") as two:
        outcomes = await crawl(one, peer.candidates(10_000), peer)
        assert len(outcomes) == 10_000
        assert {outcome.reason for outcome in outcomes} == {Reason.CONNECT}
        tries = len(peer.asked)
        assert tries < 40
        assert len(await crawl(two, peer.candidates(1000), peer)) == 1000
        assert len(peer.asked) == tries
        assert time.monotonic() - began < 20  # Each by itself would take a minute.
        dead = False
        redis = open_redis(settings)
        await redis.hset(rules.KEY + peer.name, "closed", "1")
        await close_redis(redis)
    async with child(settings, "three") as three:
        assert {outcome.reason for outcome in await crawl(three, peer.candidates(50), peer)} == {
            Reason.CORRUPT
        }
        assert sum(when <= peer.asked[tries] + 0.01 for when in peer.asked[tries:]) == 1


@in_loop
async def test_a_host_that_only_refuses_is_not_waited_for_for_ever(settings) -> None:
    """After the patience that the operator has, all its candidates are rate_limited."""

    async def refuse(_peer: Peer, turn: Turn) -> float | None:
        turn.refused(0.2, "the server answered 429")
        return 0.2

    peer = Peer(refuse)
    async with child(settings.model_copy(update={"host_patience_seconds": 1})) as one:
        outcomes = await crawl(one, peer.candidates(500), peer)
    assert {(outcome.reason, outcome.detail) for outcome in outcomes} == {
        (Reason.RATE_LIMITED, "the server answered 429")
    }
    assert len(outcomes) == 500


@in_loop
async def test_a_delay_of_robots_txt_spaces_the_requests_of_all(settings) -> None:
    """What one child has read, all keep to."""
    peer = Peer(good)
    async with child(settings, "one") as one, child(settings, "two") as two:
        assert one.host(peer.name).heed_delay(0.2)
        assert not one.host(peer.name).heed_delay(0.2)
        first = asyncio.ensure_future(crawl(one, peer.candidates(5), peer))
        await peer.first.wait()
        await crawl(two, peer.candidates(5), peer)
        await first
    asked = peer.asked
    assert len(asked) == 10
    # One that comes late, on a busy machine, does not put off those of the other child.
    assert min(later - earlier for earlier, later in itertools.pairwise(asked)) > 0.1
    assert asked[-1] - asked[0] > 9 * 0.2 - 0.1


@in_loop
async def test_slots_of_a_lost_child_are_free_after_its_lease(settings, monkeypatch) -> None:
    """A child that was killed tells nothing: others wait for its lease and no longer."""
    monkeypatch.setattr(rules, "LEASE_SECONDS", 1.5)
    peer = Peer(good)
    settings = settings.model_copy(update={"host_transfers": 2})
    redis = open_redis(settings)
    lost = Politeness(settings, redis, child="lost")
    host = lost.host(peer.name)
    host.waiting = 100
    await lost._ask([host])
    assert host.slots == 2
    async with child(settings, "other") as other:
        began = time.monotonic()
        assert len(await crawl(other, peer.candidates(3), peer)) == 3
        assert 1 < time.monotonic() - began < 4
    await close_redis(redis)


@in_loop
async def test_without_redis_a_child_is_careful(settings, database_url) -> None:
    """One at a time and four a second at each host; others of its hosts are not held up."""
    away = read_settings(database_url=database_url, redis_url="redis://127.0.0.1:1")
    peers = [Peer(good) for _ in range(3)]
    async with child(away) as alone:
        candidates = [
            candidate for place, peer in enumerate(peers) for candidate in peer.candidates(4, 10 * place)
        ]
        began = time.monotonic()
        assert len(await crawl(alone, candidates, *peers)) == 12
        assert time.monotonic() - began < 4
    for peer in peers:
        assert peer.running_max == 1
        assert min(later - earlier for earlier, later in itertools.pairwise(peer.asked)) > 0.2


@in_loop
async def test_a_request_costs_far_less_than_a_round_trip(settings) -> None:
    """A thousand requests at one host and at a thousand hosts: a few dozen scripts."""
    redis = open_redis(settings)

    async def scripts() -> int:
        stats = await redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("evalsha", "eval"))

    one = Peer(partial(good, seconds=0.001))
    many = [Peer(partial(good, seconds=0.001)) for _ in range(1000)]
    async with child(settings.model_copy(update={"host_transfers": 64})) as polite:
        before = await scripts()
        assert len(await crawl(polite, one.candidates(1000), one)) == 1000
        lists = [candidate for place, peer in enumerate(many) for candidate in peer.candidates(1, place)]
        assert len(await crawl(polite, lists, *many)) == 1000
    calls = await scripts() - before
    await close_redis(redis)
    assert calls < 100


@in_loop
async def test_hosts_that_are_done_are_forgotten_beside_a_straggler(settings) -> None:
    """A child that always has something aside would otherwise know ever more hosts."""

    async def forever(*_: object) -> None:
        await asyncio.Event().wait()

    async with child(settings) as politeness:
        slow = Peer(forever)
        aside = Transfers(slow.candidates(1), Crawl(slow), politeness, 1000)
        politeness.join(aside.wake)
        aside.start()
        peers = [Peer(good) for _ in range(50)]
        candidates = [candidate for peer in peers for candidate in peer.candidates(1)]
        await crawl(politeness, candidates, *peers)
        async with asyncio.timeout(10):
            while len(politeness._hosts) > 1:  # noqa: ASYNC110 - it is asked about, tick by tick.
                await asyncio.sleep(rules.TICK_SECONDS)
        await asyncio.sleep(3 * rules.TICK_SECONDS)
        assert len(politeness._hosts) == 1
        await aside.stop()
        await politeness.leave(aside.wake)


@in_loop
async def test_a_chunk_may_begin_while_the_last_one_says_farewell(settings) -> None:
    """What the new one has learned of a host is not forgotten with the old one's."""
    redis = open_redis(settings)
    politeness, peer = Politeness(settings, redis, child="one"), Peer(good)
    first, second = (Transfers(peer.candidates(30), Crawl(peer), politeness, 1000) for _ in range(2))
    politeness.join(first.wake)
    first.start()
    assert await first.wait(20)
    await first.stop()
    leaving = asyncio.ensure_future(politeness.leave(first.wake))
    while politeness._hosts:  # noqa: ASYNC110 - a step of the loop, no time.
        await asyncio.sleep(0)
    politeness.join(second.wake)
    second.start()
    await leaving
    assert await second.wait(20)
    await second.stop()
    await politeness.leave(second.wake)
    await close_redis(redis)


@in_loop
async def test_the_last_chunk_gives_back_what_any_of_them_held(settings) -> None:
    """Slots of hosts that an earlier chunk asked are free for other children at once, too."""

    async def forever(*_: object) -> None:
        await asyncio.Event().wait()

    redis = open_redis(settings)
    politeness = Politeness(settings, redis, child="one")
    peers = [Peer(forever), Peer(forever)]
    chunks = [Transfers(peer.candidates(3), Crawl(peer), politeness, 1000) for peer in peers]
    for chunk in chunks:
        politeness.join(chunk.wake)
        chunk.start()
    for peer in peers:
        await peer.first.wait()
        assert await redis.hexists(rules.KEY + peer.name, "c:one")
    for chunk in chunks:
        await chunk.stop()
        await politeness.leave(chunk.wake)
    for peer in peers:
        assert not await redis.hexists(rules.KEY + peer.name, "c:one")
    await close_redis(redis)


@in_loop
async def test_what_is_cancelled_before_it_begins_wants_nothing(settings) -> None:
    """Its candidates wait at no host."""
    async with child(settings) as politeness:
        peer = Peer(good)
        transfers = Transfers(peer.candidates(30), Crawl(peer), politeness, 1000)
        politeness.join(transfers.wake)
        transfers.cancel()
        transfers.start()
        assert politeness._hosts == {}
        assert len(transfers.unresolved) == 30
        await politeness.leave(transfers.wake)


@in_loop
async def test_a_turn_that_is_over_is_free_for_every_chunk_of_the_child(settings) -> None:
    """Of a host with one slot, another chunk's candidate begins at once, while the first one's body is decoded."""
    over, decoded = asyncio.Event(), asyncio.Event()

    async def answer(_peer: Peer, turn: Turn) -> None:
        await over.wait()
        turn.answered(0.01)
        await decoded.wait()

    peer = Peer(answer)
    async with child(settings.model_copy(update={"host_transfers": 1})) as politeness:
        chunks = [Transfers(peer.candidates(1, place), Crawl(peer), politeness, 1000) for place in range(2)]
        for chunk in chunks:
            politeness.join(chunk.wake)
            chunk.start()
        await peer.first.wait()
        assert [chunk.running for chunk in chunks] == [1, 0]
        over.set()
        for _ in range(5):  # Steps of the loop, no time: nobody can have asked Redis.
            await asyncio.sleep(0)
        assert [chunk.running for chunk in chunks] == [1, 1]
        decoded.set()
        for chunk in chunks:
            assert await chunk.wait(20)
            await chunk.stop()
            await politeness.leave(chunk.wake)


@in_loop
async def test_sites_at_one_address_may_count_as_one_host(settings) -> None:
    """Whatever their names are, and however many; a name without an address counts by itself."""
    peers = [Peer(good) for _ in range(20)]
    nowhere = Peer(good)
    lookups = []

    async def look_up(name: str, _port: int) -> list[str]:
        lookups.append(name)
        await asyncio.sleep(0.01)
        if name == nowhere.name:
            raise OSError
        return [f"2001:db8::{len(lookups)}", "192.0.2.9", "192.0.2.7"]

    at_once = []

    async def answer(_peer: Peer, turn: Turn) -> None:
        at_once.append(sum(peer.running for peer in peers))
        await good(_peer, turn)

    for peer in peers:
        peer.answer = answer
    settings = settings.model_copy(update={"host_group": "ip", "host_transfers": 3})
    async with child(settings, look_up=look_up) as politeness:
        candidates = [
            candidate
            for place, peer in enumerate((*peers, nowhere))
            for candidate in peer.candidates(3, 3 * place)
        ]
        assert len(await crawl(politeness, candidates, *peers, nowhere)) == 63
        assert max(at_once) == 3
        assert nowhere.running_max == 3
        assert set(politeness._located) == {(peer.name, 80) for peer in (*peers, nowhere)}
        known = len(lookups)
        assert len(await crawl(politeness, peers[0].candidates(5), peers[0])) == 5
        assert len(lookups) == known


@in_loop
async def test_one_site_does_not_close_the_address_of_others(settings) -> None:
    """A broken certificate is its own; and of several Crawl-delays the longest counts for all."""

    async def broken(_peer: Peer, turn: Turn) -> None:
        turn.failed(Reason.TLS, "a certificate that has expired")

    async def look_up(_name: str, _port: int) -> list[str]:
        return ["192.0.2.8"]

    bad, other = Peer(broken), Peer(good)
    async with child(settings.model_copy(update={"host_group": "ip"}), look_up=look_up) as politeness:
        assert len(await crawl(politeness, bad.candidates(20), bad)) == 20
        assert len(bad.asked) == 20
        assert len(await crawl(politeness, other.candidates(20), other)) == 20
        host = politeness.host("192.0.2.8")
        assert host.heed_delay(0.2)
        assert not host.heed_delay(0.1)
        assert host.delay_seconds == 0.2


@in_loop
async def test_a_chunk_that_ends_waits_for_no_lookup(settings) -> None:
    """Candidates whose address is not known yet are unresolved, and nothing is left behind."""

    async def look_up(_name: str, _port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    peer = Peer(good)
    async with child(settings.model_copy(update={"host_group": "ip"}), look_up=look_up) as politeness:
        transfers = Transfers(peer.candidates(5), Crawl(peer), politeness, 1000)
        politeness.join(transfers.wake)
        transfers.start()
        assert not await transfers.wait(0.05)
        assert (transfers.stragglers, transfers.idle_seconds()) == (5, 0.0)
        await transfers.stop()
        assert await transfers.wait(1)
        assert len(transfers.unresolved) == 5
        await politeness.leave(transfers.wake)
