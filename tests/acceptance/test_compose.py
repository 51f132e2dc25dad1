"""docker-compose.yml and the Dockerfile, without an engine: checked, and their services run as plain processes.

What the image would hold is built from the files that the Dockerfile copies, by the command that it runs.
Host names and the store's volume are translated; commands, order, environment and health checks are the file's,
and what is done with them is what docs/operations.md says.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from graphlib import TopologicalSorter
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import jsonschema
import pytest
import redis
import yaml
from PIL import Image
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from models.settings import Settings
from scheduler.embedded_postgres import find_postgres
from scheduler.embedded_valkey import find_valkey

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DOCUMENT = (ROOT / "docs/operations.md").read_text()
DOTENV = {
    "PIXTRAWL_ALLOWED_NETWORKS": "127.0.0.0/8",
    "FLOWER_PASSWORD": "secret",
    "FLOWER_PORT": "1",
    "WORKER_CONCURRENCY": "1",
}
IMAGES = 12
START_SECONDS_MAX = 20
VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")


def interpolate(value, variables):
    """Replace ``${NAME:-default}`` and ``$$`` in every string, as Compose does after it has read the YAML."""
    if isinstance(value, dict):
        return {key: interpolate(part, variables) for key, part in value.items()}
    if isinstance(value, list):
        return [interpolate(part, variables) for part in value]
    if not isinstance(value, str):
        return value

    def replace(match):
        if match["dollar"]:
            return "$"
        return variables.get(match["name"]) or match["default"]

    return VARIABLE.sub(replace, value)


def read_compose(**variables):
    """The file as Compose sees it with these variables in .env."""
    return interpolate(yaml.safe_load((ROOT / "docker-compose.yml").read_text()), variables)


def seconds(duration):
    """``1m30s`` in seconds."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def wait_until(condition, timeout_seconds, what):
    """Ask until ``condition`` is true; fail with what was waited for."""
    deadline = time.monotonic() + timeout_seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"after {timeout_seconds} s: {what()}"
        time.sleep(0.05)
    return result


