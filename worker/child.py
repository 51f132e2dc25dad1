"""What one pool child has open: event loop, transport, decoder thread, database thread. Made after the fork."""

import asyncio
import contextlib
import os
import random
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import httpx
from redis.asyncio import Redis

from models.database import make_engine
from models.outcomes import Verification
from models.settings import Settings
from worker.careful import CarefulDecoder, PlainDecoder
from worker.memory import give_large_blocks_back
from worker.opt_outs import OptOuts
from worker.politeness import Politeness
from worker.presence import leaving, tell_aside
from worker.pulse import Pulse
from worker.shared import close_redis, open_redis
from worker.sources.providing import Providers
from worker.spool import Spool
from worker.store import Store, open_store
from worker.transport import GuardedTransport, make_client
from worker.watchdog import Watchdog, Work
from worker.workbench import Workbench

if TYPE_CHECKING:
    from worker.transfers import Transfers

REST_SECONDS = 0.05
ASIDE_MAX = 8
"""Chunks of which only stragglers are left, at most, beside the one that a child crawls."""
CLOSE_SECONDS_MAX = 5.0
"""How long a child that ends waits for such chunks to be handed back."""

Result = TypeVar("Result")


class StuckError(Exception):
    """Nothing can come of waiting, and nothing in this process can end what is waited for: only its own end helps.
    The message is one sentence without its end.
    """

    def __init__(self, message: str, *, by_store: bool = False) -> None:
        super().__init__(message)
        self.by_store = by_store


