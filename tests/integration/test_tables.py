"""From a table to chunks: submitted by the command line, split by the scheduler, on real PostgreSQL and files."""

import gzip
import json
import threading

import pytest

from models.candidates import unpack_candidates
from models.database import transaction
from models.settings import read_settings
from models.splitting import splittable_jobs
from scheduler.cli import main
from scheduler.enqueue import submit
from scheduler.leader import leadership
from scheduler.split import Splitter
from tests.support.crawling import change, query, read_job
from tests.support.factories import create_profile
from tests.support.table_files import write_table
from worker.store import open_store
from worker.tables.formats import Format

USER = "ada@example.invalid"
RECORDS = [{"url": f"http://images.test/{n}.jpg", "caption": f"Owl {n}"} for n in range(12_000)]


@pytest.fixture
def settings(monkeypatch, services, database_url, session, tmp_path):
    """Settings of the command line and of the scheduler; their user has credits."""
    create_profile(session, USER, balance=100_000, commit=True)
    monkeypatch.setenv("PIXTRAWL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIXTRAWL_STORE_URL", (tmp_path / "store").as_uri())
    monkeypatch.setenv("PIXTRAWL_DATABASE_URL", database_url)
    monkeypatch.setenv("PIXTRAWL_REDIS_URL", services.redis_url)
    monkeypatch.setenv("PIXTRAWL_USER", USER)
    monkeypatch.chdir(tmp_path)
    return read_settings()


@pytest.fixture
def splitter(settings):
    """The leader's splitter, in this process."""
    with leadership(settings, threading.Event()) as leader:
        assert leader is not None
        yield Splitter(leader, open_store(settings.store))


def candidates_of(engine, job_id):
    """All candidates in a job's chunks, in their order."""
    statement = """SELECT candidates, CAST(image_range->>'start' AS int) FROM job_chunks
        WHERE job_id = :id ORDER BY chunk_index"""
    rows = query(engine, statement, id=job_id)
    return [candidate for packed, start in rows for candidate in unpack_candidates(bytes(packed), start)]


def test_nothing_is_missing_or_double_whoever_repeats_a_step(engine, settings, splitter, tmp_path):
    """A step that is made twice, as after a crash, or by two schedulers, is written once, with its metadata."""
    (tmp_path / "owls.csv.gz").write_bytes(gzip.compress(write_table(Format.CSV, RECORDS)))
    job_id = submit(settings, engine, ["owls.csv.gz"]).job_id
    steps = 0
    while True:
        with transaction(engine) as session:
            jobs = splittable_jobs(session)
        if not jobs:
            break
        assert splitter.step(jobs[0])
        assert not splitter.step(jobs[0])
        steps += 1
    assert steps == 2
    found = candidates_of(engine, job_id)
    assert [(c.position, c.url, c.line) for c in found] == [
        (n, record["url"], n + 2) for n, record in enumerate(RECORDS)
    ]
    assert found[7].about.metadata == {"caption": "Owl 7"}
    job = read_job(engine, job_id)
    assert (job["source_kind"], job["source_state"], job["source_position"]) == (
        "url_table",
        "exhausted",
        12_000,
    )


def test_a_url_twice_in_a_job_is_fetched_once(engine, settings, splitter, tmp_path):
    """In one step or in two; a refused step has seen nothing, and the keys go when the source has ended."""
    records = [
        *RECORDS[:10_500],
        {"url": "HTTP://images.test/7.jpg#top", "caption": "again"},
        *RECORDS[10_400:10_501],
    ]
    (tmp_path / "owls.jsonl").write_bytes(write_table(Format.JSONL, [records[3], *records]))
    job_id = submit(settings, engine, ["owls.jsonl"], unique_urls=True).job_id
    with transaction(engine) as session:
        [job] = splittable_jobs(session)
    change(engine, "UPDATE crawl_jobs SET source_step = 1")
    assert not splitter.step(job)
    assert query(engine, "SELECT count(*) FROM seen_keys") == [(0,)]
    change(engine, "UPDATE crawl_jobs SET source_step = 0")
    while splitter.split():
        pass
    repeats = {
        c.position: c.duplicate_of for c in candidates_of(engine, job_id) if c.duplicate_of is not None
    }
    assert repeats == {4: 0, 10_501: 8} | {10_502 + n: 10_401 + n for n in range(100)}
    assert query(engine, "SELECT count(*) FROM seen_keys") == [(10_501,)]