@dataclass
class Engine:
    """Does with processes what a container engine does with the services of the file."""

    services: dict
    folder: Path
    programs: Path
    database_url: str
    flower_port: int
    processes: dict[str, list[subprocess.Popen]] = field(default_factory=lambda: defaultdict(list))

    @property
    def redis_socket(self):
        """Where Redis listens: it has no TCP port here."""
        return self.folder / "redis.sock"

    @property
    def store(self):
        """What the volume is here."""
        return self.folder / "store"

    def translate(self, text):
        """What reaches another container, or leaves this one, reaches a server of this test run."""
        host = urlsplit(text).hostname if re.match(r"\w+://", text) else None
        if host in self.services:
            return {"postgres": self.database_url, "redis": f"unix://{self.redis_socket}"}[host]
        text = text.replace("file:///store", self.store.as_uri()).replace("0.0.0.0", "127.0.0.1")
        return text.replace("5555", str(self.flower_port))

    def environment(self, name):
        """The container's environment: nothing of this process' own but the programs."""
        service = self.services[name]
        values = (DOTENV if "env_file" in service else {}) | service.get("environment", {})
        path = [
            self.programs / "bin",
            Path(sys.executable).parent,
            find_postgres().parent,
            "/usr/bin",
            "/bin",
        ]
        environment = {
            "PATH": ":".join(map(str, path)),
            "PYTHONPATH": str(self.programs),
            "HOME": str(self.folder / "home"),
            **{variable: self.translate(str(value)) for variable, value in values.items()},
        }
        if name == "postgres":
            url = make_url(self.database_url)
            environment |= {"POSTGRES_USER": url.username, "POSTGRES_DB": url.database}
            environment["PGHOST"] = url.query["host"]
        return environment

    def execute(self, name, command):
        """``docker compose exec NAME COMMAND``, with the redirections of a shell; what it printed."""
        command = command.replace(" /store ", f" {self.store} ")
        environment = self.environment(name)
        done = subprocess.run(
            ["sh", "-c", command],
            env=environment,
            cwd=self.folder / "home",
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def up(self, scale):
        """``docker compose up``: each service when those that it depends on are as far as it asks."""
        needs = {name: service.get("depends_on", {}) for name, service in self.services.items()}
        for name in TopologicalSorter(needs).static_order():
            for needed, dependency in needs[name].items():
                self.await_condition(needed, dependency["condition"])
            for _ in range(scale.get(name, 1)):
                self.start(name)

    def start(self, name):
        """Start one container's process. PostgreSQL is the server of this test run."""
        command = [self.translate(word) for word in self.services[name]["command"]]
        if name == "postgres":
            return
        if name == "redis":
            # The image's own settings: its folder, and where it listens.
            command = [str(find_valkey()), *command[1:], "--dir", str(self.folder), "--port", "0"]
            command += ["--unixsocket", str(self.redis_socket)]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment(name),
                cwd=self.folder / "home",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name].append(process)

    def await_condition(self, name, condition):
        """Wait as ``depends_on`` says."""
        if condition == "service_completed_successfully":
            (process,) = self.processes[name]
            assert process.wait(START_SECONDS_MAX) == 0, self.log(name)
        elif condition == "service_healthy":
            wait_until(partial(self.healthy, name), START_SECONDS_MAX, partial(self.log, name))

    def healthy(self, name):
        """Run the service's health check once."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        if command[0] == "redis-cli":
            return self.ping_redis()
        if kind == "CMD-SHELL":
            # The test server has a socket only.
            command = ["sh", "-c", command[0].replace("127.0.0.1", "$PGHOST")]
        command = [self.translate(word) for word in command]
        limit = seconds(self.services[name]["healthcheck"]["timeout"])
        environment = self.environment(name)
        done = subprocess.run(
            command, env=environment, cwd=self.folder, capture_output=True, timeout=limit, check=False
        )
        return done.returncode == 0

    def ping_redis(self):
        """What ``redis-cli -e ping`` does: that program is in Redis' image only."""
        with redis.Redis(unix_socket_path=str(self.redis_socket)) as client:
            try:
                return client.ping()
            except redis.ConnectionError:
                return False

    def log(self, name):
        """What the service has written."""
        log = self.folder / f"{name}.log"
        return f"{name}: {log.read_text()[-3000:] if log.exists() else 'nothing'}"

    def stop(self, name):
        """``docker compose stop SERVICE``: SIGTERM to each, and exit code 0 within the grace period."""
        grace = seconds(self.services[name].get("stop_grace_period", "10s"))
        for process in self.processes[name]:
            process.send_signal(signal.SIGTERM)
        for process in self.processes.pop(name, []):
            try:
                assert process.wait(grace) == 0, self.log(name)
            finally:
                kill(process)

    def kill_all(self):
        """End what a failed test has left."""
        for processes in self.processes.values():
            for process in processes:
                kill(process)


def kill(process):
    """SIGKILL to what is left of a service: the process that was started here leads the group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """What the Dockerfile installs: the wheel of the files that it copies, built by its command."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "source"
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        *names, target = line.split()
        for name in names:
            copied = source / target / ("" if (ROOT / name).is_dir() else name)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copied, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                copied.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, copied)
    (build,) = re.findall(r"^RUN pip (wheel .+)$", DOCKERFILE, re.MULTILINE)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = folder / "wheels"
    subprocess.run([*pip, *build.replace("/wheels", str(wheels)).split()], cwd=source, check=True)
    (wheel,) = wheels.iterdir()
    installed = folder / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", installed, wheel], check=True)
    return installed


@pytest.fixture
def site(tmp_path) -> Iterator[str]:
    """A site on loopback with IMAGES pictures."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_arguments):
            pass

    folder = tmp_path / "site"
    folder.mkdir()
    for number in range(IMAGES):
        Image.effect_noise((64, 48), 20 + number).convert("RGB").save(folder / f"{number}.png")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def engine_of_containers(programs, empty_database_url, tmp_path_factory) -> Iterator[Engine]:
    """An engine for the file as it is, with an .env file that allows the test's site."""
    folder = tmp_path_factory.mktemp("up")
    (folder / "home").mkdir()
    (folder / "store").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    services = read_compose(**DOTENV)["services"]
    engine = Engine(services, folder, programs, empty_database_url, port)
    yield engine
    engine.kill_all()


def flower_status(port, password=None):
    """Status of Flower's answer."""
    credentials = tuple(password.split(":")) if password else None
    return httpx.get(f"http://127.0.0.1:{port}/", auth=credentials, timeout=10).status_code


