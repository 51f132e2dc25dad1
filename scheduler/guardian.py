"""The guardian process: owns the embedded servers, restarts one that dies, stops all with the last user.

Run as ``python -P -m scheduler.guardian HOME READY_FD`` by scheduler/devstack.py, which explains the locks.
It never outlives its users, and never holds a descriptor, a folder or a terminal of the command that
started it. Servers that a killed guardian left are taken over as they are: their users notice nothing.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scheduler.devstack import Layout, Services
from scheduler.embedded_postgres import Postgres, find_postgres
from scheduler.embedded_valkey import Valkey, find_valkey
from scheduler.privileges import Identity, choose_identity
from scheduler.servers import Server, ServicesError, last_words

log = logging.getLogger("guardian")

POLL_SECONDS = 0.1
HOUSEKEEPING_SECONDS = 60
# Recovery after a crash may take long. A command that stops waiting for it leaves; we go on, for the next.
ANSWER_SECONDS_MAX = 600
TAKE_OVER_SECONDS_MAX = 5
RESTART_SECONDS = (0.1, 0.5, 1, 2, 5)
STEADY_SECONDS = 60
LOG_BYTES_MAX = 4 * 1024 * 1024
# A socket path has 104 bytes on macOS and 108 on Linux; the longest name below the folder has 25.
SOCKET_FOLDER_BYTES_MAX = 75
SAFE_PATH = re.compile(r"[A-Za-z0-9_./+-]+")


class Ward:
    """A server under guard: when it started, how often it died, when it is started again."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.started = time.monotonic()
        self.deaths = 0
        self.restart_at: float | None = None

    def look(self) -> bool:
        """Start the server again if it died and its pause is over; True when it was."""
        now = time.monotonic()
        if self.restart_at is None:
            if not self.server.running():
                self.deaths = 1 if now - self.started > STEADY_SECONDS else self.deaths + 1
                pause = RESTART_SECONDS[min(self.deaths, len(RESTART_SECONDS)) - 1]
                self.restart_at = now + pause
                log.error(
                    "server_died name=%s pid=%d pause_seconds=%s", self.server.name, self.server.pid, pause
                )
            return False
        if now < self.restart_at:
            return False
        self.restart_at, self.started = None, now
        try:
            self.server.start()
        except (OSError, ServicesError, subprocess.SubprocessError) as error:
            log.error("server_not_restarted name=%s reason=%s", self.server.name, error)  # noqa: TRY400  Expected.
            return False
        log.warning("server_restarted name=%s pid=%d", self.server.name, self.server.pid)
        return True


def main(home: Path, ready: int) -> None:
    """Be the guardian of ``home``; ``ready`` is a pipe that tells the starter an error, or closes."""
    if os.fork():
        os._exit(0)
    os.umask(0o077)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    layout = Layout(home)
    guardian, users = layout.lock("guardian"), layout.lock("users")
    if not _lock_soon(guardian):
        return
    starter = os.fdopen(ready, "wb", buffering=0)
    try:
        guard(layout, users, starter.close)
    except (OSError, ServicesError) as error:
        log.exception("guardian_failed")
        sentence = str(error)
        if isinstance(error, OSError):
            sentence = f"PIXTRAWL_HOME {home} cannot be used ({error}): make room in it, or set another."
        if not starter.closed:
            starter.write(sentence.encode())
    finally:
        # In this order: whoever gets the users' lock then finds no guardian.
        os.close(guardian)
        os.close(users)


def guard(layout: Layout, users: int, ready: Callable[[], None]) -> None:
    """Start what can start, tell it, and stay until the last user has left."""
    log.info("guardian_started home=%s pid=%d", layout.home, os.getpid())
    left = layout.read(layout.leftover)
    _bound_logs(layout)
    folder = _socket_folder(layout.home, left.run_folder if left else None)
    wards: list[Ward] = []
    try:
        errors = _start_all(layout, folder, left, wards)
        services = _record(layout, folder, wards, errors)
        layout.leftover.unlink(missing_ok=True)
        log.info("services_started pids=%s errors=%s", services.pids, errors)
        ready()
        _watch(layout, users, wards, errors, folder)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        # Whoever comes from now on must not read where the servers were; our successor may have to.
        with contextlib.suppress(FileNotFoundError):
            layout.record.replace(layout.leftover)
        for ward in wards:
            ward.server.stop()
        shutil.rmtree(folder, ignore_errors=True)
        layout.leftover.unlink(missing_ok=True)
        log.info("services_stopped")


def _start_all(layout: Layout, folder: Path, left: Services | None, wards: list[Ward]) -> dict[str, str]:
    """Start or take over each server and make it a ward; return the sentence of each that failed."""
    openers: dict[str, Callable[[], Server]] = {
        Valkey.name: lambda: _open_valkey(layout, folder),
        Postgres.name: lambda: _open_postgres(layout, folder),
    }
    failures: dict[str, str] = {}
    log_ends: dict[str, int] = {}
    for name, opener in openers.items():
        log_ends[name] = layout.log(name).stat().st_size if layout.log(name).exists() else 0
        try:
            server = opener()
            # It is a ward before it runs: a signal may end us at any moment, and then all wards are stopped.
            wards.append(Ward(server))
            _take_over(server, left)
            if not server.running():
                server.start()
        except ServicesError as error:
            failures[name] = str(error)
        except (OSError, subprocess.SubprocessError) as error:
            failures[name] = f"The embedded {name} could not start: {error} (see {layout.log(name)})."
    wards[:] = [ward for ward in wards if ward.server.name not in failures]
    failures |= _wait_for_all(wards, log_ends)
    wards[:] = [ward for ward in wards if ward.server.name not in failures]
    return failures