def test_a_table_that_is_damaged_later_ends_there(engine, settings, splitter, tmp_path):
    """What stands before the damage is crawled, the rest has its outcome, and the job says why it ended early."""
    (tmp_path / "owls.csv").write_bytes(write_table(Format.CSV, RECORDS))
    job_id = submit(settings, engine, ["owls.csv"]).job_id
    [copy] = (tmp_path / "store" / "inputs").glob("*.rows")
    whole = copy.read_bytes()
    middle = len(whole) // 2
    copy.write_bytes(whole[:middle] + b"owls" + whole[middle + 4 :])
    while splitter.split():
        pass
    job = read_job(engine, job_id)
    read = len(candidates_of(engine, job_id))
    assert 5000 <= read < 7000
    assert read % 1000 == 0
    assert (job["source_state"], job["total_images"]) == ("exhausted", 12_000)
    assert job["failures"] == {"cancelled": 12_000 - read}
    assert job["source_detail"].startswith(f"its input breaks off after {read:,} candidates: ")
    assert "is damaged" in job["source_detail"]


def test_a_table_that_breaks_off_is_a_job_that_says_so(engine, settings, capsys, tmp_path):
    """``submit`` says where, and ``show`` in words and in JSON; the other input is read whole."""
    content = gzip.compress(write_table(Format.CSV, RECORDS))
    (tmp_path / "owls.csv.gz").write_bytes(content[: len(content) // 2])
    (tmp_path / "more.txt").write_text("http://images.test/more.jpg\n")
    assert main(["submit", "owls.csv.gz", "more.txt", "--json"]) == 0
    job = json.loads(capsys.readouterr().out)
    detail = job["source_detail"]
    assert detail.startswith("owls.csv.gz breaks off after ")
    assert detail.endswith(" rows: its gzip data is cut off")
    assert 4000 < job["total_images"] < 8000
    assert main(["submit", "owls.csv.gz", "more.txt"]) == 0
    assert f"{detail}. What was read before is crawled." in capsys.readouterr().err
    assert main(["show", str(job["id"])]) == 0
    assert "its gzip data is cut off" in " ".join(capsys.readouterr().out.split())
    files = read_job(engine, job["id"])["source"]["files"]
    assert [(file["name"], file["candidates"], "broken" in file) for file in files] == [
        ("owls.csv.gz", job["total_images"] - 1, True),
        ("more.txt", 1, False),
    ]


REFUSED = {
    "cut.csv.gz": "cut.csv.gz cannot be read: its gzip data is cut off.",
    "columns.csv": "columns.csv does not say which column has the URLs: name one with --url-column (it has a, b).",
    "nothing.csv": "There is no URL in nothing.csv: a row wants one http:// or https:// URL.",
    "list.txt": "--url-column is for tables, and a list of URLs has no columns: name its --format.",
}


def test_a_table_that_cannot_be_read_is_refused(engine, settings, capsys, tmp_path):
    """With exit code 2, one sentence, no row and no object."""
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(write_table(Format.CSV, RECORDS[:5]))[:-20][:12])
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "nothing.csv").write_text("url,b\nx,2\n")
    (tmp_path / "list.txt").write_text("http://images.test/1.jpg\n")
    for name, sentence in REFUSED.items():
        options = ["--url-column", "url"] if name == "list.txt" else []
        assert main(["submit", name, *options]) == 2
        assert capsys.readouterr().err == f"pixtrawl: {sentence}\n"
    assert query(engine, "SELECT count(*) FROM crawl_jobs") == [(0,)]
    assert not list((tmp_path / "store").rglob("*.rows"))


def test_the_same_table_is_the_same_job(engine, settings, tmp_path):
    """Whatever its format and compression say of the same rows; other options or rows are another job."""
    (tmp_path / "owls.tsv").write_bytes(write_table(Format.TSV, RECORDS[:9]))
    (tmp_path / "owls.csv.gz").write_bytes(gzip.compress(write_table(Format.CSV, RECORDS[:9])))
    (tmp_path / "more.csv").write_bytes(write_table(Format.CSV, RECORDS[:8]))
    first = submit(settings, engine, ["owls.tsv"], reuse=True)
    again = submit(settings, engine, ["owls.csv.gz"], reuse=True)
    assert (again.job_id, again.existing) == (first.job_id, True)
    for inputs, options in ((["more.csv"], {}), (["owls.tsv"], {"unique_urls": True})):
        assert not submit(settings, engine, inputs, reuse=True, **options).existing