def test_compose_file_follows_the_specification():
    """The file has only keys and values of the Compose Specification, and everything it names is in it."""
    compose = read_compose()
    jsonschema.validate(compose, json.loads((ROOT / "tests/support/compose_spec.json").read_text()))
    assert "${" not in json.dumps(compose)
    for name, service in compose["services"].items():
        for needed, dependency in service.get("depends_on", {}).items():
            checked = "healthcheck" in compose["services"][needed]
            assert checked or dependency["condition"] == "service_completed_successfully", name
        for volume in service.get("volumes", []):
            assert volume.split(":")[0] in compose["volumes"]
        assert re.search(r":\d+\.\d+", service["image"]), "an image is pinned by its version"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    builders = [name for name, service in compose["services"].items() if "build" in service]
    assert builders == ["migrate"], "services that build one tag at once get in each other's way"


def test_compose_file_agrees_with_itself(administration):
    """A changed password reaches both ends, and every variable and server setting is one that exists."""
    compose = read_compose(POSTGRES_PASSWORD="other", FLOWER_PASSWORD="secret")["services"]
    postgres = compose["postgres"]["environment"]
    ends = [postgres[f"POSTGRES_{part}"] for part in ("USER", "PASSWORD", "DB")]
    assert ends[1] == "other"
    settings = {f"PIXTRAWL_{field.upper()}" for field in Settings.model_fields}
    for name in ("migrate", "scheduler", "worker", "flower"):
        environment = compose[name]["environment"]
        url = urlsplit(environment["PIXTRAWL_DATABASE_URL"])
        assert [url.username, url.password, url.path[1:]] == ends
        assert set(environment) - settings == ({"FLOWER_BASIC_AUTH"} if name == "flower" else set())
    assert compose["flower"]["environment"]["FLOWER_BASIC_AUTH"] == "admin:secret"
    command = " ".join(compose["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command
    assert "--appendonly yes" in command
    given = [word.split("=")[0] for word in compose["postgres"]["command"][1:] if word != "-c"]
    with administration.connect() as connection:
        query = "SELECT count(*) FROM pg_settings WHERE name = ANY(%s)"
        assert connection.exec_driver_sql(query, (given,)).scalar_one() == len(given)


def test_dockerfile_gets_what_it_copies():
    """.dockerignore lets through just what is copied; the bases are one exact version; root does not run it."""
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for name in line.split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    stages = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) - stages
    assert len(bases) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", bases.pop())
    assert re.search(r"^USER (?!root|0)\S+$", DOCKERFILE.split("FROM")[-1], re.MULTILINE)


def count_rows(database_url, table):
    """Rows of a table."""
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()


def test_services_do_what_the_document_says(engine_of_containers, site):
    """Started in the file's order with two workers, the services crawl and are paid, by the document's commands.

    Flower wants its password; every process leaves with 0 on SIGTERM within its grace period; a dump restores.
    """
    engine = engine_of_containers
    lines = "".join(f"{site}/{number}.png\n" for number in range(IMAGES + 1))
    (engine.folder / "home/urls.txt").write_text(lines)
    engine.up({"worker": 2})
    started = partial(count_rows, engine.database_url, "workers")
    wait_until(lambda: started() == 2, START_SECONDS_MAX, partial(engine.log, "worker"))
    printed = {}
    for verb, name, rest in re.findall(
        r"^docker compose (exec|stop) (?:-T )?(\w+) (.+)$", DOCUMENT, re.MULTILINE
    ):
        if verb == "exec":
            printed[rest] = engine.execute(name, rest)
        else:
            for service in (rest, name):
                engine.stop(service)
    report = json.loads(printed["pixtrawl show 1 --json"])
    assert report["status"] == "completed"
    assert (report["valid_images"], report["failures"]) == (IMAGES, {"http_status": 1})
    assert report["credits"] == {"held": 0, "charged": IMAGES}
    assert len(list(engine.store.rglob("*.png"))) == IMAGES
    assert "workers: 2 chunks at once" in printed["pixtrawl doctor"]
    assert count_rows(engine.database_url, "images") == IMAGES
    statuses = [flower_status(engine.flower_port, given) for given in (None, "admin:wrong", "admin:secret")]
    assert statuses == [401, 401, 200]
    wait_until(partial(engine.healthy, "flower"), START_SECONDS_MAX, partial(engine.log, "flower"))
    for name in ("flower", "redis"):
        engine.stop(name)
