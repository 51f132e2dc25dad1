"""What the tests' own sites share: a server on loopback, in a thread of its own, that can hold answers back."""

import asyncio
import threading
from concurrent.futures import Future
from typing import Self

from aiohttp import web


class LoopbackSite:
    """A context manager: ``url`` is served by ``answer`` while it is open. What waits for ``released`` is let go by
    ``release``, and at the end.
    """

    url: str
    loop: asyncio.AbstractEventLoop
    leave: asyncio.Event
    """Set at the end."""
    released: asyncio.Event

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="site", daemon=True)
        self._ready: Future[int] = Future()
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._ready.result(timeout=10)}"
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self.loop.call_soon_threadsafe(self.leave.set)
        self._thread.join(10)

    def release(self) -> None:
        """Let what is held go, now and until ``hold``."""
        self.loop.call_soon_threadsafe(self.released.set)

    def hold(self) -> None:
        """Hold back again what is asked for from now on."""
        self.loop.call_soon_threadsafe(self.released.clear)

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """What a request gets; cancelled when its client goes away."""
        raise NotImplementedError

    async def _serve(self) -> None:
        self.loop, self.leave, self.released = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        server = web.Server(self.answer, access_log=None, handler_cancellation=True)
        runner = web.ServerRunner(server, shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._ready.set_result(runner.addresses[0][1])
        await self.leave.wait()
        await runner.cleanup()
