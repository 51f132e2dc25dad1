"""One embedded server process: how it starts, is recognised, answers and ends.

Knows no lock and no user count (scheduler/guardian.py does), and neither PostgreSQL nor Valkey. It signals
a process only after its arguments have shown that it is our own server: numbers are given again.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

from scheduler.privileges import Identity

# A server gets this environment only: PGPORT, PGDATA, LD_PRELOAD and the like stay with the user's shell.
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C", "TZ": "UTC"}
TELLING = ("FATAL", "PANIC", "ERROR", "rror", "atal", "could not", "can't", "annot", "ailed", "No space")

# Numbers of macOS's sys/un.h, which Python does not name.
SOL_LOCAL = 0
LOCAL_PEERPID = 2


class ServicesError(Exception):
    """The embedded services cannot be used. The message is one sentence and the way out."""


class Server(ABC):
    """One server process, ours by birth or found alive after its guardian was killed."""

    name: ClassVar[str]
    variable: ClassVar[str]
    signals: ClassVar[Sequence[tuple[signal.Signals, float]]]
    """What ends the server, each with the seconds after which the next is sent."""

    def __init__(self, executable: Path, folder: Path, log: Path, identity: Identity) -> None:
        self.executable = executable
        self.folder = folder
        self.log = log
        self.identity = identity
        self.pid = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def socket(self) -> Path:
        """The socket that the server listens on."""

    @property
    @abstractmethod
    def url(self) -> str:
        """URL for the clients."""

    @abstractmethod
    def command(self) -> list[str]:
        """Arguments of the server process."""

    @property
    @abstractmethod
    def mark(self) -> str:
        """An argument that no other process on this machine has."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server serves requests now."""

    def prepare(self) -> None:
        """Make what the server needs to start. Called with the server down, before every start."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        give(self.folder, self.identity)

    def start(self) -> None:
        """Start the process; does not wait until it answers."""
        self.prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd="/",
                env=ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=self.identity.become,  # noqa: PLW1509  The guardian has one thread.
            )
        self.pid = self._process.pid

    def running(self) -> bool:
        """Whether the process lives. A zombie and a stranger under the same number do not count."""
        if self._process is not None:
            return self._process.poll() is None
        return self.pid != 0 and has_argument(self.pid, self.mark)

    def find(self, recorded: Iterable[int]) -> None:
        """Take over what a killed guardian left: whoever listens on our socket, or was recorded and is ours."""
        for pid in (listener(self.socket), *recorded):
            if pid and has_argument(pid, self.mark):
                self.pid = pid
                return

    def wait_until_it_answers(self, deadline: float) -> bool:
        """Wait; False when the process ended or the deadline (monotonic) passed before it answered."""
        while self.running() and time.monotonic() < deadline:
            if self.answers():
                return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        """End the process, politely first, and wait for its end."""
        for number, seconds in self.signals:
            if not self.running():
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
            deadline = time.monotonic() + seconds
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.01)
        self.pid, self._process = 0, None


def listener(path: Path) -> int:
    """Return the process that listens on a Unix socket, 0 when nobody does."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(2)
        try:
            client.connect(str(path))
            if sys.platform == "darwin":
                return client.getsockopt(SOL_LOCAL, LOCAL_PEERPID)
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return 0
    return int(struct.unpack("3i", credentials)[0])


def has_argument(pid: int, argument: str) -> bool:
    """Whether the process runs, is no zombie, and was started with this argument."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        if Path("/proc/self/cmdline").exists():
            return False
    else:
        return os.fsencode(argument) in arguments
    shown = subprocess.run(
        ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, check=False
    )
    return os.fsencode(argument) in shown.stdout


def give(path: Path, identity: Identity) -> None:
    """Make the path the identity's own; only root has to."""
    if path.lstat().st_uid != identity.owner[0]:
        os.chown(path, *identity.owner, follow_symlinks=False)


def give_tree(folder: Path, identity: Identity) -> None:
    """Make a folder and all in it the identity's own, without following links."""
    give(folder, identity)
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            give(Path(parent, name), identity)


def last_words(log: Path, start: int = 0) -> str:
    """Return the last telling line that was written to a log since ``start`` bytes."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(start, log.stat().st_size - 64 * 1024))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "no log"
    lines = [line.strip() for line in lines if line.strip()]
    telling = [line for line in lines if any(word in line for word in TELLING)]
    return (telling or lines or ["no word in its log"])[-1][:300]
