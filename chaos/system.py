"""A whole Pixtrawl on loopback: servers behind proxies, a web site, schedulers, workers, users. All ends with it.

Everything but the harness's own look at the database goes through the proxies.
"""

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import SecretStr
from sqlalchemy import Engine, Row, text
from sqlalchemy.exc import DBAPIError

from chaos.processes import PROGRAM, ChaosError, Part, until
from chaos.proxy import Proxy
from chaos.servers import ANSWER_SECONDS_MAX, open_postgres, open_valkey, start
from chaos.site import Line, Site
from models.credits import CREDITS_MAX
from models.database import connection_lost, make_engine, migrate, transaction
from models.members import create_profile
from models.settings import Settings, read_settings
from tests.support.poison import PIXELS_MAX

USERS = ("ada@example.invalid", "bob@example.invalid", "eve@example.invalid")
SETTINGS: dict[str, Any] = {
    "lease_seconds": 3,
    "checkpoint_seconds": 0.5,
    "chunk_size": 20,
    "transfers": 4,
    "decode_seconds_max": 3,
    "image_pixels_max": PIXELS_MAX,
}
"""The shortest lease and small chunks: what takes minutes in production takes seconds here."""
WORKERS = 2
CONCURRENCY = 2


@dataclass(frozen=True, slots=True)
class Job:
    """A job whose submission was acknowledged, and what each of its candidates must come to."""

    id: int
    user: str
    lines: Sequence[Line]


