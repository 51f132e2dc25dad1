"""Bytes of memory or of a disk that all bodies of one process share, given out in the order of asking."""

import asyncio
import collections


class SharedBytes:
    """A number of bytes of which each takes its part and gives it back. For one event loop."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = self.free_bytes = bytes_max
        self._waiting: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()

    @property
    def wanted(self) -> bool:
        """Whether anybody waits for a part."""
        return bool(self._waiting)

    def take_now(self, size: int) -> bool:
        """Take ``size`` bytes if they are free and nobody was there before."""
        if self._waiting or size > self.free_bytes:
            return False
        self.free_bytes -= size
        return True

    async def take(self, size: int) -> None:
        """Take ``size`` bytes, waiting until they are free."""
        if not self.take_now(size):
            turn = self.line_up(size)
            try:
                await turn
            except asyncio.CancelledError:
                self.leave(turn, size)
                raise

    def line_up(self, size: int) -> asyncio.Future[None]:
        """Wait in the line: ``size`` bytes are taken once the turn is done. Who gives it up has to ``leave``."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        return turn

    def leave(self, turn: asyncio.Future[None], size: int) -> None:
        """Give a turn up. It may have come in the same moment; then what was given goes back."""
        given = turn.done() and not turn.cancelled()
        turn.cancel()
        self.give_back(size if given else 0)

    def give_back(self, size: int) -> None:
        """Return bytes and wake whoever can go on. Turns that were given up are passed over."""
        self.free_bytes += size
        while self._waiting:
            taken, turn = self._waiting[0]
            if not turn.cancelled():
                if taken > self.free_bytes:
                    return
                self.free_bytes -= taken
                turn.set_result(None)
            self._waiting.popleft()
