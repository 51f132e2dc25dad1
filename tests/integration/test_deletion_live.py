"""Jobs are deleted, by the command and by other services, while a real scheduler and real workers are at them."""

import json
import re
import time
from contextlib import ExitStack

import pytest

from models.database import transaction
from models.members import create_profile, create_project
from models.settings import Settings, read_settings
from scheduler.enqueue import submit
from tests.support.crawling import change, check_money, query, read_job
from tests.support.processes import Command, environment, until
from tests.support.site import Site
from tests.support.tenants import read_messages, valkey

ADA = "ada@example.invalid"


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
        redis_url=f"{services.redis_url}?virtual_host=10",
        store_url=(tmp_path / "store").as_uri(),
        chunk_size=10,
        lease_seconds=20,
        checkpoint_seconds=0.2,
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


def test_workers_let_go_of_deleted_jobs_and_nobody_loses_a_credit(engine, settings, shell, site, tmp_path):
    """One job goes by DELETE, one with its project, one by ``pixtrawl delete``, each under way; the worker is free
    for the others within seconds and says no more than that; the fourth job ends with every figure right.
    """
    with transaction(engine) as session:
        user_id = create_profile(session, ADA, bonus=1000, monthly_limit=1000)
        assert user_id is not None
        project_id = create_project(session, user_id, "going")
    jobs = []
    for number, project in enumerate((None, str(project_id), None, None)):
        urls = site.write_list(tmp_path / f"{number}.txt", free=30, held=4, missing=5)
        # The held ones come first: one chunk of each job is under way for as long as the test wants.
        urls.write_text("\n".join(reversed(urls.read_text().split())))
        jobs.append(submit(settings, engine, [str(urls)], user=ADA, project=project).job_id)
    by_row, _, by_command, staying = jobs
    with ExitStack() as stack:
        scheduler, worker = (
            stack.enter_context(Command(tmp_path / arguments[0], shell, *arguments))
            for arguments in (("scheduler",), ("worker", "--concurrency", "6"))
        )
        for job in jobs:
            until(lambda job=job: read_job(engine, job)["active_chunks"], f"job {job} under way")
        lost = worker.errors.count("chunk_lost")
        change(engine, "DELETE FROM crawl_jobs WHERE id = :id", id=by_row)
        deleted_at = time.monotonic()
        until(lambda: worker.errors.count("chunk_lost") > lost, "a worker that noticed")
        assert time.monotonic() - deleted_at < 5
        change(engine, "DELETE FROM projects WHERE id = :id", id=project_id)
        deletion = stack.enter_context(
            Command(tmp_path / "delete", shell, "delete", by_command, "--yes", "--json")
        )
        assert deletion.wait() == 0, deletion.errors
        assert read_job(engine, staying)["status"] == "running"
        site.release()
        until(lambda: read_job(engine, staying)["completed_at"], "the job that stays")
        for part in (scheduler, worker):
            part.interrupt()
            part.wait()
    assert json.loads(deletion.output)["complete"]
    job = read_job(engine, staying)
    assert (job["status"], job["valid_images"], job["failures"]) == ("completed", 34, {"http_status": 5})
    check_money(engine)
    assert query(engine, "SELECT count(*) FROM credit_transactions WHERE status = 'pending'") == [(0,)]
    assert query(engine, "SELECT id FROM crawl_jobs") == [(staying,)]
    assert not any(read_messages(settings).values())
    # A deadlock with a DELETE is tried again, and said.
    said = [
        line
        for line in worker.errors.splitlines()
        if re.search(r"\[(warning|error|critical) |Traceback", line)
    ]
    assert all("database_retry" in line for line in said), worker.errors
    assert not (tmp_path / "store" / "jobs" / str(by_command)).exists()
