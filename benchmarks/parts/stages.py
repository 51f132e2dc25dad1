"""What one picture costs, stage by stage, by the program's own functions one after another in one process; and then
the whole system at work, by process.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from benchmarks import contenders, web_server, writers
from benchmarks.databases import database
from benchmarks.race import PROCESSES, Race
from benchmarks.setting import Bench, Section, listed
from benchmarks.submitting import create_users, submit_jobs
from benchmarks.usage import CHILD, Usage, watching
from models.database import transaction
from models.lifecycle import StartedChunk, checkpoint_chunk, settle_chunk
from models.outcomes import Candidate, Verification
from models.queueing import Message
from models.settings import Settings
from models.workers import live_slots
from scheduler.broker import Broker
from scheduler.dispatch import dispatch
from scheduler.leader import Leader
from worker.fetch import step
from worker.picture import inspect
from worker.store import open_store
from worker.transport import GuardedTransport
from worker.visit import Visit
from worker.writing import commit, start

CONNECTIONS = 64
CHUNK = 500
CHUNKS = 12
MICRO = 1_000_000
STAGES = ("stage", "µs of this process", "µs of the database", "µs elapsed", "share")
PROCESSES_HEADER = ("process", "µs for each picture", "most memory of one, MB")


@dataclass(slots=True)
class Cost:
    """What a stage took for so many pictures, in seconds."""

    pictures: int
    own: float
    elapsed: float
    database: float = 0.0

    def row(self, name: str, whole: float) -> tuple[str, ...]:
        """Its line in the table, in µs for each picture."""
        own, server, elapsed = (
            MICRO * seconds / self.pictures for seconds in (self.own, self.database, self.elapsed)
        )
        return (
            name,
            f"{own:,.0f}",
            f"{server:,.0f}" if server else "",
            f"{elapsed:,.0f}",
            f"{own / whole:.0%}",
        )


Costs = dict[str, Cost]


def measure(bench: Bench) -> Section:
    """Both views."""
    names = bench.names()
    bodies = [(bench.pictures / name).read_bytes() for name in names]
    logs = bench.scratch / "server"
    logs.mkdir()
    with web_server.serving(bench.pictures, logs) as server:
        urls = [f"{server.url}/{name}" for name in names]
        costs: Costs = {"fetch": fetching(bench.services, urls)}
        costs |= {"decode (full)": inspecting(bodies, bench.services, Verification.FULL)}
        costs |= {"of that: sha256": hashing(bodies)}
        costs |= storing(bodies, bench.scratch / "stored")
        with database(bench.services, "stages", waits_for_disk=True) as engine:
            costs |= writing(engine, bench.services)
        aside = {"header instead of decode": inspecting(bodies, bench.services, Verification.HEADER)}
        aside |= by_format(names, bodies, bench.services)
        usage, seconds = at_work(bench, urls, names)
    whole = sum(
        MICRO * cost.own / cost.pictures for name, cost in costs.items() if not name.startswith("of ")
    )
    rows = [cost.row(name, whole) for name, cost in costs.items()]
    rows.append(("**together**", f"**{whole:,.0f}**", "", "", ""))
    text = (
        f"{len(names):,} pictures, {bench.mean_kilobytes(names):.0f} kB on average; one process, {CONNECTIONS} "
        f"connections; rows {CHUNK} at a time."
    )
    apart = listed(STAGES[:4], [cost.row(name, whole)[:4] for name, cost in aside.items()])
    lines = [text, "", *listed(STAGES, rows), "", *apart, "", *limit(usage, seconds, len(names), whole)]
    return Section("\n".join(lines))


@contextmanager
def timing(pictures: int) -> Iterator[Cost]:
    """The body's cost in processor time of this process, threads included, and by the clock."""
    cost = Cost(pictures, time.process_time(), time.perf_counter())
    yield cost
    cost.own, cost.elapsed = time.process_time() - cost.own, time.perf_counter() - cost.elapsed


def fetching(settings: Settings, urls: Sequence[str]) -> Cost:
    """Through the guarded transport, so many at once as everywhere in the benchmark."""

    async def fetch_all() -> Cost:
        transport = GuardedTransport(settings.model_copy(update={"transfers": CONNECTIONS}))
        waiting = list(urls)

        async def lane() -> None:
            while waiting:
                with transport.memory.lease() as lease:
                    visit = Visit(Candidate(0, waiting.pop(), 1), lease)
                    while await step(transport, visit, settings) is None:
                        pass  # A redirect.

        try:
            with timing(len(urls)) as cost:
                await asyncio.gather(*(lane() for _ in range(CONNECTIONS)))
        finally:
            await transport.aclose()
        return cost

    return asyncio.run(fetch_all())


def inspecting(bodies: Sequence[bytes], settings: Settings, level: Verification) -> Cost:
    """Decode, or read the header."""
    with timing(len(bodies)) as cost:
        for body in bodies:
            inspect(body, settings, level)
    return cost


def hashing(bodies: Sequence[bytes]) -> Cost:
    """What the digest takes of every level."""
    with timing(len(bodies)) as cost:
        for body in bodies:
            hashlib.sha256(body).digest()
    return cost