class Child:
    """One process that crawls one chunk after another, with hundreds of transfers at once. What is left of one goes
    on ``aside`` once half of the transfers have nothing left to do there.

    The event loop has a thread, so that it runs while the pool waits for a message, too; small pictures are decoded
    in it. The database has one thread and one connection; other pictures are decoded in another, and all are stored
    there; one is for what may take long, and one looks after leases, whatever the others wait for. The watchdog
    knows what a thread may hang in, and the pulse whether the loop does.

    A command that is no pool's child (``in_pool``) says why before it ends, and leaves nothing behind.
    """

    def __init__(self, settings: Settings, *, in_pool: bool = True) -> None:
        self.settings = settings
        self.in_pool = in_pool
        self.name = f"{socket.gethostname()}/{os.getpid()}"
        self.random = random.Random()
        self.engine = make_engine(settings.sqlalchemy_url, application_name="pixtrawl worker")
        self.loop = asyncio.new_event_loop()
        self.closing = False
        """Whether what goes on aside is to be handed back."""
        self.aside_chunks: set[asyncio.Task[None]] = set()
        self.transfers: set[Transfers[Any]] = set()
        """Of every chunk that has an owner here, aside or not."""
        self.crawling = 0
        """Chunks that have an owner here, aside or not."""
        self.stores: dict[str, Store] = {}
        self.spool = Spool(settings.spool_folder, settings.spool_bytes_max)
        self.watchdog = Watchdog()
        self._large = CarefulDecoder(settings, watchdog=self.watchdog)
        self._decoder = Workbench(self.loop, "decoder")
        self._database = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="aside")
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="lease")
        give_large_blocks_back()
        tell_aside(0)
        self._thread = threading.Thread(target=self.loop.run_forever, name="loop", daemon=True)
        self._thread.start()
        self._pulse = Pulse(self.loop, leave_at_once) if in_pool else None

    @cached_property
    def transport(self) -> GuardedTransport:
        """The door to the web; made inside the running loop."""
        return GuardedTransport(self.settings)

    @cached_property
    def client(self) -> httpx.AsyncClient:
        """The same door for whoever speaks httpx: it is closed with the transport."""
        return make_client(self.transport, self.settings)

    @cached_property
    def redis(self) -> Redis:
        """What workers share; made inside the running loop."""
        return open_redis(self.settings)

    @cached_property
    def providers(self) -> Providers:
        """Who may be asked for images; made inside the running loop."""
        return Providers(self.settings, self.client, self.redis)

    @cached_property
    def politeness(self) -> Politeness:
        """The hosts that this child asks; made inside the running loop."""
        return Politeness(self.settings, self.redis, self.name, self.transport.addresses)

    @cached_property
    def opt_outs(self) -> OptOuts:
        """What owners say against being collected; made inside the running loop."""
        return OptOuts(self.transport, self.settings, self.redis if self.settings.redis_url else None)

    @property
    def running(self) -> int:
        """Transfers that run now, of all chunks."""
        return sum(transfers.running for transfers in self.transfers)

    def store(self, url: str) -> Store:
        """The store of a job's images, opened once."""
        if url not in self.stores:
            if len(self.stores) > 100:
                self.stores.clear()
            with self.storing():
                self.stores[url] = open_store(url)
        return self.stores[url]

    def storing(self) -> AbstractContextManager[None]:
        """Around a call of a store, which may hang."""
        return self.watchdog.timing(Work.STORE, self.settings.store_seconds_max)

    def decoder(self, verification: Verification) -> PlainDecoder:
        """Who looks at pictures here; for large ones there is one helper, whatever chunk they are of."""
        return PlainDecoder(self.settings, verification, self.watchdog, self._large)

    def careful_decoder(self, verification: Verification) -> CarefulDecoder:
        """Who has every picture decoded in a helper; it must be closed."""
        return CarefulDecoder(self.settings, verification, self.watchdog)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run one task to its end on this child's loop."""
        call = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return call.result()
        except BaseException:
            call.cancel()
            raise

    def go_on_aside(self, chunk: asyncio.Task[None]) -> None:
        """Let a chunk go on by itself, beside the next one."""
        self.aside_chunks.add(chunk)
        chunk.add_done_callback(self._end_aside)
        tell_aside(len(self.aside_chunks))

    async def clear_aside(self) -> None:
        """Hand back what goes on aside: what comes next may end this process."""
        if self.aside_chunks:
            self.closing = True
            await asyncio.wait(self.aside_chunks, timeout=CLOSE_SECONDS_MAX)
            self.closing = False

    def _end_aside(self, chunk: asyncio.Task[None]) -> None:
        self.aside_chunks.discard(chunk)
        tell_aside(len(self.aside_chunks))

    async def in_database(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``function`` in the database thread: the loop goes on meanwhile."""
        return await self.loop.run_in_executor(self._database, function, *arguments)

    async def in_decoder(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``function`` in the decoder thread; once it has begun, wait for it even when cancelled.

        What it stores must get its outcome, so a stop waits for the picture at hand, not for those in line.
        """
        return await self._decoder.do(function, *arguments)

    async def aside(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``function`` in a thread of its own kind: neither the database nor a decoder waits for it."""
        return await self.loop.run_in_executor(self._aside, function, *arguments)

    async def beside(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``function`` in the thread that looks after the lease: it waits for no other call."""
        return await self.loop.run_in_executor(self._beside, function, *arguments)

    async def rest(self) -> None:
        """Wait until no thread is occupied by what nobody wants any more, so that the next chunk begins with all of
        them; when one hangs, end this process.
        """
        while self.watchdog.running() and not leaving():
            # Chunks that are aside leave in order, and end this process themselves.
            if self.watchdog.overdue() and not self.aside_chunks:
                leave_at_once()
            await asyncio.sleep(REST_SECONDS)

    def end_stuck(self, why: str) -> NoReturn:
        """End this process, in which a thread hangs. Raises StuckError where somebody is to hear why first."""
        if self.in_pool:
            leave_at_once()
        raise StuckError(why)

    async def leave_together(self, seconds_max: float) -> NoReturn:
        """End this process, in which a thread hangs, once the other chunks have been handed back."""
        self.closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds_max):
                while self.crawling:  # noqa: ASYNC110 - it ends once, with this process.
                    await asyncio.sleep(REST_SECONDS)
        leave_at_once()

    def close(self) -> None:
        """Hand back what goes on aside and close everything. The child ends afterwards, at once if a thread is
        still occupied; a command then has to end by itself.
        """
        self.closing = True
        self.run(self._close())
        tell_aside(0)
        if self.watchdog.running():
            if self.in_pool:
                leave_at_once(0)
            return
        if self._pulse is not None:
            self._pulse.close()
        self._decoder.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        for thread in (self._database, self._aside, self._beside):
            thread.shutdown()
        self.spool.close()
        self._large.close()
        self.engine.dispose()
        self.loop.close()

    async def _close(self) -> None:
        if self.aside_chunks:
            await asyncio.wait(self.aside_chunks, timeout=CLOSE_SECONDS_MAX)
        if "opt_outs" in self.__dict__:
            await self.opt_outs.close()
        if "transport" in self.__dict__:
            await self.transport.aclose()
        if "redis" in self.__dict__:
            await close_redis(self.redis)


def leave_at_once(code: int = 1) -> NoReturn:
    """End this process though a thread of it hangs: its pool makes another child."""
    os._exit(code)
