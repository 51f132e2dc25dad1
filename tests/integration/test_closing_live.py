"""Deleting a user while a real scheduler and real workers are at that user's job, and at somebody else's."""

import json
import re
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text
from structlog.testing import capture_logs

from models import closing
from models.candidates import pack_candidates
from models.database import transaction
from models.members import create_profile
from models.outcomes import Candidate
from models.settings import Settings, read_settings
from scheduler.enqueue import submit
from tests.support.crawling import change, check_books, new_job, query, queue_ready, read_job
from tests.support.processes import Command, environment, until
from tests.support.site import Site
from tests.support.tenants import Tenant, read_messages, rows_of, valkey
from worker.child import Child
from worker.crawl import crawl_chunk

ADA, BOB = "ada@example.invalid", "bob@example.invalid"


@pytest.fixture
def site():
    """A site with held pictures."""
    with Site() as opened:
        yield opened


@pytest.fixture
def shell(services, database_url, tmp_path) -> dict[str, str]:
    """The environment of a scheduler, a worker and an operator, with a queue of their own."""
    return environment(
        tmp_path / "home",
        database_url=database_url,
        redis_url=f"{services.redis_url}?virtual_host=8",
        store_url=(tmp_path / "store").as_uri(),
        chunk_size=20,
        lease_seconds=5,
        checkpoint_seconds=0.5,
        host_transfers=100,  # Its one site stands for many hosts.
    )


@pytest.fixture
def settings(shell, monkeypatch) -> Settings:
    """The same settings, here."""
    for name, value in shell.items():
        if name.startswith("PIXTRAWL_"):
            monkeypatch.setenv(name, value)
    settings = read_settings()
    valkey(settings).flushdb()
    return settings


def test_others_work_on_while_a_user_is_deleted(engine, settings, shell, site, tmp_path):
    """The user's running job, files and messages go; the other's job ends with every figure right; nobody who
    works on either says more than a word of information.
    """
    tenants = {}
    for email, free, held in ((ADA, 90, 40), (BOB, 70, 10)):
        urls = site.write_list(tmp_path / f"{email}.txt", free=free, held=held, missing=5)
        with transaction(engine) as session:
            user_id = create_profile(session, email, bonus=1000, monthly_limit=1000)
            assert user_id is not None
        # The held ones come first, so that both jobs are under way for as long as the test wants.
        urls.write_text("\n".join(reversed(urls.read_text().split())))
        job = submit(settings, engine, [str(urls)], user=email)
        tenants[email] = Tenant(email, user_id, [job.job_id])
    ada, bob = tenants[ADA], tenants[BOB]
    with ExitStack() as stack:
        parts = [
            stack.enter_context(Command(tmp_path / arguments[0], shell, *arguments))
            for arguments in (("scheduler",), ("worker", "--concurrency", "4"))
        ]
        until(
            lambda: (
                all(read_job(engine, tenant.job_ids[0])["active_chunks"] for tenant in (ada, bob))
                and read_job(engine, ada.job_ids[0])["valid_images"]
            ),
            "both jobs under way",
        )
        deletion = stack.enter_context(
            Command(tmp_path / "delete", shell, "users", "delete", ADA, "--yes", "--json")
        )
        assert deletion.wait() == 0, deletion.errors
        assert read_job(engine, bob.job_ids[0])["status"] == "running"
        site.release()
        until(lambda: read_job(engine, bob.job_ids[0])["completed_at"], "the other's job")
        for part in parts:
            part.interrupt()
            part.wait()
    assert not any(rows_of(engine, ada).values())
    report = json.loads(deletion.output)
    assert report["complete"]
    assert report["rows"]["images"] == report["objects"] - 1 > 0
    check_bob(engine, bob, tmp_path / "store")
    assert not any(read_messages(settings).values())
    for part in parts:
        assert not re.search(r"\[(warning|error|critical) |Traceback", part.errors), part.errors


def check_bob(engine, bob: Tenant, store: Path) -> None:
    """The tenant who stays has every image paid for, and the store has nothing else."""
    job = read_job(engine, bob.job_ids[0])
    assert (job["status"], job["valid_images"], job["failures"]) == ("completed", 80, {"http_status": 5})
    assert query(engine, "SELECT current_balance FROM credit_accounts") == [(920,)]
    check_books(engine)
    named = {Path(url.removeprefix("file://")) for (url,) in query(engine, "SELECT storage_url FROM images")}
    assert set((store / "jobs").rglob("*.*")) == named
    assert len(list((store / "inputs").iterdir())) == 1


def test_a_worker_whose_chunk_was_deleted_stops(engine, settings, site, tmp_path):
    """One that was not waited for writes no row, and says so in one line of information."""
    urls = [f"{site.url}/{kind}/{number}" for kind in ("free", "held") for number in range(3)]
    job = new_job(engine, [len(urls)], store_url=(tmp_path / "images").as_uri())
    packed = pack_candidates([Candidate(place, url, place + 1) for place, url in enumerate(urls)])
    change(engine, "UPDATE job_chunks SET candidates = :packed", packed=packed)
    [message] = queue_ready(engine)
    child = Child(settings)
    with capture_logs() as logs:
        worker = threading.Thread(
            target=lambda: child.run(crawl_chunk(child, message.chunk_id, message.attempt))
        )
        worker.start()
        until(lambda: site.held_asked() == 3, "transfers under way")
        with transaction(engine) as session:
            # Its lease has just run out.
            session.execute(text("UPDATE job_chunks SET lease_until = now()"))
            assert closing.delete_chunks(session, job.id, True, 10) == 1
        worker.join(20)
        assert not worker.is_alive()
        child.run(crawl_chunk(child, message.chunk_id, message.attempt))
    child.close()
    lines = [(line["event"], line["log_level"], line.get("reason")) for line in logs]
    assert lines == [("chunk_lost", "info", "it was deleted"), ("chunk_not_wanted", "info", None)]
    assert query(engine, "SELECT count(*) FROM images") == [(0,)]
