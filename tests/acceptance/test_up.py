"""`pixtrawl up`, and what other terminals do meanwhile: env, submit, a worker of Celery's own, doctor."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from models.settings import Settings
from scheduler.commands.doctor import State, examine
from tests.support.processes import Command, call, environment, part_of, processes_of, until
from tests.support.site import Site

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
CELERY = Path(sys.executable).with_name("celery")


def test_up_serves_other_terminals_and_replaces_what_dies(tmp_path) -> None:
    """Flower wants its password, jobs complete, a killed worker is replaced, Ctrl-C ends all with code 0."""
    home = tmp_path / "home"
    shell = environment(home, lease_seconds=3)
    missing = call(tmp_path, shell, "env")
    assert (missing.process.returncode, missing.output) == (3, "")
    assert "pixtrawl up" in missing.errors
    with Site() as site, Command(tmp_path, shell, "up", "--concurrency", 1) as up:
        address, user, password = until(
            lambda: re.search(r"(http://127.0.0.1:\d+)  user (\w+)  password (\S+)", up.output), "the banner"
        ).groups()
        assert (home / "flower-password").stat().st_mode & 0o777 == 0o600
        until(lambda: up.errors.count(" ready.") == 1, "a worker")
        until(lambda: call(tmp_path, shell, "healthcheck").process.returncode == 0, "health")
        first = part_of(home, "worker")
        os.kill(first, signal.SIGKILL)
        check_env(tmp_path, shell)
        until(lambda: up.errors.count(" ready.") == 2, "another worker")
        assert "pixtrawl │ The worker was killed by SIGKILL; it is started again" in up.errors
        assert part_of(home, "worker") != first
        urls = site.write_list(tmp_path / "urls.txt", free=10, held=0)
        submitted = call(tmp_path, shell, "submit", urls, "--json")
        watched = call(tmp_path, shell, "watch", json.loads(submitted.output)["id"], "--json")
        assert json.loads(watched.output)["valid_images"] == 10, watched.errors
        check_flower(address, (user, password))
        up.interrupt()
        assert up.wait(20) == 0, up.errors
    assert processes_of(home) == {}


def check_flower(address: str, credentials: tuple[str, str]) -> None:
    """Strangers see nothing; the owner sees the worker."""
    with httpx.Client(base_url=address, trust_env=False, timeout=30) as client:
        assert client.get("/workers").status_code == 401
        assert client.get("/workers", auth=("pixtrawl", "wrong")).status_code == 401
        until(lambda: "worker-" in client.get("/workers", auth=credentials).text, "the worker in Flower")


def check_env(folder: Path, shell: dict[str, str]) -> None:
    """The export lines are what a shell needs for Celery's own worker, which then runs beside ours."""
    lines = call(folder, shell, "env").output
    variables = json.loads(call(folder, shell, "env", "--json").output)
    printed = subprocess.run(
        ["sh", "-c", 'eval "$1" && printf %s "$PIXTRAWL_DATABASE_URL"', "sh", lines],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout == variables["PIXTRAWL_DATABASE_URL"]
    assert Path(variables["PGHOST"]).is_dir()
    worker = ("-A", "worker.app", "worker", "--concurrency", "1", "-n", "guest@%h")
    with Command(folder, shell | variables, *worker, program=[CELERY]) as guest:
        until(lambda: "guest@" in guest.errors and " ready." in guest.errors, "Celery's own worker")
        guest.interrupt(signal.SIGTERM)
        assert guest.wait(20) == 0, guest.errors


def test_a_taken_port_is_one_sentence(tmp_path) -> None:
    """The port of Flower is checked before anything starts."""
    with Site() as site:
        port = site.url.rpartition(":")[2]
        up = call(tmp_path, environment(tmp_path / "home"), "up", "--flower-port", port)
    assert up.process.returncode == 2
    assert f"Port {port} of 127.0.0.1 cannot be used" in up.errors
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("part", ["worker", "scheduler"])
def test_a_part_without_its_services_waits_and_leaves_when_told(part, tmp_path, database_url) -> None:
    """Redis away at the start is said and waited for; SIGTERM ends it with code 0 within five seconds."""
    away = f"redis+socket://{tmp_path}/nothing.sock"
    shell = environment(tmp_path / "home", database_url=database_url, redis_url=away)
    with Command(tmp_path, shell, part) as command:
        until(lambda: "broker_away" in command.errors, "the word about it")
        command.interrupt(signal.SIGTERM)
        assert command.wait(5) == 0, command.errors


def test_doctor_finds_what_is_wrong_and_says_what_to_do(tmp_path, services, database_url) -> None:
    """Whole services pass; each broken one fails alone, with a way out."""
    given = {
        "home": tmp_path / "home",
        "database_url": database_url,
        "redis_url": services.redis_url,
        "user_agent": "Test (ada@example.invalid)",
    }
    checks = {check.name: check for check in examine(Settings(**given))}
    assert not [check for check in checks.values() if check.state is State.FAILED]
    assert checks["schema"].state is State.OK
    assert checks["Redis"].found.endswith("noeviction")
    assert checks["workers"].state is checks["scheduler"].state is State.WARNING
    broken = {
        "PostgreSQL": {"database_url": f"postgresql:///none?host={tmp_path}"},
        "Redis": {"redis_url": f"redis+socket://{tmp_path}/none.sock"},
        f"store file://{tmp_path}/file": {"store_url": f"file://{tmp_path}/file"},
        f"home {tmp_path}/file": {"home": tmp_path / "file"},
    }
    (tmp_path / "file").touch()
    for name, change in broken.items():
        failed = [check for check in examine(Settings(**given | change)) if check.state is State.FAILED]
        assert name in {check.name for check in failed}
        assert all(check.advice for check in failed)