def _wait_for_all(wards: list[Ward], log_ends: dict[str, int]) -> dict[str, str]:
    """Wait until every server answers; stop those that do not and return the sentence of each."""
    failures = {}
    deadline = time.monotonic() + ANSWER_SECONDS_MAX
    for server in [ward.server for ward in wards]:
        if not server.wait_until_it_answers(deadline):
            server.stop()
            reason = last_words(server.log, log_ends[server.name])
            failures[server.name] = (
                f"The embedded {server.name} did not start: {reason} (see {server.log}, or set "
                f"{server.variable} to a server of yours)."
            )
    return failures


def _take_over(server: Server, left: Services | None) -> None:
    """Keep a server that a killed guardian left, if it answers; end it if it does not."""
    server.find([left.pids.get(server.name, 0)] if left else [])
    if not server.running():
        return
    kept = server.wait_until_it_answers(time.monotonic() + TAKE_OVER_SECONDS_MAX)
    log.warning("server_found name=%s pid=%d kept=%s", server.name, server.pid, kept)
    if not kept:
        server.stop()


def _open_postgres(layout: Layout, folder: Path) -> Postgres:
    program = find_postgres()
    owner = layout.data.stat() if layout.data.exists() else None
    identity = _identity(program, layout, folder, (owner.st_uid, owner.st_gid) if owner else None)
    return Postgres(program, folder / "pg", layout.log(Postgres.name), identity, data=layout.data)


def _open_valkey(layout: Layout, folder: Path) -> Valkey:
    program = find_valkey()
    return Valkey(program, folder / "mq", layout.log(Valkey.name), _identity(program, layout, folder, None))


def _identity(program: Path, layout: Layout, folder: Path, owner: tuple[int, int] | None) -> Identity:
    identity = choose_identity([program], [layout.home, folder], owner)
    if identity is None and os.geteuid() == 0:
        raise ServicesError(
            f"As root, {program.name} needs an existing user (postgres or nobody) who may run {program} and "
            f"enter {layout.home}: run Pixtrawl as a normal user, or set PIXTRAWL_DATABASE_URL and "
            "PIXTRAWL_REDIS_URL to servers of yours."
        )
    if identity is None:
        raise ServicesError(
            f"{program} does not run on this machine: set PIXTRAWL_DATABASE_URL and PIXTRAWL_REDIS_URL to "
            "servers of yours."
        )
    log.info("identity program=%s way=%s uid=%d", program.name, identity.way, identity.uid)
    return identity


def _watch(layout: Layout, users: int, wards: list[Ward], errors: dict[str, str], folder: Path) -> None:
    """Sleep until the users' lock is free, and look after the servers meanwhile."""
    housekeeping_at = time.monotonic()
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        restarted = [ward.look() for ward in wards]
        if any(restarted):
            # The users need the servers more than the record, should the disk be full.
            with contextlib.suppress(OSError):
                _record(layout, folder, wards, errors)
        if time.monotonic() >= housekeeping_at:
            housekeeping_at = time.monotonic() + HOUSEKEEPING_SECONDS
            with contextlib.suppress(OSError):
                _bound_logs(layout)
            # What sweeps old files from the temporary folder must not take our sockets for some.
            for path in (folder, *folder.glob("*"), *folder.glob("*/.s.PGSQL*"), *folder.glob("*/*.sock")):
                with contextlib.suppress(OSError):
                    os.utime(path)
        time.sleep(POLL_SECONDS)


def _record(layout: Layout, folder: Path, wards: list[Ward], errors: dict[str, str]) -> Services:
    urls = {ward.server.name: ward.server.url for ward in wards}
    services = Services(
        database_url=urls.get(Postgres.name, ""),
        redis_url=urls.get(Valkey.name, ""),
        run_folder=folder,
        pids={"guardian": os.getpid()} | {ward.server.name: ward.server.pid for ward in wards},
        errors=errors,
        host=socket.gethostname(),
    )
    layout.write(services)
    return services


def _socket_folder(home: Path, former: Path | None) -> Path:
    """Make the short private folder of the sockets: nobody else's, no link, and nothing to escape in a URL."""
    name = f"pixtrawl-{os.geteuid()}-{hashlib.sha256(os.fsencode(home)).hexdigest()[:10]}"
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) + len(name) >= SOCKET_FOLDER_BYTES_MAX or not SAFE_PATH.fullmatch(base):
        base = "/tmp"  # noqa: S108  The owner and the mode of the folder in it are checked below.
    # Servers that live on in a former folder keep it, whatever the temporary folder is today.
    folder = former if former and former.is_dir() else Path(base, name)
    # As root, the servers' unprivileged user must get through to folders of its own, which are closed.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        folder.mkdir(mode=mode, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            raise FileExistsError(17, "it is a link or belongs to somebody else")
        folder.chmod(mode)
    except OSError as error:
        raise ServicesError(
            f"The sockets' folder {folder} cannot be used ({error.strerror}): remove it, or set TMPDIR to a "
            "folder of yours."
        ) from None
    return folder


def _bound_logs(layout: Layout) -> None:
    """Copy a large log aside and empty it: the servers append, so they go on at its beginning."""
    for name in ("guardian", Postgres.name, Valkey.name):
        path = layout.log(name)
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            shutil.copyfile(path, path.with_suffix(".log.1"))
            os.truncate(path, 0)


def _lock_soon(descriptor: int) -> bool:
    """Take a lock that only probes hold, for moments; False when another guardian has it."""
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.01)
    return False


def _stop(number: int, _frame: object) -> None:
    log.warning("signal_received number=%d", number)
    sys.exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
