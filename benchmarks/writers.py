"""Workers without the web: processes that walk chunks through their real arrows, with outcomes that they make up.

Celery's queue is a queue of this computer here; everything that is written goes through the program's functions.
"""

import datetime
import hashlib
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, create_engine

from models.database import transaction
from models.lifecycle import Fence, StartedChunk, checkpoint_chunk, renew_lease, settle_chunk
from models.outcomes import Accepted, Candidate, ImageFormat, Outcome, Reason, Refused
from models.queueing import Message
from worker.presence import HEARTBEAT_SECONDS, SEEN
from worker.writing import commit, persist, start

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.sharedctypes import Synchronized

LEASE_SECONDS = 30.0
SLOTS = 4
"""Chunks that a writer says it can run at once: so many that it never waits for the next message."""
IMAGE_BYTES = 75_000
REFUSED_EVERY = 10


@dataclass(frozen=True, slots=True)
class Writers:
    """The other end of the processes: messages go in, and the number of settled chunks comes out."""

    messages: "SimpleQueue[Message | None]"
    settled: "Synchronized[int]"
    processes: Sequence[Any]

    def died(self) -> bool:
        """Whether one of them has ended, which none does before it is told to."""
        return any(process.exitcode is not None for process in self.processes)


@contextmanager
def writers(url: str, number: int) -> Iterator[Writers]:
    """So many writers; at the end each finishes its chunk and leaves."""
    context = multiprocessing.get_context("spawn")
    messages: SimpleQueue[Message | None] = context.SimpleQueue()
    settled = context.Value("q", 0)
    processes = [
        context.Process(target=write, args=(url, f"writer-{n}", messages, settled), daemon=True)
        for n in range(number)
    ]
    for process in processes:
        process.start()
    try:
        yield Writers(messages, settled, processes)
        for _ in processes:
            messages.put(None)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()


def write(url: str, name: str, messages: "SimpleQueue[Message | None]", settled: "Synchronized[int]") -> None:
    """One process: a heartbeat, and one chunk after the other until it is told to leave."""
    # Without a ping before each transaction: nothing is to be outlived here.
    engine = create_engine(url, pool_size=2)
    stopped = threading.Event()
    heart = threading.Thread(target=beat, args=(engine, name, stopped), daemon=True)
    heart.start()
    while (message := messages.get()) is not None:
        if walk(engine, message, f"{name}/{os.getpid()}"):
            with settled.get_lock():
                settled.value += 1
    stopped.set()
    heart.join()
    engine.dispose()


def beat(engine: Engine, name: str, stopped: threading.Event) -> None:
    """Write the worker's row as a worker does."""
    row = {"name": name, "slots": SLOTS, "version": "0"}
    while True:
        with transaction(engine) as session:
            session.execute(SEEN, row)
        if stopped.wait(HEARTBEAT_SECONDS):
            return


def walk(engine: Engine, message: Message, worker: str) -> bool:
    """queued → processing → completed, a transaction for each arrow; whether this writer has settled it."""
    chunk = start(engine, message.chunk_id, message.attempt, worker, LEASE_SECONDS)
    if chunk is None:
        return False
    outcomes = [outcome(chunk, candidate) for candidate in chunk.candidates]
    half = len(outcomes) // 2
    fence = chunk.fence
    renew(engine, fence)
    first, rest = outcomes[:half], outcomes[half:]
    commit(engine, fence, partial(checkpoint_chunk, fence=fence, outcomes=first, lease_seconds=LEASE_SECONDS))
    fence = replace(fence, checkpoint=fence.checkpoint + 1)
    commit(engine, fence, partial(settle_chunk, fence=fence, outcomes=rest))
    return True


def renew(engine: Engine, fence: Fence) -> None:
    """What a worker does every half second; a young lease is only looked at."""

    def write(_: bool) -> None:
        with transaction(engine) as session:
            assert renew_lease(session, fence, LEASE_SECONDS).owned

    persist(write, chunk=fence.chunk_id)


def outcome(chunk: StartedChunk, candidate: Candidate) -> Outcome:
    """One candidate in ten has no image."""
    if candidate.position % REFUSED_EVERY == 0:
        return Refused(
            candidate.position,
            candidate.url,
            Reason.HTTP_STATUS,
            "404 Not Found",
            http_status=404,
            attempts=1,
            elapsed_ms=90,
        )
    return picture(chunk.fence.job_id, candidate.position)


def picture(job_id: int, position: int) -> Accepted:
    """An image whose bytes are its own, with text as long as that of real ones."""
    digest = hashlib.sha256(b"%d/%d" % (job_id, position))
    name = f"{digest.hexdigest()}.jpg"
    url = f"https://images.photos.example/galleries/{name[:24]}/{position:010}.jpg"
    return Accepted(
        position=position,
        original_url=url,
        final_url=url,
        sha256=digest.digest(),
        perceptual_hash=int.from_bytes(digest.digest()[:8], "big", signed=True),
        width=1024,
        height=768,
        file_size=IMAGE_BYTES,
        format=ImageFormat.JPEG,
        orientation=1,
        storage_url=f"s3://datasets/pixtrawl/jobs/{job_id}/{name}",
        filename=name,
        fetched_at=datetime.datetime.now(datetime.UTC),
        wire_bytes=IMAGE_BYTES,
        http_status=200,
        attempts=1,
        elapsed_ms=180,
    )