def by_format(names: Sequence[str], bodies: Sequence[bytes], settings: Settings) -> Costs:
    """Decoding of each format by itself."""
    costs = {}
    for extension, word in (("jpg", "JPEG"), ("webp", "WebP"), ("png", "PNG")):
        chosen = [body for name, body in zip(names, bodies, strict=True) if name.endswith(extension)]
        if chosen:
            costs[f"decode (full), {word} alone"] = inspecting(chosen, settings, Verification.FULL)
    return costs


def storing(bodies: Sequence[bytes], folder: Path) -> Costs:
    """Puts, with a sync after every chunk's worth."""
    store = open_store(folder.as_uri())
    puts, syncs = Cost(len(bodies), 0, 0), Cost(len(bodies), 0, 0)
    for first in range(0, len(bodies), CHUNK):
        part = bodies[first : first + CHUNK]
        with timing(len(part)) as put:
            for number, body in enumerate(part, first):
                store.put(f"{number:064x}.jpg", body)
        with timing(len(part)) as sync:
            store.sync()
        for total, cost in ((puts, put), (syncs, sync)):
            total.own, total.elapsed = total.own + cost.own, total.elapsed + cost.elapsed
    return {"store": puts, "sync": syncs}


def writing(engine: Engine, settings: Settings) -> Costs:
    """Chunks of 500 through all their arrows, and their messages."""
    submit_jobs(engine, create_users(engine, 1), CHUNKS, CHUNK)
    with transaction(engine) as session:
        session.execute(text("INSERT INTO workers (name, slots, version) VALUES ('w', 64, '0')"))
        assert live_slots(session)
    broker = Broker(settings)
    costs: Costs = {}

    def spend(name: str, function: Callable[[], Any], pictures: int = CHUNK) -> Any:
        before = server_seconds(engine)
        with timing(pictures) as cost:
            result = function()
        cost.database = server_seconds(engine) - before
        total = costs.setdefault(name, Cost(0, 0, 0))
        total.pictures += cost.pictures
        total.own, total.elapsed = total.own + cost.own, total.elapsed + cost.elapsed
        total.database += cost.database
        return result

    with engine.connect() as connection:
        leader = Leader(connection, settings)
        while messages := spend("queue: claim, hold", partial(dispatch, leader), 0):
            costs["queue: claim, hold"].pictures += CHUNK * len(messages)
            spend("queue: send", partial(broker.send, messages), CHUNK * len(messages))
            for message in messages:
                chunk = spend("rows: start", partial(begin, engine, message))
                settle_with(engine, chunk, spend)
    broker.close()
    return costs


def begin(engine: Engine, message: Message) -> StartedChunk:
    """queued → processing."""
    chunk = start(engine, message.chunk_id, message.attempt, "benchmark", 60)
    assert chunk is not None
    return chunk


def settle_with(engine: Engine, chunk: StartedChunk, spend: Callable[..., object]) -> None:
    """A checkpoint of all images, and the end of the chunk."""
    images = [writers.picture(chunk.fence.job_id, candidate.position) for candidate in chunk.candidates]
    fence = chunk.fence
    arrow = partial(checkpoint_chunk, fence=fence, outcomes=images, lease_seconds=60)
    spend("rows: checkpoint", partial(commit, engine, fence, arrow))
    fence = replace(fence, checkpoint=fence.checkpoint + 1)
    spend("rows: settle", partial(commit, engine, fence, partial(settle_chunk, fence=fence, outcomes=[])))


def server_seconds(engine: Engine) -> float:
    """Processor time of the database's processes for this program's connections."""
    with engine.connect() as connection:
        pids = connection.execute(
            text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        ).scalars()
        times = []
        for pid in pids:
            try:
                times.append(int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0]) / 1e9)
            except OSError:
                continue
        return sum(times)


def at_work(bench: Bench, urls: list[str], names: list[str]) -> tuple[Usage, float]:
    """The whole system over the same pictures; its usage, and its seconds at work."""
    folder = bench.scratch / "run"
    folder.mkdir()
    race = Race(urls, len(urls), CONNECTIONS, bench.settings, bench.scratch, bench.pictures, tuple(names))
    race = replace(race, folder=folder)
    race.list_file.write_text("\n".join(urls) + "\n", "utf-8")
    with watching(bench.scratch) as usage:
        _, timing = contenders.crawl(race, ["--concurrency", str(PROCESSES)])
    return usage, timing.work_seconds


def limit(usage: Usage, seconds: float, pictures: int, whole: float) -> list[str]:
    """Who uses the processors while the system works, and how far it is from what they could do."""
    spent, memory = usage.seconds(), usage.megabytes()
    rows = [
        (kind, f"{MICRO * spent[kind] / pictures:,.0f}", f"{memory[kind]:,.0f}")
        for kind in sorted(spent, key=lambda kind: -spent[kind])
    ]
    child = spent.get(CHILD, 0) * MICRO / pictures
    total = sum(spent.values()) * MICRO / pictures
    introduction = (
        f"The whole system over the same list, {PROCESSES} children, {pictures / seconds:,.0f} images/s at work; "
        "starting and stopping are in these sums, too:"
    )
    conclusion = (
        f"**The limit.** The stages alone allow {MICRO / whole:,.0f} images/s for each processor that does nothing "
        f"else. A child needs {child:,.0f} µs for a picture, all processes together {total:,.0f} µs: "
        f"{PROCESSES * MICRO / total:,.0f} images/s if {PROCESSES} processors were never idle."
    )
    return [introduction, "", *listed(PROCESSES_HEADER, rows), "", conclusion]
