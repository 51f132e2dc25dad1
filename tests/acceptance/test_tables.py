"""A table crawled to its end with real processes: what it says of an image is kept, and held to."""

import hashlib
import json
import os
import signal
from functools import partial

from models.candidates import unpack_candidates
from models.database import transaction
from models.members import create_local_profile
from tests.support.crawling import check_books, query
from tests.support.fleet import Fleet
from tests.support.processes import call, environment, until
from tests.support.site import Site, picture
from tests.support.table_files import parquet_of


def test_a_table_is_crawled_and_resumed_as_the_same_job(services, database_url, engine, tmp_path) -> None:
    """Captions and licences are in the images' rows, wrong bytes a mismatch, a URL twice is asked for once."""
    shell = environment(tmp_path / "home", database_url=database_url, redis_url=services.redis_url)
    with transaction(engine) as session:
        create_local_profile(session, "local@pixtrawl.invalid")
    with Site() as site:
        urls = [f"{site.url}/free/{number}" for number in (0, 1, 2, 0)]
        digests = [hashlib.sha256(picture(number)).hexdigest() for number in (0, 2, 2, 0)]
        columns = {
            "URL": [*urls, None],
            "TEXT": [*"abcd", None],
            "LICENSE": ["CC0"] * 5,
            "sum": [*digests, None],
        }
        (tmp_path / "laion.parquet").write_bytes(parquet_of(columns))
        options = ("run", "laion.parquet", "--hash-column", "sum", "--unique-urls", "--json")
        run = call(tmp_path, shell, *options)
        assert run.process.returncode == 0, run.errors
        assert [path for _, path in site.log] == ["/free/0", "/free/1", "/free/2"]
        again = call(tmp_path, shell, *options)
    job = json.loads(run.output)
    assert job["failures"] == {"mismatch": 1, "duplicate": 1, "invalid_url": 1}
    found = query(engine, "SELECT position, licence, metadata FROM images ORDER BY position")
    assert found == [(0, "CC0", {"TEXT": "a"}), (2, "CC0", {"TEXT": "c"})]
    details = dict(query(engine, "SELECT reason, detail FROM failures"))
    assert details["invalid_url"] == "row 5: its URL is missing"
    assert details["duplicate"] == "the same URL as candidate 0"
    assert again.process.returncode == 2
    assert f"Job {job['id']} 'laion.parquet' is completed" in again.errors
    check_books(engine)


def test_a_scheduler_killed_while_it_splits_a_table_costs_nothing(
    services, database_url, engine, tmp_path
) -> None:
    """Every row is in one chunk, at its own place, whatever the step that was under way."""
    with transaction(engine) as session:
        create_local_profile(session, "local@pixtrawl.invalid")
    rows = 120_000
    lines = "\n".join(f"http://site.test/{number},{number}" for number in range(rows))
    (tmp_path / "list.csv").write_text(f"url,caption\n{lines}\n")
    with Fleet(tmp_path, database_url, services.redis_url) as fleet:
        submitted = call(tmp_path, fleet.shell, "submit", "list.csv", "--unique-urls", "--json")
        assert submitted.process.returncode == 0, submitted.errors
        begun = "SELECT 1 FROM crawl_jobs WHERE source_position >= :rows"
        for step in (10_000, 50_000):
            scheduler = fleet.scheduler()
            until(partial(query, engine, begun, rows=step), "a step")
            os.kill(scheduler.process.pid, signal.SIGKILL)
            scheduler.process.wait()
        [(state,)] = query(engine, "SELECT source_state FROM crawl_jobs")
        assert state == "splitting"
        fleet.scheduler()
        until(lambda: query(engine, "SELECT 1 FROM crawl_jobs WHERE source_state = 'exhausted'"), "the end")
    packed = query(
        engine, "SELECT candidates, CAST(image_range->>'start' AS int) FROM job_chunks ORDER BY chunk_index"
    )
    found = [candidate for chunk, start in packed for candidate in unpack_candidates(bytes(chunk), start)]
    assert [candidate.position for candidate in found] == list(range(rows))
    assert [candidate.url for candidate in found] == [f"http://site.test/{number}" for number in range(rows)]
    assert {candidate.duplicate_of for candidate in found} == {None}
