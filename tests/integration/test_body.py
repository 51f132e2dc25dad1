"""The bounds of a body: its size, its coding, its speed and the memory it takes."""

import asyncio
import gzip
import tracemalloc
import zlib

import pytest

from models.outcomes import Reason
from tests.support.fetching import PIXELS, door, failure
from tests.support.hostile_server import (
    always,
    by_path,
    endless,
    in_loop,
    pieces,
    response,
    serve,
)
from worker import body as body_module
from worker.body import Pieces
from worker.body_memory import FIRST_BYTES, FREE_BYTES, SHARED_BYTES, BodyMemory
from worker.errors import CandidateError
from worker.transport import MESSAGE_CHARACTERS_MAX


@in_loop
async def test_a_declared_length_over_the_bound_is_refused_unread():
    """Content-Length over image_bytes_max ends the transfer before a byte of the body is read."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000001\r\n\r\n"
    async with serve(endless(head, b"x" * 1000)) as server, door(image_bytes_max=1_000_000) as get:
        error = await failure(get(f"{server.origin}/"))
    assert (error.reason, error.wire_bytes, error.http_status) == (Reason.TOO_LARGE, 0, 200)


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"),
    ],
)
@in_loop
async def test_an_endless_body_is_cut(head, part):
    """A body without a length ends at image_bytes_max, and its connection is closed."""
    async with serve(endless(head, part)) as server, door(image_bytes_max=1_000_000) as get:
        error = await failure(get(f"{server.origin}/"))
        await asyncio.wait_for(server.closed_by_peer.wait(), 10)
    assert (error.reason, error.transient) == (Reason.TOO_LARGE, False)
    assert 1_000_000 < error.wire_bytes < 2_000_000


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", "deflate", "bare deflate", "members", "padded"])
@in_loop
async def test_content_coding_is_undone(coding):
    """Gzip, also in several members, and both kinds of deflate are decoded, whatever was asked for."""
    bare = zlib.compressobj(wbits=-15)
    coded = {
        "deflate": zlib.compress(PIXELS),
        "bare deflate": bare.compress(PIXELS) + bare.flush(),
        "members": gzip.compress(PIXELS[:5000]) + gzip.compress(PIXELS[5000:]),
        "padded": gzip.compress(PIXELS) + b"\0" * 20,
    }.get(coding, gzip.compress(PIXELS))
    label = {"bare deflate": "deflate", "members": "gzip", "padded": "gzip"}.get(coding, coding)
    parts = [coded[start : start + 1] for start in range(40)] + [coded[40:]]
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: {label}\r\nContent-Length: {len(coded)}\r\n\r\n".encode()
    async with serve(pieces(head, *parts)) as server, door() as get:
        fetched = await get(f"{server.origin}/")
    assert (fetched.body, fetched.wire_bytes) == (PIXELS, len(coded))


@in_loop
async def test_other_codings_are_no_image():
    """What we cannot decode is not_an_image; a label that names no compression is passed over."""
    answers = {
        f"/{label}": response(PIXELS, headers={"Content-Encoding": label})
        for label in ("br", "zstd", "gzip,gzip", "identity", "aws-chunked", "none")
    }
    async with serve(by_path(answers)) as server, door() as get:
        for label in ("br", "zstd", "gzip,gzip"):
            assert (await failure(get(f"{server.origin}/{label}"))).reason is Reason.NOT_AN_IMAGE
        for label in ("identity", "aws-chunked", "none"):
            assert (await get(f"{server.origin}/{label}")).body == PIXELS


def test_crumbs_take_little_more_than_themselves():
    """A body that comes two bytes at a time is held in about its own size, not in an object for each piece."""
    tracemalloc.start()
    pieces = Pieces()
    for number in range(200_000):
        pieces.add(number.to_bytes(2, "big") if number < 65536 else bytes(bytearray(2)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000
    assert len(pieces.whole()) == 400_000


@in_loop
async def test_a_gzip_bomb_stays_small():
    """A bomb of 200 MB ends at the decoded bound, and memory never holds much more than that bound."""
    bomb = gzip.compress(b"\0" * 200_000_000, 1)
    answer = always(response(bomb, headers={"Content-Encoding": "gzip"}))
    async with serve(answer) as server, door(image_bytes_max=4_000_000) as get:
        tracemalloc.start()
        error = await failure(get(f"{server.origin}/"))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert error.reason is Reason.TOO_LARGE
    assert peak < 9_000_000


@pytest.mark.parametrize(
    "answer",
    [
        pieces(response(PIXELS, headers={"Content-Length": "99999"}), then=EOFError()),
        pieces(response(PIXELS, headers={"Content-Length": "99999"}), then=ConnectionResetError()),
        pieces(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", then=EOFError()),
        pieces(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabcde\r\n", then=EOFError()),
        pieces(response(gzip.compress(PIXELS)[:-9], headers={"Content-Encoding": "gzip"})),
        pieces(response(b"\x1f\x8b\x08broken" * 9, headers={"Content-Encoding": "gzip"})),
        pieces(response(b"x", headers={"Content-Encoding": "deflate"})),
        pieces(b"nonsense\r\n\r\n"),
        pieces(b"", then=EOFError()),
        pieces(b"HTTP/1.1 200 OK\r\nX-Large: " + b"a" * 40_000 + b"\r\n\r\n"),
    ],
    ids=[
        "short",
        "reset",
        "chunks end",
        "bad chunk",
        "cut gzip",
        "bad gzip",
        "cut deflate",
        "nonsense",
        "silent",
        "header",
    ],
)
@in_loop
async def test_a_broken_answer_is_a_protocol_failure(answer):
    """Truncated, reset, badly chunked or badly coded answers are transient; no part of a body is ever accepted."""
    async with serve(answer) as server, door() as get:
        error = await failure(get(f"{server.origin}/"))
    assert error.reason in {Reason.PROTOCOL, Reason.CONNECT}
    assert error.transient


@in_loop
async def test_extra_bytes_never_reach_an_image():
    """Bytes after Content-Length make a protocol failure with a short message, or are dropped."""
    async with serve(always(response(PIXELS) + PIXELS)) as server, door() as get:
        for _ in range(3):
            outcome = (await asyncio.gather(get(f"{server.origin}/"), return_exceptions=True))[0]
            if isinstance(outcome, CandidateError):
                assert outcome.reason is Reason.PROTOCOL
                assert len(outcome.detail) <= MESSAGE_CHARACTERS_MAX
            else:
                assert outcome.body == PIXELS
        assert server.connections == 3


@in_loop
async def test_a_slow_transfer_is_too_slow():
    """After ten seconds a transfer under the minimum rate ends; the clock is the test's own."""
    now = iter(float(second) for second in range(1000))
    drip = endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100, pause=0.001)
    async with serve(drip) as server, door() as get:
        error = await failure(get(f"{server.origin}/", clock=lambda: next(now)))
        assert (error.reason, error.transient) == (Reason.TOO_SLOW, True)
        assert 12 <= next(now) <= 16  # A few of them are those of latency and duration.
    async with serve(always(response(PIXELS))) as server, door(transfer_rate_min=0) as get:
        assert (await get(f"{server.origin}/", clock=lambda: next(now) * 100)).body == PIXELS


