"""A time that passes as fast as it can be computed: a minute at a host takes a second, on however busy a machine.

Everything of a child's politeness runs as it is, the script in a real Redis included. Only clocks are replaced: the
event loop's, that of the modules that read it, and Redis' own.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from redis import Redis

from worker import host, politeness, transfers

Result = TypeVar("Result")
CLOCK_KEY = "clock of a test"
READ_TIME = "redis.call('TIME')"
READ_KEY = f"redis.call('HMGET', '{CLOCK_KEY}', 's', 'us')"
STEP_SECONDS = 1e-6
"""A step of the loop takes so long, since what waits for a time must see that it is over."""
ANSWER_SECONDS = 0.001


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: where it would, its clock moves on."""

    def __init__(self) -> None:
        super().__init__(_Selector(self))
        self.now = 1000.0

    def time(self) -> float:
        """Its own clock."""
        return self.now


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.now += (timeout or 0.0) + STEP_SECONDS
        return super().select(0)


class VirtualRedis:
    """A real Redis whose scripts are told the time of a virtual loop."""

    def __init__(self, url: str, loop: VirtualLoop) -> None:
        self._redis = Redis(unix_socket_path=url.partition("://")[2])
        self._loop = loop

    def register_script(self, script: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        """As the client's own, but for the clock."""
        assert READ_TIME in script
        registered = self._redis.register_script(script.replace(READ_TIME, READ_KEY))

        async def run(keys: Sequence[str], args: Sequence[str]) -> Any:
            await asyncio.sleep(ANSWER_SECONDS)
            seconds, microseconds = divmod(round(self._loop.time() * 1e6), 10**6)
            self._redis.hset(CLOCK_KEY, mapping={"s": seconds, "us": microseconds})
            return registered(keys=keys, args=args)

        return run

    def close(self) -> None:
        """Forget the clock, and close."""
        self._redis.delete(CLOCK_KEY)
        self._redis.close()


def run(
    monkeypatch: pytest.MonkeyPatch,
    redis_url: str,
    work: Callable[[VirtualRedis], Coroutine[Any, Any, Result]],
) -> Result:
    """Run ``work`` to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        for module in (host, politeness, transfers):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=loop.time))
        redis = VirtualRedis(redis_url, loop)
        try:
            return runner.run(work(redis))
        finally:
            redis.close()
