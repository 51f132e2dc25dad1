"""Promises of docs/reliability.md that need no whole system: sync before rows, and a wrong clock."""

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import event

from models.candidates import pack_candidates
from models.outcomes import Candidate
from models.settings import read_settings
from tests.support.crawling import NewJob, change, check_books, new_job, query, queue_ready
from tests.support.site import Site
from worker.child import Child
from worker.crawl import crawl_chunk
from worker.store import FolderStore, StoreError

SHIM = Path(__file__).parents[2] / "chaos" / "shifted_clock.py"


def crawl_three(engine, database_url, redis_url, folder: Path, statements: list[str] | None = None) -> NewJob:
    """Crawl a chunk of three good pictures in a child of its own, which notes its statements."""
    urls = {"database_url": database_url, "redis_url": redis_url}
    child = Child(read_settings(home=folder, allowed_networks="127.0.0.0/8", **urls))
    if statements is not None:
        event.listen(child.engine, "before_cursor_execute", lambda *call: statements.append(call[2].strip()))
    job = new_job(engine, [3], store_url=(folder / "images").as_uri())
    with Site() as site:
        urls = [Candidate(place, f"{site.url}/free/{place}", place + 1) for place in range(3)]
        change(engine, "UPDATE job_chunks SET candidates = :packed", packed=pack_candidates(urls))
        [message] = queue_ready(engine)
        child.run(crawl_chunk(child, message.chunk_id, message.attempt))
    child.close()
    return job


def test_the_store_is_synced_before_rows_name_its_objects(
    engine, services, database_url, tmp_path, monkeypatch
) -> None:
    """After a power cut no row names an object that the disk does not have: put, sync, and only then the rows."""
    steps: list[str] = []
    put, sync = FolderStore.put, FolderStore.sync

    def watched_put(self, name, body):
        steps.append("put")
        return put(self, name, body)

    def watched_sync(self) -> None:
        sync(self)
        steps.append("synced")

    monkeypatch.setattr(FolderStore, "put", watched_put)
    monkeypatch.setattr(FolderStore, "sync", watched_sync)
    job = crawl_three(engine, database_url, services.redis_url, tmp_path, steps)
    assert query(engine, "SELECT count(*) FROM images WHERE crawl_job_id = :id", id=job.id) == [(3,)]
    inserts = [place for place, step in enumerate(steps) if step.startswith("INSERT INTO images")]
    assert inserts
    for place in inserts:
        before = steps[:place]
        assert before[::-1].index("synced") < before[::-1].index("put")


def test_without_a_sync_no_row_is_written(engine, services, database_url, tmp_path, monkeypatch) -> None:
    """A disk that cannot keep what was stored parks the chunk: its objects have no rows, which costs nothing."""

    def broken(self) -> None:
        raise StoreError("the disk reports an input/output error")

    monkeypatch.setattr(FolderStore, "sync", broken)
    job = crawl_three(engine, database_url, services.redis_url, tmp_path)
    assert query(engine, "SELECT status, accepted, available_at > now() FROM job_chunks") == [
        ("pending", 0, True)
    ]
    assert query(engine, "SELECT count(*) FROM images WHERE crawl_job_id = :id", id=job.id) == [(0,)]
    check_books(engine)


def test_the_shifted_clock_is_wrong_and_jumps(tmp_path) -> None:
    """The harness's own tool: every wall clock of the process follows the file, and the monotonic one does not."""
    (tmp_path / "sitecustomize.py").write_bytes(SHIM.read_bytes())
    (tmp_path / "offset").write_bytes(struct.pack("d", -7200.0))
    program = (
        "import datetime, time; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(tmp_path), "CHAOS_CLOCK": str(tmp_path / "offset")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    wrong = time.time() - 7200
    assert [abs(float(clock) - wrong) < 60 for clock in shown[:2]] == [True, True]
    assert abs(float(shown[2]) - time.monotonic()) < 60