@in_loop
async def test_large_bodies_share_their_memory():
    """However many bodies grow at once, those over the free size hold no more than what is shared."""
    most = 0
    body = b"x" * (FREE_BYTES * 2)

    async with serve(always(response(body))) as server, door(image_bytes_max=len(body)) as get:
        memory = get.transport.memory = BodyMemory(3 * len(body))

        async def one():
            nonlocal most
            with memory.lease() as lease:
                fetched = await get(f"{server.origin}/", lease=lease)
                most = max(most, 3 * len(body) - memory.free_bytes)
                await asyncio.sleep(0)
                return len(fetched.body)

        assert await asyncio.gather(*[one() for _ in range(24)]) == [len(body)] * 24
        assert most == 3 * len(body)
        assert memory.free_bytes == 3 * len(body)


@in_loop
async def test_bodies_without_a_length_share_the_last_memory():
    """Twenty of three megabytes at once, none of which says so before, are whole, and all memory is free again."""
    body = bytes(3_000_000)
    head = b"HTTP/1.1 200 OK\r\n\r\n"
    async with serve(always(head + body, then_close=True)) as server, door(image_bytes_max=4_000_000) as get:
        memory = get.transport.memory
        before = (memory.free_bytes, memory.last.free_bytes)
        fetched = await asyncio.gather(*[get(f"{server.origin}/") for _ in range(20)])
        assert [len(one.body) for one in fetched] == [len(body)] * 20
        assert (memory.free_bytes, memory.last.free_bytes) == before
        with memory.lease() as lease:
            await get(f"{server.origin}/", lease=lease)
            assert lease.held_bytes == len(body)
            assert memory.free_bytes + memory.last.free_bytes == sum(before) - len(body)


