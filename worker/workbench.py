"""One thread that does what may take long, one call after the other, for an event loop.

Like an executor of one thread, without its futures of locks, which cost as much as a small picture: what was done
while the loop was busy is told to it at once, and a thread that has to be woken often is woken for several calls.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

PAUSE_SECONDS = 0.004
"""Between two times that calls are handed over: waking the thread costs as much as storing a picture."""

Result = TypeVar("Result")


class _Call:
    """One call. Who takes its ``ticket`` decides whether it begins: the thread, or whoever wants it no more."""

    __slots__ = ("arguments", "error", "function", "future", "result", "ticket", "told")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function = function
        self.arguments = arguments
        self.ticket = [True]
        self.told = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(self) -> bool:
        """Take the ticket; whether it was still there."""
        try:
            return self.ticket.pop()
        except IndexError:
            return False

    def make(self) -> None:
        """In the thread: call the function and keep what comes of it."""
        try:
            self.result = self.function(*self.arguments)
        except BaseException as error:  # noqa: BLE001 - it is raised where the call is waited for.
            self.error = error

    def tell(self) -> None:
        """In the loop: wake whoever waits."""
        self.told = True
        if not self.future.done():
            self.future.set_result(None)

    def outcome(self) -> Any:
        """What the function returned, or raise what it raised."""
        if self.error is not None:
            raise self.error
        return self.result


class Workbench:
    """A thread and the calls that wait for it. ``close`` ends it after those."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._asked: list[_Call] = []
        self._next_at = 0.0
        self._waiting: SimpleQueue[list[_Call] | None] = SimpleQueue()
        self._made: deque[_Call] = deque()
        self._rung = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def do(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``function`` in the thread; once it has begun, wait for it even when cancelled."""
        call = _Call(function, arguments)
        self._asked.append(call)
        if len(self._asked) == 1:
            if self._loop.time() < self._next_at:
                self._loop.call_at(self._next_at, self._hand_over)
            else:
                self._hand_over()
        try:
            await call.future
        except asyncio.CancelledError:
            if call.take():
                raise
            if not call.told:
                call.future = self._loop.create_future()
                await call.future
        return call.outcome()  # type: ignore[no-any-return] # What the function returns.

    def close(self) -> None:
        """Do what waits, and end."""
        self._waiting.put(self._asked)
        self._waiting.put(None)
        self._thread.join()

    def _hand_over(self) -> None:
        self._next_at = self._loop.time() + PAUSE_SECONDS
        self._waiting.put(self._asked)
        self._asked = []

    def _work(self) -> None:
        while (calls := self._waiting.get()) is not None:
            for call in calls:
                if not call.take():
                    continue
                call.make()
                self._made.append(call)
                if not self._rung:
                    self._rung = True
                    self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._rung = False
        while self._made:
            self._made.popleft().tell()
