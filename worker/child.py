"""What one pool child has open: event loop, transport, decoder thread, database thread. Made after the fork."""

import asyncio
import os
import random
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, NoReturn, TypeVar

from redis.asyncio import Redis

from models.database import make_engine
from models.settings import Settings
from worker.helper import leave_with_parent
from worker.memory import give_large_blocks_back
from worker.opt_outs import OptOuts
from worker.politeness import Politeness
from worker.presence import leaving
from worker.shared import close_redis, open_redis
from worker.store import Store, open_store
from worker.transport import GuardedTransport
from worker.watchdog import Watchdog, Work

REST_SECONDS = 0.05

Result = TypeVar("Result")


class Child:
    """One process that crawls one chunk at a time, with hundreds of transfers at once.

    The database has one thread and one connection; pictures are decoded and stored in a second thread; a
    third is for what may take long, and a fourth looks after the lease, whatever the others wait for. The
    watchdog knows what a thread may hang in.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"{socket.gethostname()}/{os.getpid()}"
        self.random = random.Random()
        self.engine = make_engine(settings.sqlalchemy_url, application_name="pixtrawl worker")
        self.loop = asyncio.new_event_loop()
        self.stores: dict[str, Store] = {}
        self.watchdog = Watchdog()
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._database = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="aside")
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="lease")
        leave_with_parent()
        give_large_blocks_back()

    @cached_property
    def transport(self) -> GuardedTransport:
        """The door to the web; made inside the running loop."""
        return GuardedTransport(self.settings)

    @cached_property
    def redis(self) -> Redis:
        """What workers share; made inside the running loop."""
        return open_redis(self.settings)

    @cached_property
    def politeness(self) -> Politeness:
        """The hosts that this child asks; made inside the running loop."""
        return Politeness(self.settings, self.redis, self.name)

    @cached_property
    def opt_outs(self) -> OptOuts:
        """What owners say against being collected; made inside the running loop."""
        return OptOuts(self.transport, self.settings, self.redis if self.settings.redis_url else None)

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

    def run(self, crawl: Coroutine[Any, Any, None]) -> None:
        """Run one chunk to its end on this child's loop."""
        self.loop.run_until_complete(crawl)

    async def in_database(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``function`` in the database thread: the loop goes on meanwhile."""
        return await self.loop.run_in_executor(self._database, function, *arguments)

    async def in_decoder(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``function`` in the decoder thread; once it has begun, wait for it even when cancelled.

        What it stores must get its outcome, so a stop waits for the picture at hand, not for those in line.
        """
        call = self._decoder.submit(function, *arguments)
        waiting = asyncio.wrap_future(call, loop=self.loop)
        try:
            return await asyncio.shield(waiting)
        except asyncio.CancelledError:
            if call.cancel():
                raise
            return await waiting

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
            if self.watchdog.overdue():
                leave_at_once()
            await asyncio.sleep(REST_SECONDS)

    def close(self) -> None:
        """Close everything. The child ends afterwards, at once if a thread is still occupied."""
        if "opt_outs" in self.__dict__:
            self.loop.run_until_complete(self.opt_outs.close())
        if "transport" in self.__dict__:
            self.loop.run_until_complete(self.transport.aclose())
        if "redis" in self.__dict__:
            self.loop.run_until_complete(close_redis(self.redis))
        if self.watchdog.running():
            leave_at_once(0)
        for thread in (self._decoder, self._database, self._aside, self._beside):
            thread.shutdown()
        self.engine.dispose()
        self.loop.close()


def leave_at_once(code: int = 1) -> NoReturn:
    """End this process though a thread of it hangs: its pool makes another child."""
    os._exit(code)