@in_loop
async def test_who_holds_the_last_memory_must_be_fast():
    """A body that turned out large and then trickles is given up after ten seconds; the clock is the test's own."""
    now = iter(float(second) for second in range(1000))

    async def answer(_, write):
        await write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(FIRST_BYTES + 1))
        while True:
            await write(bytes(2000))

    async with serve(answer) as server, door() as get:
        error = await failure(get(f"{server.origin}/", clock=lambda: next(now) * 2))
        assert error.reason is Reason.TOO_SLOW
        assert FIRST_BYTES < error.wire_bytes < 3 * FIRST_BYTES
        assert get.transport.memory.last.free_bytes == 20 * 1024 * 1024


@pytest.mark.parametrize("header", [b"", b"Content-Length: 20000000\r\n"])
@in_loop
async def test_who_holds_the_last_memory_must_not_fall_silent(monkeypatch, header):
    """A large body that stops arriving gives its memory to those that wait, long before other silences end."""
    monkeypatch.setattr(body_module, "LAST_SILENCE_SECONDS", 0.2)

    async def answer(_, write):
        await write(b"HTTP/1.1 200 OK\r\n" + header + b"\r\n" + bytes(FIRST_BYTES + 1))
        await asyncio.Event().wait()

    async with serve(answer) as server, door() as get:
        error = await failure(get(f"{server.origin}/"))
        assert error.reason is Reason.TOO_SLOW
        assert get.transport.memory.last.free_bytes == 20 * 1024 * 1024


@in_loop
async def test_waiting_for_memory_stops_the_clock():
    """A large body waits for memory longer than its deadline and is whole; a small one passes meanwhile."""
    answers = {"/large": response(b"x" * (FREE_BYTES + 1)), "/small": response(PIXELS)}
    async with serve(by_path(answers)) as server, door(transfer_seconds_max=0.3) as get:
        memory = get.transport.memory
        with memory.lease() as all_of_it:
            await all_of_it.reserve(memory.free_bytes)
            large = asyncio.ensure_future(get(f"{server.origin}/large"))
            small = await get(f"{server.origin}/small")
            await asyncio.wait([large], timeout=0.6)
            assert (large.done(), small.body) == (False, PIXELS)
        assert len((await large).body) == FREE_BYTES + 1
        assert memory.free_bytes == SHARED_BYTES


@in_loop
async def test_a_body_larger_than_what_is_shared_takes_the_last_memory():
    """It says its length, takes all of it from there at once and gives it back; the shared memory stays free."""
    memory = BodyMemory(10, 20)
    with memory.lease() as large, memory.lease() as other:
        await large.reserve(15)
        assert (memory.free_bytes, memory.last.free_bytes, large.held_bytes) == (10, 5, 15)
        waiting = asyncio.ensure_future(other.reserve(11))
        await asyncio.sleep(0)
        assert not waiting.done()
        large.complete(9)
        await waiting
        assert (memory.free_bytes, memory.last.free_bytes) == (10, 0)
    assert (memory.free_bytes, memory.last.free_bytes) == (10, 20)


@in_loop
async def test_memory_is_given_in_the_order_of_asking():
    """A large claim is not starved by small ones behind it, and one that is given up lets the next pass."""
    memory = BodyMemory(10)
    first, large, small = memory.lease(), memory.lease(), memory.lease()
    await first.reserve(6)
    wants_large = asyncio.ensure_future(large.reserve(9))
    await asyncio.sleep(0)
    wants_small = asyncio.ensure_future(small.reserve(4))
    await asyncio.sleep(0)
    assert not wants_small.done()
    wants_large.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wants_large
    await wants_small
    assert memory.free_bytes == 0
    with pytest.raises(RuntimeError):
        await small.reserve(1)
    first.release()
    small.release()
    assert memory.free_bytes == 10


@in_loop
async def test_a_claim_given_up_at_any_moment_loses_nothing():
    """Cancelled before, together with or after its turn, a claim leaves all memory free and no waiter stuck."""
    for moment in ("before", "at the release", "after its turn"):
        memory = BodyMemory(10)
        first, given_up, last = memory.lease(), memory.lease(), memory.lease()
        await first.reserve(10)
        waiting = [asyncio.ensure_future(lease.reserve(10)) for lease in (given_up, last)]
        await asyncio.sleep(0)
        if moment != "after its turn":
            waiting[0].cancel()
        if moment == "before":
            await asyncio.sleep(0)
        first.release()
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await asyncio.wait_for(waiting[1], 5)
        last.release()
        assert memory.free_bytes == 10


@in_loop
async def test_coded_bytes_are_bounded_too():
    """Endless padding after a small gzip body decodes to nothing, and ends at the bound all the same."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(PIXELS)
    async with serve(endless(head, b"\0" * 65536)) as server, door(image_bytes_max=1_000_000) as get:
        assert (await failure(get(f"{server.origin}/"))).reason is Reason.TOO_LARGE
