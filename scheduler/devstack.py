"""The embedded services as a command sees them: ``join`` starts or shares them for as long as it is open.

Every user holds a shared lock on HOME/run/users.lock. The kernel drops it however the user dies, so the
guardian (scheduler/guardian.py), which owns the servers, always notices when the last one is gone. This
module never starts, stops or signals a server itself.

The guardian holds guardian.lock while it lives, and users.lock exclusively from the moment it decides to
stop: whoever comes then waits, and gets a fresh one. Starters take start.lock one after another.
"""

import contextlib
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from scheduler.servers import ServicesError, last_words

STOP_SECONDS_MAX = 10

__all__ = ["Layout", "Services", "ServicesError", "join", "tend"]


@dataclass(frozen=True, slots=True)
class Services:
    """Where the running services are. A URL is empty when that server could not start."""

    database_url: str
    redis_url: str
    run_folder: Path
    pids: dict[str, int]
    """The guardian and the servers; a restarted server has another number."""
    errors: dict[str, str]
    """Why a server could not start, by its name."""
    host: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The files in PIXTRAWL_HOME that belong to the services."""

    home: Path

    @property
    def data(self) -> Path:
        """PostgreSQL's data folder."""
        return self.home / "postgres"

    @property
    def run(self) -> Path:
        """Locks and records. They are here, not beside the sockets, because TMPDIR may differ."""
        return self.home / "run"

    @property
    def record(self) -> Path:
        """The running services, written by the guardian and removed when it has stopped them."""
        return self.run / "services.json"

    @property
    def leftover(self) -> Path:
        """The record of a guardian that was killed, for its successor."""
        return self.run / "leftover.json"

    def log(self, name: str) -> Path:
        """One log for each process: guardian, postgres, redis."""
        return self.home / "logs" / f"{name}.log"

    def lock(self, name: str) -> int:
        """Open a lock file: users, start or guardian."""
        return os.open(self.run / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def read(self, path: Path) -> Services | None:
        """Read a record; None when there is none, or none that this version or a power cut left whole."""
        try:
            fields = json.loads(path.read_text("utf-8"))
            return Services(**{**fields, "run_folder": Path(fields["run_folder"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write(self, services: Services) -> None:
        """Write the record whole."""
        new = self.record.with_suffix(".new")
        new.write_text(json.dumps(asdict(services), default=str), "utf-8")
        new.replace(self.record)


@contextlib.contextmanager
def join(
    home: Path, *, database: bool = True, redis: bool = True, start_seconds_max: float = 60
) -> Iterator[Services]:
    """Share the services of ``home``, started when nobody has them yet, until the context is left.

    ``database`` and ``redis`` say which of them must be there: both are started, but a server that is not
    needed may fail. Raises ServicesError. Forked children share the lock, programs do not inherit it.
    """
    deadline = time.monotonic() + start_seconds_max
    layout = Layout(home.absolute())
    users = _open(layout)
    process = os.getpid()
    try:
        # Users that come while the guardian stops wait here: it holds the lock exclusively then.
        _take(users, fcntl.LOCK_SH, deadline, layout)
        services = _ensure(layout, deadline)
        for name, needed in (("postgres", database), ("redis", redis)):
            if needed and name in services.errors:
                raise ServicesError(services.errors[name])
        yield services
    finally:
        # A forked child that unwinds through here shares the lock with us and must not drop it.
        if os.getpid() == process:
            _leave(layout, users)


def _leave(layout: Layout, users: int) -> None:
    """Drop the users' lock; the last one waits for the servers' end, so that nothing outlives a command.

    A guardian that was killed cannot stop the servers: its successor will.
    """
    if layout.record.exists() or layout.leftover.exists():
        with contextlib.suppress(ServicesError, OSError):
            tend(layout.home)
    try:
        fcntl.flock(users, fcntl.LOCK_UN)
        deadline = time.monotonic() + STOP_SECONDS_MAX
        while _guarded(layout) and not _shared(users) and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.close(users)


def _shared(users: int) -> bool:
    """Whether others hold the users' lock. The guardian's exclusive hold, while it stops, does not count."""
    for kind in (fcntl.LOCK_EX, fcntl.LOCK_SH):
        try:
            fcntl.flock(users, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        fcntl.flock(users, fcntl.LOCK_UN)
        return kind == fcntl.LOCK_SH
    return False


def tend(home: Path, *, start_seconds_max: float = 60) -> bool:
    """Start a guardian again if it was killed, and say whether; the servers live on and it takes them over.

    Costs one lock probe. A command that runs for long calls it now and then, inside ``join``.
    """
    layout = Layout(home.absolute())
    if _guarded(layout):
        return False
    _ensure(layout, time.monotonic() + start_seconds_max)
    return True


def _open(layout: Layout) -> int:
    """Make the folders and open the users' lock; a home that cannot be used is one clear sentence."""
    try:
        layout.home.mkdir(parents=True, exist_ok=True)
        layout.run.mkdir(mode=0o700, exist_ok=True)
        layout.log("guardian").parent.mkdir(exist_ok=True)
        return layout.lock("users")
    except OSError as error:
        raise ServicesError(
            f"PIXTRAWL_HOME {layout.home} cannot be used ({error.strerror}: {error.filename}): "
            "set it to a folder that you may write to."
        ) from None


def _ensure(layout: Layout, deadline: float) -> Services:
    """Return the running services; one starter at a time starts them. The caller holds the users' lock."""
    start = layout.lock("start")
    try:
        _take(start, fcntl.LOCK_EX, deadline, layout)
        while True:
            if not _guarded(layout):
                _start_guardian(layout, deadline)
            services = layout.read(layout.record)
            if services is not None:
                break
            # A guardian whose starter was killed is at work: wait for it, and for it only.
            if time.monotonic() > deadline:
                raise _late(layout)
            time.sleep(0.05)
    finally:
        os.close(start)
    if services.host != socket.gethostname():
        raise ServicesError(
            f"The embedded services of {layout.home} run on {services.host}: use them there, or set "
            "PIXTRAWL_HOME to a folder of this machine."
        )
    return services


def _guarded(layout: Layout) -> bool:
    """Whether a guardian lives. The shared probe never stands in another probe's way."""
    try:
        guardian = layout.lock("guardian")
    except FileNotFoundError:
        # The home was removed under us.
        return False
    try:
        fcntl.flock(guardian, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(guardian)


def _start_guardian(layout: Layout, deadline: float) -> None:
    """Start a guardian, detached from this command, and wait until it has written its record.

    It holds nothing of ours but the write end of one pipe: nobody who reads our output waits for it.
    """
    with contextlib.suppress(FileNotFoundError):
        layout.record.replace(layout.leftover)
    log = layout.log("guardian")
    reader, writer = os.pipe()
    with contextlib.closing(os.fdopen(reader, "rb", buffering=0)) as answer:
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "scheduler.guardian", str(layout.home), str(writer)],
                    pass_fds=(writer,),
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        finally:
            os.close(writer)
        # It forks and leaves at once, so that it is nobody's child.
        process.wait()
        message = b""
        while True:
            if not select.select([answer], [], [], max(0, deadline - time.monotonic()))[0]:
                raise _late(layout)
            part = answer.read(4096)
            if not part:
                break
            message += part
    if message:
        raise ServicesError(message.decode())
    if not layout.record.exists() and not _guarded(layout):
        raise ServicesError(f"The embedded services did not start: {last_words(log)} (see {log}).")


def _take(descriptor: int, kind: int, deadline: float, layout: Layout) -> None:
    """Lock, within the deadline."""
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise _late(layout) from None
            time.sleep(0.02)
        except OSError as error:
            raise ServicesError(
                f"PIXTRAWL_HOME {layout.home} cannot be used ({error.strerror} when locking a file in it): "
                "set it to a folder on a local disk."
            ) from None
        else:
            return


def _late(layout: Layout) -> ServicesError:
    return ServicesError(
        f"The embedded services are not ready yet: {last_words(layout.log('postgres'))} "
        f"(try again, or see {layout.log('guardian').parent})."
    )
