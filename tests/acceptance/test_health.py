"""`pixtrawl healthcheck` beside a real worker and scheduler: well, consuming nothing, stopped; without services."""

import json
import signal
import socket
import sys

import pytest
from celery import Celery

from models.settings import read_settings
from tests.support.crawling import change, query
from tests.support.fleet import Fleet, ended, new_crawl
from tests.support.processes import call, environment, until
from tests.support.site import Site
from worker.app import QUEUE, configuration

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


def health(folder, shell, *options) -> tuple[int, str]:
    """Exit code and words of one check."""
    command = call(folder, shell, "healthcheck", *options)
    assert command.errors == ""
    return command.process.returncode, command.output.strip()


def test_health_is_progress(engine, services, database_url, tmp_path) -> None:
    """A worker that beats and takes nothing of what waits is ill; so is one that is stopped, and a scheduler."""
    app = Celery(set_as_current=False)
    app.config_from_object(configuration(read_settings(redis_url=services.redis_url)))
    checks = tmp_path / "checks"
    with Site() as site, Fleet(tmp_path, database_url, services.redis_url) as fleet, app:
        assert health(checks, fleet.shell)[0] == 1
        scheduler, worker = fleet.both()
        until(lambda: health(checks, fleet.shell)[0] == 0, "health")
        name = f"worker-{worker.process.pid}@{socket.gethostname()}"
        app.control.cancel_consumer(QUEUE, destination=[name], reply=True)
        job = new_crawl(engine, [f"{site.url}/free/1"], (tmp_path / "images").as_uri())
        until(lambda: queued(engine), "a message")
        assert health(checks, fleet.shell, "--worker")[0] == 0  # It has not waited for long.
        change(engine, "UPDATE job_chunks SET queued_at = now() - interval '40 s'")
        change(engine, "UPDATE workers SET active_at = now() - interval '45 s'")
        code, words = health(checks, fleet.shell, "--worker")
        assert (code, "took nothing for 4" in words, "messages wait (1)" in words) == (1, True, True), words
        app.control.add_consumer(QUEUE, destination=[name], reply=True)
        assert ended(engine, job)["valid_images"] == 1
        until(lambda: health(checks, fleet.shell, "--worker")[0] == 0, "health")
        worker.interrupt(signal.SIGSTOP)
        scheduler.interrupt(signal.SIGSTOP)
        change(engine, "UPDATE leadership SET round_at = now() - interval '70 s'")
        until(lambda: health(checks, fleet.shell, "--worker")[0] == 1, "illness")
        code, words = health(checks, fleet.shell, "--scheduler", "--json")
        assert code == 1
        assert "finished a round" in json.loads(words)["checks"][0]["reason"]


def queued(engine) -> bool:
    """Whether a chunk waits for its message to be taken."""
    return query(engine, "SELECT count(*) FROM job_chunks WHERE queued_at IS NOT NULL") == [(1,)]


def test_a_service_that_is_away_is_no_ill_health(engine, database_url, tmp_path) -> None:
    """Without PostgreSQL or Redis there is a sentence, and nothing to restart."""
    away = environment(
        tmp_path, database_url=f"postgresql:///none?host={tmp_path}", redis_url="redis://127.0.0.1:1"
    )
    code, words = health(tmp_path, away, "--json")
    document = json.loads(words)
    assert (code, document["healthy"]) == (0, True)
    assert [check["part"] for check in document["checks"]] == ["worker", "scheduler"]
    assert all("PostgreSQL does not answer" in check["reason"] for check in document["checks"])

    name = f"w@{socket.gethostname()}/1"
    change(
        engine,
        """INSERT INTO workers (name, slots, version, active_at) VALUES (:name, 1, '0', now() - interval '1 h')""",
        name=name,
    )
    job = new_crawl(engine, ["http://images.test/"], "file:///store")
    change(
        engine,
        "UPDATE job_chunks SET attempt = 1, queued_at = now() - interval '1 h' WHERE job_id = :id",
        id=job.id,
    )
    without_redis = environment(tmp_path, database_url=database_url, redis_url="redis://127.0.0.1:1")
    assert health(tmp_path, without_redis, "--worker") == (
        0,
        f"Redis does not answer; {name} waits for it.",
    )