class System:
    """A context manager. Faults reach into all of it; ``mend`` makes it whole again.

    ``full`` tells faults to last as long as they do in the world outside, rather than seconds. With ``keep`` the
    folder of a system that ``failed`` is left for somebody to look at. ``reluctant`` says at the end which part
    did not leave in peace when it was asked to.
    """

    def __init__(self, *, full: bool = False, keep: bool = False, **settings: Any) -> None:
        self.full = full
        self.keep = keep
        self.failed = False
        self.users = USERS
        self.acknowledged: list[Job] = []
        self.reluctant: list[str] = []
        self.overrides = SETTINGS | settings
        self.stack = ExitStack()
        self.workers: list[Part] = []
        self.schedulers: list[Part] = []

    def __enter__(self) -> Self:
        with self.stack:
            self._build()
            self.stack = self.stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def _build(self) -> None:
        # Not a test's own folder: a socket's path has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="pixtrawl-chaos-"))
        self.stack.callback(self._remove_folder)
        self.postgres, self.valkey = open_postgres(self.folder), open_valkey(self.folder)
        for server in (self.postgres, self.valkey):
            self.stack.callback(server.stop)
            start(server)
        self.database = self.stack.enter_context(Proxy(self.postgres.socket))
        self.broker = self.stack.enter_context(Proxy(self.valkey.socket))
        self.site = self.stack.enter_context(Site())
        self.settings = self.settings_behind(self.database, self.broker)
        self.engine = self.stack.enter_context(engine(self.postgres.url, pool_size=4))
        migrate(self.postgres.url)
        for email in USERS:
            self.create_user(email)
        for _ in range(WORKERS):
            self.add_worker()
        self.add_scheduler()
        self.stack.callback(self._stop_parts)
        self.mend()

    def settings_behind(self, database: Proxy, broker: Proxy) -> Settings:
        """Settings of somebody who reaches the servers through these proxies."""
        address = f"127.0.0.1:{database.port}/pixtrawl?sslmode=disable&gssencmode=disable"
        return read_settings(
            home=self.folder / "home",
            database_url=SecretStr(f"postgresql://postgres@{address}"),
            redis_url=SecretStr(f"redis://127.0.0.1:{broker.port}/0"),
            store_url=(self.folder / "store").as_uri(),
            allowed_networks="127.0.0.0/8",
            host_transfers=100,  # The one site stands for many hosts.
            **self.overrides,
        )

    @property
    def store(self) -> Path:
        """The folder of inputs and images."""
        return self.folder / "store"

    @property
    def parts(self) -> list[Part]:
        """Every scheduler and worker."""
        return [*self.schedulers, *self.workers]

    def create_user(self, email: str, bonus: int = 1_000_000) -> uuid.UUID:
        """A user with credits and without a monthly limit that matters."""
        with transaction(self.engine) as session:
            user_id = create_profile(session, email, bonus=bonus, monthly_limit=CREDITS_MAX)
        if user_id is None:
            raise ChaosError(f"there is a user {email} already")
        return user_id

    def add_worker(self, settings: Settings | None = None) -> Part:
        """One more worker, not started yet; ``settings`` other than those of all."""
        part = self._part("worker", len(self.workers), settings, "--concurrency", str(CONCURRENCY))
        self.workers.append(part)
        return part

    def add_scheduler(self) -> Part:
        """One more scheduler, not started yet."""
        part = self._part("scheduler", len(self.schedulers), None)
        self.schedulers.append(part)
        return part

    def _part(self, kind: str, number: int, settings: Settings | None, *options: str) -> Part:
        name = f"{kind}-{number}"
        environment = (settings or self.settings).environment()
        return Part(name, [kind, *options], self.folder / f"{name}.log", environment)

    def mend(self) -> None:
        """Everything runs, nothing is stopped, every worker is known to the database. Raises ChaosError."""
        for server in (self.postgres, self.valkey):
            if not server.running():
                start(server)
        for part in self.parts:
            part.signal_all(signal.SIGCONT)
            part.start()
        until(lambda: all(self.seen(worker) for worker in self.workers), "the heartbeat of every worker")

    def seen(self, worker: Part) -> bool:
        """Whether this worker's heartbeat has reached the database. Raises ChaosError when it has ended."""
        if not worker.running:
            raise ChaosError(f"the {worker.name} ended by itself with exit code {worker.wait()}")
        return bool(self.query("SELECT FROM workers WHERE name LIKE '%/' || :pid", pid=str(worker.pid)))

    def _remove_folder(self) -> None:
        if self.failed and self.keep:
            print(f"The system is kept in {self.folder}.", file=sys.stderr)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _stop_parts(self) -> None:
        for part in self.parts:
            part.ask()
        for part in self.parts:
            code = part.stop()
            if code != 0:
                lines = 5 if code is not None else 100
                words = part.log.read_text("utf-8", "replace").rstrip().rsplit("\n", lines)[1:]
                self.reluctant.append(f"the {part.name} left with {code}: {' | '.join(words)}")

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``pixtrawl ARGUMENTS`` to its end, through the proxies."""
        return subprocess.run(
            [str(PROGRAM), *arguments],
            cwd="/",
            env=self.settings.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def query(self, statement: str, **parameters: Any) -> Sequence[Row[Any]]:
        """Every row of one query of the harness's own, past the proxy; a server that recovers is waited for."""
        deadline = time.monotonic() + ANSWER_SECONDS_MAX
        while True:
            try:
                with self.engine.connect() as connection:
                    return connection.execute(text(statement), parameters).all()
            except DBAPIError as error:
                if not connection_lost(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def leader(self) -> Part:
        """The scheduler that leads. Raises ChaosError when there is none within the deadline."""
        return until(lambda: next((part for part in self.schedulers if leads(part)), None), "a leader")

    @contextmanager
    def second_scheduler(self) -> Iterator[Part]:
        """One more scheduler that stands by, for as long as the context is open."""
        self.leader()  # Nobody leads for a moment after a scheduler was killed; the new one would.
        part = self.add_scheduler()
        part.start()
        try:
            until(lambda: part.said("] standby"), "the standby of a second scheduler")
            yield part
        finally:
            self.schedulers.remove(part)
            part.stop()


def leads(scheduler: Part) -> bool:
    """Whether this scheduler leads, by its own word."""
    words = re.findall(r"\] (leader|standby|database_away|scheduler_stopped)\b", scheduler.words())
    return scheduler.running and words[-1:] == ["leader"]


@contextmanager
def engine(url: str, pool_size: int = 1) -> Iterator[Engine]:
    """An engine, disposed of at the end."""
    made = make_engine(url, pool_size=pool_size, application_name="chaos")
    try:
        yield made
    finally:
        with contextlib.suppress(Exception):
            made.dispose()
