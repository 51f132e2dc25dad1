"""``python -m benchmarks.partitions``: what a partitioned ``images`` costs beside a plain one, in one run.

The same rows stand in databases that differ in nothing else, and are read and written in turn by the program's
own statements. It leaves nothing behind.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Engine, text

from benchmarks.bloat import database
from benchmarks.report import machine
from benchmarks.writers import picture
from models.database import transaction
from models.recording import RESOLVED, SAME_BYTES, record_outcomes
from models.settings import read_settings
from scheduler.connect import connected

JOBS, CHUNK = 100, 500
RANGES, REMAINDERS = 20, 32
LIVE_JOBS = 8
LAYOUTS = {
    "plain": "one table",
    "lean": "the same without ix_images_crawl_job_id",
    "range": f"range, {RANGES} partitions",
    "hash": f"hash, {REMAINDERS} partitions",
}

PARTITION = """
ALTER TABLE images RENAME TO unpartitioned;
CREATE TABLE images (LIKE unpartitioned INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)
    PARTITION BY {kind} (crawl_job_id);
DROP TABLE unpartitioned;
ALTER TABLE images ALTER id ADD GENERATED ALWAYS AS IDENTITY,
    ADD CONSTRAINT pk_images PRIMARY KEY (id, crawl_job_id),
    ADD CONSTRAINT uq_images_crawl_job_id_position UNIQUE (crawl_job_id, position),
    ADD CONSTRAINT uq_images_crawl_job_id_sha256 UNIQUE (crawl_job_id, sha256),
    ADD CONSTRAINT fk_images_crawl_job_id_crawl_jobs FOREIGN KEY (crawl_job_id) REFERENCES crawl_jobs (id)
        ON DELETE CASCADE;
CREATE INDEX ix_images_crawl_job_id ON images (crawl_job_id);
CREATE TRIGGER touch_updated_at BEFORE UPDATE ON images FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
"""
OWNER = """
WITH person AS (INSERT INTO profiles (email) VALUES ('owner@example.invalid') RETURNING id),
    project AS (INSERT INTO projects (user_id, name) SELECT id, 'Large' FROM person RETURNING id)
INSERT INTO crawl_jobs (project_id, name) SELECT id, n FROM project, generate_series(1, :jobs) AS n
"""
# Chunk by chunk, each in the order of its digests, as workers insert them: that decides how full the pages of
# the unique keys are. Text is as long as in ``benchmarks.writers.picture``.
FILL = """
INSERT INTO images (crawl_job_id, chunk_id, position, original_url, final_url, filename, storage_url, width,
    height, file_size, format, sha256, perceptual_hash, orientation, fetched_at)
SELECT job, job * 20 + chunk, place, url, url, name, 's3://datasets/pixtrawl/jobs/' || job || '/' || name,
    1024, 768, 75000, 'jpeg', digest, hashint8extended(place, job), 1, now()
FROM generate_series(0, :chunks - 1) AS chunk CROSS JOIN generate_series(1, :jobs) AS job
CROSS JOIN LATERAL (
    SELECT place, sha256(convert_to('filled ' || job || '/' || place, 'UTF8')) AS digest
    FROM generate_series(chunk * :size, (chunk + 1) * :size - 1) AS place ORDER BY digest) AS candidates
CROSS JOIN LATERAL (SELECT encode(digest, 'hex') || '.jpg' AS name) AS named
CROSS JOIN LATERAL (SELECT 'https://images.photos.example/galleries/' || left(name, 24) || '/'
    || lpad(CAST(place AS text), 10, '0') || '.jpg' AS url) AS addressed
