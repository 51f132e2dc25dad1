"""What one pool child has open: event loop, transport, decoder thread, database thread. Made after the fork."""

import asyncio
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

from models.database import make_engine
from models.settings import Settings
from worker.picture import Picture
from worker.store import Store, open_store
from worker.transport import GuardedTransport

Result = TypeVar("Result")


class Child:
    """One process that crawls one chunk at a time, with hundreds of transfers at once.

    The database has one thread and one connection; pictures are decoded and stored in a second thread; a
    third is for what may take long.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"{socket.gethostname()}/{os.getpid()}"
        self.random = random.Random()
        self.engine = make_engine(settings.sqlalchemy_url, application_name="pixtrawl worker")
        self.loop = asyncio.new_event_loop()
        self.stores: dict[str, Store] = {}
        self.decoding_since: float | None = None
        self._decoder = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._database = ThreadPoolExecutor(1, thread_name_prefix="database")
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="aside")
        leave_with_parent()

    @cached_property
    def transport(self) -> GuardedTransport:
        """The door to the web; made inside the running loop."""
        return GuardedTransport(self.settings)

    def store(self, url: str) -> Store:
        """The store of a job's images, opened once."""
        if url not in self.stores:
            if len(self.stores) > 100:
                self.stores.clear()
            self.stores[url] = open_store(url)
        return self.stores[url]

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

    def decode(self, inspector: Callable[[bytes], Picture], body: bytes) -> Picture:
        """Call ``inspector`` in the decoder thread, seen by ``decoder_stuck``."""
        self.decoding_since = time.monotonic()
        try:
            return inspector(body)
        finally:
            self.decoding_since = None

    def decoder_stuck(self) -> bool:
        """Whether one picture has been decoded for longer than ``decode_seconds_max``."""
        since = self.decoding_since
        return since is not None and time.monotonic() - since > self.settings.decode_seconds_max

    async def aside(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call ``function`` in a thread of its own kind: neither the database nor a decoder waits for it."""
        return await self.loop.run_in_executor(self._aside, function, *arguments)

    def close(self) -> None:
        """Close everything. The child ends afterwards."""
        if "transport" in self.__dict__:
            self.loop.run_until_complete(self.transport.aclose())
        self._decoder.shutdown()
        self._database.shutdown()
        self._aside.shutdown()
        self.engine.dispose()
        self.loop.close()


def leave_at_once() -> None:
    """End this process though a thread of it hangs: its pool makes another child."""
    os._exit(1)


def leave_with_parent() -> None:
    """End this process when its parent is gone: a pool child must not outlive a worker killed by SIGKILL."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
