"""`pixtrawl run` with real services, scheduler and workers: right outcomes, and nothing left behind."""

import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from models import audit
from models.database import transaction
from models.members import create_local_profile
from scheduler.cli import main
from scheduler.devstack import Layout
from tests.support.crawling import check_books, query
from tests.support.factories import create_profile
from tests.support.poison import PIXELS_MAX
from tests.support.processes import Command, call, environment, part_of, processes_of, until
from tests.support.site import Site

needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture
def site():
    """A site with held pictures."""
    with Site() as opened:
        yield opened


@pytest.fixture
def home(tmp_path):
    """A home with a space in its path."""
    return tmp_path / "my home"


@pytest.fixture
def external(home, services, database_url, engine):
    """A shell with services of one's own, and a lease that expires soon."""
    variables = environment(home, database_url=database_url, redis_url=services.redis_url, lease_seconds=3)
    with transaction(engine) as session:
        create_local_profile(session, "local@pixtrawl.invalid")
    return variables


def stored(folder: Path) -> int:
    """How many pictures are whole in the folder of --out."""
    return len(list((folder / "pictures").glob("*.png")))


def nothing_left(home: Path) -> bool:
    """Whether no process was left behind."""
    return not processes_of(home)


def test_run_gives_every_line_its_outcome_in_any_folder(site, home, tmp_path) -> None:
    """Images land in --out, figures agree, nothing stays; a folder of somebody's own modules is no obstacle."""
    folder = tmp_path / "somebody's project"
    folder.mkdir()
    for name in ("models", "worker", "scheduler", "celery", "alembic", "queue", "click"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    # Variables that Celery's own command line would obey.
    shell = environment(home) | {
        "APP": "wrong",
        "BROKER_URL": "amqp://wrong",
        "CELERY_BROKER_URL": "amqp://wrong",
    }
    urls = site.write_list(folder / "urls.txt", free=30, held=0, missing=5)
    urls.write_text(urls.read_text() + f"# a comment\nno URL\n{site.url}/free/0\n")
    run = call(folder, shell, "run", "urls.txt", "--out", "pictures", "--json")
    assert run.process.returncode == 0, run.errors
    job = json.loads(run.output)
    assert job["failures"] == {"http_status": 5, "invalid_url": 1, "duplicate": 1}
    assert (job["total_images"], job["valid_images"], job["credits"]["charged"]) == (37, 30, 30)
    assert stored(folder) == 30
    assert nothing_left(home)
    assert not Layout(home).record.exists()
    again = call(folder, shell, "run", "urls.txt", "--out", "pictures")
    assert again.process.returncode == 2
    assert "is completed" in again.errors
    assert "--again" in again.errors
    assert nothing_left(home)


def test_what_cannot_be_crawled_is_refused_before_anything_starts(
    home, tmp_path, monkeypatch, capsys
) -> None:
    """A wrong input or folder is one sentence and exit code 2; no home is made."""
    monkeypatch.setenv("PIXTRAWL_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    Path("photo.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0")
    Path("words.txt").write_text("no\nURL\n")
    Path("urls.txt").write_text("http://127.0.0.1/1.jpg\n")
    requests = {
        ("missing.txt",): "missing.txt does not exist",
        (".",): "is a folder",
        ("photo.jpg",): "is not text",
        ("words.txt",): "no URL",
        ("urls.txt", "--out", "words.txt"): "is a file",
        ("urls.txt", "--priority", "11"): "priority",
    }
    for arguments, words in requests.items():
        assert main(["run", *arguments]) == 2
        captured = capsys.readouterr()
        assert words in captured.err
        assert captured.out == ""
    assert not home.exists()


def test_run_ends_when_the_credits_do(site, home, tmp_path, services, database_url, session) -> None:
    """With credits for three of five images, three are collected and paid for, and the way out is said."""
    create_profile(session, "poor@example.invalid", balance=3, commit=True)
    shell = environment(
        home, database_url=database_url, redis_url=services.redis_url, user="poor@example.invalid"
    )
    site.write_list(tmp_path / "urls.txt", free=5, held=0, missing=0)
    run = call(tmp_path, shell, "run", "urls.txt", "--out", "pictures")
    assert run.process.returncode == 1, run.errors
    assert "blocked: out of credits: 3 images accepted. Add credits with" in run.errors
    assert stored(tmp_path) == 3


def test_what_failed_is_retried_and_the_same_run_ends_it(site, home, tmp_path, external, engine) -> None:
    """A site was down for some pictures: once it is up, they are collected and paid for, and only they."""
    lines = [f"{site.url}/free/{number}" for number in range(5)]
    lines += [f"{site.url}/later/{number}" for number in range(10, 13)] + [f"{site.url}/missing/0"]
    (tmp_path / "urls.txt").write_text("\n".join(lines))
    arguments = ("run", "urls.txt", "--out", "pictures", "--json")
    shell = external | {"PIXTRAWL_TRANSFER_ATTEMPTS": "1"}
    job = json.loads(call(tmp_path, shell, *arguments).output)
    assert (job["status"], job["valid_images"], job["failures"]) == ("completed", 5, {"http_status": 4})
    site.release()
    retried = call(tmp_path, shell, "retry", str(job["id"]))
    assert "3 candidates in 1 chunk to try again (3 http_status), for 3 credits at most." in retried.output
    assert "the `pixtrawl run` that made the job, lets it go on" in retried.errors
    again = json.loads(call(tmp_path, shell, *arguments).output)
    assert (again["id"], again["valid_images"], again["failures"]) == (job["id"], 8, {"http_status": 1})
    assert again["credits"] == {"held": 0, "charged": 8}
    assert stored(tmp_path) == 8
    assert sum(path.startswith("/free/") for path in site.served) == 5
    check_books(engine)


def test_run_without_redis_says_so_and_submits_nothing(home, tmp_path, external, engine) -> None:
    """A Redis that cannot be reached is one sentence and exit code 3; there is no job."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    shell = external | {"PIXTRAWL_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    (tmp_path / "urls.txt").write_text("http://127.0.0.1/1.jpg\n")
    run = call(tmp_path, shell, "run", "urls.txt")
    assert run.process.returncode == 3
    assert "check PIXTRAWL_REDIS_URL" in run.errors
    assert query(engine, "SELECT count(*) FROM crawl_jobs") == [(0,)]


@needs_proc
def test_kill_9_of_run_leaves_no_process_and_the_same_command_resumes(site, home, tmp_path) -> None:
    """Services, scheduler, worker and its children leave; what was collected is kept and nothing is done twice."""
    urls = site.write_list(tmp_path / "urls.txt", free=20, held=10)
    shell = environment(home, lease_seconds=3, checkpoint_seconds=0.2)
    arguments = ("run", urls, "--out", "pictures", "--concurrency", 1)
    with Command(tmp_path, shell, *arguments) as killed:
        until(lambda: site.held_asked() == 8 and stored(tmp_path) == 20, "half of the crawl")
        assert len(processes_of(home)) > 5
        killed.process.kill()
        killed.wait()
        until(lambda: nothing_left(home), "the end of all processes", 30)
    site.release()
    resumed = call(tmp_path, shell, *arguments, "--json")
    assert resumed.process.returncode == 0, resumed.errors
    assert "goes on where it stopped" in resumed.errors
    job = json.loads(resumed.output)
    assert (job["id"], job["valid_images"], job["failures"]) == (1, 30, {})
    assert job["credits"] == {"held": 0, "charged": 30}
    # The free pictures had arrived before the kill, and the hand-back had saved them.
    assert sum(path.startswith("/free/") for path in site.served) == 20
    assert nothing_left(home)


@needs_proc
def test_a_killed_worker_is_replaced_and_the_totals_are_right(site, home, tmp_path, external, engine) -> None:
    """kill -9 of the worker in the middle: another takes over once the lease has expired."""
    urls = site.write_list(tmp_path / "urls.txt", free=20, held=10, missing=2)
    with Command(tmp_path, external, "run", urls, "--out", "pictures", "--json") as run:
        until(lambda: site.held_asked() == 8 and stored(tmp_path) == 20, "half of the crawl")
        os.kill(part_of(home, "worker"), signal.SIGKILL)
        site.release()
        assert run.wait() == 0, run.errors
    assert "The worker was killed by SIGKILL; it is started again" in run.errors
    job = json.loads(run.output)
    assert (job["valid_images"], job["failures"]) == (30, {"http_status": 2})
    assert stored(tmp_path) == 30
    check_books(engine)
    with transaction(engine) as session:
        assert len(audit.outcomes(session, job["id"])) == 32
    assert nothing_left(home)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_job_goes_on_where_it_stopped(site, home, tmp_path, external, engine, number) -> None:
    """One signal keeps what was collected and hands the rest back at once; the same command ends the job."""
    urls = site.write_list(tmp_path / "urls.txt", free=20, held=8)
    with Command(tmp_path, external, "run", urls, "--out", "pictures") as run:
        until(lambda: site.held_asked() == 8 and stored(tmp_path) == 20, "half of the crawl")
        run.interrupt(number)
        assert run.wait(20) == 130, run.errors
    assert "The same command resumes it" in run.errors
    assert "20 images accepted" in run.errors
    assert nothing_left(home)
    check_books(engine)
    if number is signal.SIGTERM:
        return
    site.release()
    resumed = call(tmp_path, external, "run", urls, "--out", "pictures", "--json")
    assert json.loads(resumed.output)["valid_images"] == 28
    assert sum(path.startswith("/free/") for path in site.served) == 20
    check_books(engine)


@needs_proc
def test_twice_is_now(site, home, tmp_path, external) -> None:
    """A second Ctrl-C does not wait even for a part that cannot end."""
    urls = site.write_list(tmp_path / "urls.txt", free=2, held=2)
    with Command(tmp_path, external, "run", urls) as run:
        until(lambda: site.held_asked() == 2, "the crawl")
        os.kill(part_of(home, "worker"), signal.SIGSTOP)
        run.interrupt()
        until(lambda: "Once more: now" in run.errors, "the first answer")
        run.interrupt()
        assert run.wait(5) == 130
    until(lambda: nothing_left(home), "the end of all processes", 10)


def test_a_picture_that_no_decoder_ends_costs_one_candidate(site, external, engine, tmp_path) -> None:
    """Its worker's process gives up, another one goes on carefully, and everything else is accepted."""
    lines = [f"{site.url}/free/{number}" for number in range(40)]
    lines.insert(10, f"{site.url}/slow/2880")
    (tmp_path / "urls.txt").write_text("\n".join(lines))
    shell = external | {"PIXTRAWL_DECODE_SECONDS_MAX": "1", "PIXTRAWL_IMAGE_PIXELS_MAX": str(PIXELS_MAX)}
    with Command(tmp_path, shell, "run", "urls.txt", "--out", "pictures", "--json") as run:
        assert run.wait() == 0, run.errors
    report = json.loads(run.output)
    assert (report["valid_images"], report["failures"]) == (40, {"worker_lost": 1})
    assert stored(tmp_path) == 40
    check_books(engine)
