"""What was learned about each origin: known in this child, in the cluster for a day, or asked for once.

Redis holds no truth here. While it is away each child asks for itself and remembers for itself.
"""

import asyncio
import collections
import json
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import structlog
from redis.asyncio import Redis

from worker.shared import AWAY

COMMANDS_AT_ONCE = 8
AWAY_SECONDS = 5.0
"""After a failure Redis is left alone for so long."""
CLAIM_SECONDS = 35
"""So long at most do others wait for the child that asks: longer than it may take."""
FAREWELL_SECONDS = 1.0
POLL_SECONDS, POLL_SECONDS_MAX = 0.05, 0.5
KNOWN_SECONDS_MIN = 5.0
"""What a child has just learned counts for so long, whatever the clock said of the machine that asked."""
ORIGINS_MAX = 20_000
BYTES_MAX = 2 * 1024 * 1024
"""Bounds of what one memory keeps in a child; bytes of the records, before they are read."""

log = structlog.get_logger()
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Record:
    """What one question brought: JSON for the cluster, and until when it counts (seconds since 1970).

    ``own`` is for this child alone: what another machine would see may differ.
    """

    content: Mapping[str, Any]
    expires_at: float
    own: bool = False

    def pack(self) -> bytes:
        """As Redis holds it."""
        return zlib.compress(json.dumps([self.expires_at, self.content]).encode())

    @classmethod
    def unpack(cls, packed: bytes) -> "Record | None":
        """None for what is no record: another version of this program may have written it."""
        try:
            expires_at, content = json.loads(zlib.decompress(packed))
            return cls(dict(content), float(expires_at))
        except (zlib.error, ValueError, TypeError):
            return None


class Cluster:
    """The part of Redis that is a memory. Every call answers soon, whatever state Redis is in."""

    def __init__(self, redis: Redis | None) -> None:
        self._redis = redis
        self._turns = asyncio.Semaphore(COMMANDS_AT_ONCE)
        self._quiet_until = 0.0
        self.away = False

    @property
    def usable(self) -> bool:
        """Whether it is worth asking."""
        return self._redis is not None and time.monotonic() >= self._quiet_until

    async def claim(self, key: str) -> bytes | None:
        """What is held under ``key``: empty while somebody else asks; None when it is this caller's to ask, or when
        nobody can tell.
        """
        answers = await self._do(lambda pipeline: pipeline.set(key, b"", nx=True, ex=CLAIM_SECONDS).get(key))
        return None if answers is None or answers[0] else answers[1] or b""

    async def put(self, key: str, packed: bytes, seconds: int) -> None:
        """Let everybody know, for so long."""
        await self._do(lambda pipeline: pipeline.set(key, packed, ex=seconds))

    async def give_up(self, key: str) -> None:
        """End a claim without an answer: whoever waits asks himself."""
        await self._do(lambda pipeline: pipeline.delete(key))

    async def _do(self, write: Callable[[Any], Any]) -> list[Any] | None:
        if self._redis is None or not self.usable:
            return None
        try:
            async with self._turns, self._redis.pipeline(transaction=False) as pipeline:
                write(pipeline)
                answers: list[Any] = await pipeline.execute()
        except AWAY as error:
            self._quiet_until = time.monotonic() + AWAY_SECONDS
            if not self.away:
                log.warning("opt_out_memory_away", error=str(error))
            self.away = True
            return None
        self.away = False
        return answers


class OriginMemory(Generic[Value]):
    """One kind of knowledge, by origin. ``ask`` brings it, ``read`` makes of it what is kept here.

    However many want to know the same at once, in this child one asks; of the cluster's children about one.
    """

    def __init__(
        self,
        prefix: str,
        cluster: Cluster,
        ask: Callable[[str], Awaitable[Record]],
        read: Callable[[Mapping[str, Any]], Value],
    ) -> None:
        self._prefix = prefix
        self._cluster = cluster
        self._ask = ask
        self._read = read
        self._known: collections.OrderedDict[str, tuple[Value, float, int]] = collections.OrderedDict()
        self._bytes = 0
        self._flights: dict[str, _Flight[Value]] = {}
        self._tasks: set[asyncio.Future[Value]] = set()
        """Of all flights, those that are given up and not over yet included."""

    def known(self, origin: str) -> Value | None:
        """What this child knows now, without asking anybody."""
        entry = self._known.get(origin)
        if entry is None or entry[1] <= time.time():
            return None
        self._known.move_to_end(origin)
        return entry[0]

    async def find(self, origin: str) -> Value:
        """Know, or learn. A question that nobody waits for any more is given up."""
        value = self.known(origin)
        if value is not None:
            return value
        flight = self._flights.get(origin)
        if flight is None:
            flight = self._flights[origin] = _Flight(asyncio.ensure_future(self._learn(origin)))
            self._tasks.add(flight.task)
            flight.task.add_done_callback(self._tasks.discard)
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if self._flights.get(origin) is flight and (flight.task.done() or not flight.waiting):
                del self._flights[origin]
                flight.task.cancel()

    async def close(self) -> None:
        """End what is under way; nobody may wait for it any more. What Redis does not hear of runs out there."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=FAREWELL_SECONDS)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late)

    async def _learn(self, origin: str) -> Value:
        key = f"{self._prefix}:{origin}"
        held = await self._wait_for_others(key)
        record = held or await self._ask_for_all(key, origin)
        value = self._read(record.content)
        self._keep(origin, value, record)
        return value

    async def _wait_for_others(self, key: str) -> Record | None:
        """What the cluster knows, once whoever asks now has the answer; None when it is ours to ask."""
        poll_seconds = POLL_SECONDS
        while True:
            try:
                packed = await self._cluster.claim(key)
            except asyncio.CancelledError:
                await self._cluster.give_up(key)  # It may have been claimed, and nobody would know.
                raise
            if packed is None:
                return None
            if packed:
                return Record.unpack(packed)
            await asyncio.sleep(poll_seconds)
            poll_seconds = min(POLL_SECONDS_MAX, 1.5 * poll_seconds)

    async def _ask_for_all(self, key: str, origin: str) -> Record:
        seconds = 0
        try:
            record = await self._ask(origin)
            seconds = 0 if record.own else int(record.expires_at - time.time())
        finally:
            if seconds < 1:
                await self._cluster.give_up(key)
        if seconds >= 1:
            await self._cluster.put(key, record.pack(), seconds)
        return record

    def _keep(self, origin: str, value: Value, record: Record) -> None:
        size = len(origin) + len(str(record.content))
        self._drop(origin)
        self._known[origin] = value, max(record.expires_at, time.time() + KNOWN_SECONDS_MIN), size
        self._bytes += size
        while len(self._known) > 1 and (len(self._known) > ORIGINS_MAX or self._bytes > BYTES_MAX):
            self._drop(next(iter(self._known)))

    def _drop(self, origin: str) -> None:
        gone = self._known.pop(origin, None)
        if gone is not None:
            self._bytes -= gone[2]


@dataclass(slots=True)
class _Flight(Generic[Value]):
    """A question under way, and how many wait for its answer."""

    task: "asyncio.Future[Value]"
    waiting: int = 0