"""
SIZES = text("""
SELECT sum(pg_relation_size(oid)), sum(pg_indexes_size(oid)) FROM pg_class
WHERE oid = 'images'::regclass OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'images'::regclass)
""")


def main() -> int:
    """Fill, measure in turn, print."""
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pixtrawl-bench-"))) / "home"
        settings = read_settings(home=home, database_url=None, redis_url=None, store_url=None)
        reachable = stack.enter_context(connected(settings))
        layouts = {name: stack.enter_context(database(reachable, f"layout_{name}")) for name in LAYOUTS}
        chunks = options.images // JOBS // CHUNK
        for name, engine in layouts.items():
            seconds = prepare(engine, name, chunks)
            print(f"{name:6} filled in {seconds:.0f} s", file=sys.stderr, flush=True)
        sizes = {name: bytes_per_row(engine, options.images) for name, engine in layouts.items()}
        measured = measure(layouts, chunks * CHUNK, options.rounds)
    print(f"{machine()}. {options.images:,} images of {JOBS} jobs, {options.rounds} rounds, medians.\n")
    print(*table(measured, sizes), sep="\n")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.partitions", description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=1_000_000, help="rows in each table [1000000]")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of all tables [15]")
    options = parser.parse_args()
    if options.images < JOBS * CHUNK:
        parser.error(f"{JOBS * CHUNK:,} images are the least: a chunk for each job")
    return options


def prepare(engine: Engine, layout: str, chunks: int) -> float:
    """Bring ``images`` into its layout and fill it; how long the rows took."""
    with engine.begin() as connection:
        if layout in {"range", "hash"}:
            connection.exec_driver_sql(PARTITION.format(kind=layout.upper()))
        for statement in partitions(layout):
            connection.exec_driver_sql(statement)
        connection.execute(text(OWNER), {"jobs": JOBS})
    began = time.monotonic()
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text(FILL), {"jobs": JOBS, "chunks": chunks, "size": CHUNK})
    seconds = time.monotonic() - began
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM (ANALYZE)"))
    return seconds


def partitions(layout: str) -> Sequence[str]:
    """Statements that make the layout: ranges of as many jobs each, or remainders."""
    if layout == "lean":
        return ["DROP INDEX ix_images_crawl_job_id"]
    if layout == "range":
        bounds = ["MINVALUE", *(str(1 + JOBS * n // RANGES) for n in range(1, RANGES)), "MAXVALUE"]
        pairs = pairwise(bounds)
        return [
            f"CREATE TABLE images_{n} PARTITION OF images FOR VALUES FROM ({low}) TO ({high})"
            for n, (low, high) in enumerate(pairs)
        ]
    if layout == "hash":
        return [
            f"CREATE TABLE images_{n} PARTITION OF images FOR VALUES WITH (MODULUS {REMAINDERS}, REMAINDER {n})"
            for n in range(REMAINDERS)
        ]
    return []


def measure(layouts: Mapping[str, Engine], images: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """{what: {layout: milliseconds of each round}}. In each round every layout has its turn in everything."""
    measured: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds + 1):
        for name, engine in layouts.items():
            for what, action in actions(engine, images, number).items():
                milliseconds = timed(action)
                if number:  # The first round fills caches.
                    measured.setdefault(what, {}).setdefault(name, []).append(milliseconds)
    return measured


def actions(engine: Engine, images: int, number: int) -> Mapping[str, Callable[[], object]]:
    """What is measured; ``number`` chooses the rows. Settles are of the newest jobs, as most are."""
    live = JOBS - number % LIVE_JOBS
    start = images + number * CHUNK
    outcomes = [picture(live, position) for position in range(start, start + CHUNK)]
    old = 1 + number * 37 % (JOBS - LIVE_JOBS)
    place = number * 911 % images

    def transact(function: Callable[[Any], object]) -> Callable[[], object]:
        def action() -> object:
            with transaction(engine) as session:
                return function(session)

        return action

    bounds = {"job_id": old, "first": place, "last": place + CHUNK - 1}
    digests = {"job_id": old, "sha256": [image.sha256 for image in outcomes]}
    some_id = {"id": 1 + number * 7919 % (JOBS * images)}
    return {
        f"settle {CHUNK} images": transact(lambda session: record_outcomes(session, live, 1, outcomes)),
        f"resolved positions of {CHUNK}": transact(lambda session: session.execute(RESOLVED, bounds).all()),
        f"{CHUNK} digests looked up": transact(lambda session: session.execute(SAME_BYTES, digests).all()),
        "an image by id": transact(lambda session: session.execute(BY_ID, some_id).one_or_none()),
        f"delete a job of {images:,}": transact(lambda session: session.execute(DELETE, {"id": old})),
    }


BY_ID = text("SELECT * FROM images WHERE id = :id")
DELETE = text("DELETE FROM crawl_jobs WHERE id = :id")


def timed(action: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    began = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - began)


def bytes_per_row(engine: Engine, images: int) -> tuple[float, float]:
    """(bytes of the row, bytes in all its indexes), on average."""
    with engine.connect() as connection:
        heap, indexes = connection.execute(SIZES).one()
    return float(heap) / images, float(indexes) / images


def table(
    measured: Mapping[str, Mapping[str, Sequence[float]]], sizes: Mapping[str, tuple[float, float]]
) -> list[str]:
    """The figures as a table of Markdown."""
    lines = [
        f"| milliseconds | {' | '.join(LAYOUTS.values())} |",
        "|---" * (1 + len(LAYOUTS)) + "|",
    ]
    for what, by_layout in measured.items():
        cells = [f"{median(values):.1f}" for values in by_layout.values()]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    for index, what in enumerate(("bytes of a row", "bytes of its index entries")):
        lines.append(f"| {what} | {' | '.join(f'{pair[index]:.0f}' for pair in sizes.values())} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
