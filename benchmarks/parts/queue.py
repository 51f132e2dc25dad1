"""The scheduler alone: splitting a list of ten million URLs, and deciding while a million chunks wait."""

import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from sqlalchemy import Engine

from benchmarks.databases import database
from benchmarks.filling import Size, fill
from benchmarks.hot_paths import Paths
from benchmarks.setting import Bench, Section, listed
from models.credits import CREDITS_MAX
from models.database import transaction
from models.members import create_profile
from models.settings import Settings
from scheduler.enqueue import submit
from scheduler.leader import Leader
from scheduler.split import Splitter
from worker.store import open_store

DECISIONS = 200
MARKS = 5
USER = "splitter@example.invalid"
SPLITTING = ("URLs split", "URLs/s so far", "MB of this process")
DECIDING = ("decision", "times", "median ms", "p99 ms", "longest ms")


def measure(bench: Bench) -> Section:
    """Both."""
    urls, pending = bench.options.urls, bench.options.pending
    with database(bench.services, "splitting", waits_for_disk=True) as engine:
        submitted, rows = split(engine, bench, urls)
    with database(bench.services, "deciding") as engine:
        size = size_of(pending)
        fill(engine, size)
        decisions = decide(engine)
    submission = (
        f"`submit` read, checked and stored {urls:,} URLs at {urls / submitted:,.0f} a second. The splitter then "
        "made chunks of them:"
    )
    waiting = (
        f"With {size.pending:,} chunks of {size.users:,} users and {size.jobs:,} jobs waiting: the claim finds the "
        "sixteen that run next; a dispatch is a claim, the holds and the statement that queues them."
    )
    decided = listed(DECIDING, [timed(name, times) for name, times in decisions.items()])
    lines = [submission, "", *listed(SPLITTING, rows), "", waiting, "", *decided]
    return Section("\n".join(lines))


def split(engine: Engine, bench: Bench, count: int) -> tuple[float, list[tuple[str, str, str]]]:
    """Seconds of the submission, and how splitting goes: so many URLs, their rate, memory."""
    url = engine.url.render_as_string(hide_password=False)
    store_url = (bench.scratch / "splitting").as_uri()
    settings = bench.services.model_copy(update={"store_url": store_url, "user": USER})
    settings = Settings(**settings.model_dump() | {"database_url": url})
    with transaction(engine) as session:
        create_profile(session, USER, bonus=CREDITS_MAX // 2, monthly_limit=CREDITS_MAX)
    given = bench.scratch / "list.txt"
    with given.open("w", encoding="utf-8") as file:
        file.writelines(f"https://images.photos.example/galleries/{n:010}.jpg\n" for n in range(count))
    began = time.perf_counter()
    submit(settings, engine, [str(given)])
    submitted = time.perf_counter() - began
    given.unlink()
    with engine.connect() as connection:
        splitter = Splitter(Leader(connection, settings), open_store(store_url))
        return submitted, list(split_all(engine, splitter, count))


def split_all(engine: Engine, splitter: Splitter, count: int) -> Iterator[tuple[str, str, str]]:
    """Round after round to the end; a row at each fifth."""
    began, marks = time.perf_counter(), [count * mark // MARKS for mark in range(1, MARKS + 1)]
    while splitter.split():
        done = position(engine)
        if done >= marks[0]:
            rate = done / (time.perf_counter() - began)
            yield f"{done:,}", f"{rate:,.0f}", f"{resident_megabytes():.0f}"
            marks = [mark for mark in marks if mark > done] or [count + 1]
    assert position(engine) == count, "the list was not split to its end"


def position(engine: Engine) -> int:
    """How many URLs are in chunks."""
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT source_position FROM crawl_jobs").scalar_one())


def resident_megabytes() -> float:
    """Memory of this process now."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))


def size_of(pending: int) -> Size:
    """The crowd of a thousand users, or a smaller one of the same shape; hardly anything beside it."""
    share = max(1, 1_000_000 // pending)
    return Size(
        chunks=10,
        transactions=1000,
        waiting=0,
        messages=10,
        ended_jobs=10,
        users=max(20, 1000 // share),
        jobs=max(20, 3000 // share),
        pending=pending,
        stopped=max(1, 1000 // share),
    )


def decide(engine: Engine) -> dict[str, list[float]]:
    """Milliseconds of each claim and dispatch; what is queued is settled, so that few are in flight."""
    taken: dict[str, list[float]] = {}

    def around(name: str, function):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202 - see Around
        began = time.perf_counter()
        result = function()
        taken.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        return result

    paths = Paths(engine, 1, around)
    paths.prepare("INSERT INTO workers (name, slots, version) VALUES ('benchmark', 64, '0')")
    flight = []
    for _ in range(DECISIONS):
        flight += paths.dispatch()
        while len(flight) > 100:
            paths.settle(flight.pop(0))
    return {name: times for name, times in taken.items() if name.startswith(("claim", "dispatch"))}


def timed(name: str, times: list[float]) -> tuple[str, ...]:
    """A row of milliseconds."""
    ordered = sorted(times)
    late = ordered[round(0.99 * (len(ordered) - 1))]
    return name, f"{len(times)}", f"{median(times):.1f}", f"{late:.1f}", f"{ordered[-1]:.1f}"
