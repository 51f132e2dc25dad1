"""The scheduler alone: how fast a list of ten million URLs becomes chunks, and in how much memory."""

import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine

from benchmarks.databases import database
from benchmarks.setting import Bench, Section, listed
from models.credits import CREDITS_MAX
from models.database import transaction
from models.members import create_profile
from models.settings import Settings
from scheduler.enqueue import submit
from scheduler.leader import Leader
from scheduler.split import STEP_CANDIDATES, Splitter
from worker.store import open_store

MARKS = 5
USER = "splitter@example.invalid"
COLUMNS = ("URLs split", "URLs/s so far", "MB of this process")
ASKED = 100_000
"""URLs a second."""


def measure(bench: Bench) -> Section:
    """A row for each fifth of the list."""
    urls = bench.options.urls
    with database(bench.services, "splitting", waits_for_disk=True) as engine:
        settings = prepare(engine, bench)
        submitted = timed_submission(settings, engine, bench, urls)
        with engine.connect() as connection:
            splitter = Splitter(Leader(connection, settings), open_store(settings.store_url or ""))
            rows = list(split_all(engine, splitter, urls))
    rate = rows[-1][1]
    said = (
        f"`submit` read, checked and stored {urls:,} URLs at {urls / submitted:,.0f} a second. The splitter then "
        f"made chunks of them, a step of {STEP_CANDIDATES:,} and a commit that waits for the disk at a time, at "
        f"{rate:,.0f} a second (asked for: {ASKED:,}{'' if rate >= ASKED else '; **missed**'}):"
    )
    shown = [(f"{done:,}", f"{rate:,.0f}", f"{memory:.0f}") for done, rate, memory in rows]
    return Section("\n".join([said, "", *listed(COLUMNS, shown)]))


def prepare(engine: Engine, bench: Bench) -> Settings:
    """Settings that name the database and an empty store; somebody who can pay."""
    with transaction(engine) as session:
        create_profile(session, USER, bonus=CREDITS_MAX // 2, monthly_limit=CREDITS_MAX)
    url = engine.url.render_as_string(hide_password=False)
    own = {"database_url": url, "store_url": (bench.scratch / "splitting").as_uri(), "user": USER}
    return Settings(**bench.services.model_dump() | own)


def timed_submission(settings: Settings, engine: Engine, bench: Bench, count: int) -> float:
    """Submit a list of so many URLs; seconds."""
    given = bench.scratch / "list.txt"
    with given.open("w", encoding="utf-8") as file:
        file.writelines(f"https://images.photos.example/galleries/{n:010}.jpg\n" for n in range(count))
    began = time.perf_counter()
    submit(settings, engine, [str(given)])
    submitted = time.perf_counter() - began
    given.unlink()
    return submitted


def split_all(engine: Engine, splitter: Splitter, count: int) -> Iterator[tuple[int, float, float]]:
    """Round after round to the end; at each fifth (URLs split, URLs/s until then, MB of memory)."""
    began, marks = time.perf_counter(), [count * mark // MARKS for mark in range(1, MARKS + 1)]
    while splitter.split():
        done = position(engine)
        if marks and done >= marks[0]:
            yield done, done / (time.perf_counter() - began), resident_megabytes()
            marks = [mark for mark in marks if mark > done]
    assert position(engine) == count, "the list was not split to its end"


def position(engine: Engine) -> int:
    """How many URLs are in chunks."""
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT source_position FROM crawl_jobs").scalar_one())


def resident_megabytes() -> float:
    """Memory of this process now."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmRSS"))
