"""Real processes of the system: started as anybody would start them, found, and signalled by their number."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

PROGRAM = Path(sys.executable).with_name("pixtrawl")
STOP_SECONDS_MAX = 30
STACKS_SECONDS = 2

Result = TypeVar("Result")


class ChaosError(Exception):
    """The harness cannot go on. The message is one sentence."""


def until(condition: Callable[[], Result | None], what: str, seconds: float = 60) -> Result:
    """Wait until a condition is true and return its value. Raises ChaosError after a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise ChaosError(f"{what} did not come true in {seconds:g} s")
        time.sleep(0.02)
    return value


class Part:
    """One ``pixtrawl ARGUMENTS`` and its children. Ends with this process, however that ends."""

    def __init__(
        self, name: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.arguments = list(arguments)
        self.log = log
        self.environment = dict(environment)
        self.process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._groups: list[int] = []
        self._asked: set[int] = set()

    @property
    def pid(self) -> int:
        """Number of the main process. Raises ChaosError when it was never started."""
        if self.process is None:
            raise ChaosError(f"the {self.name} was not started")
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether the main process lives."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.running:
            return
        # Nothing is ever written to a lifeline: the part leaves at its end, even when we are killed.
        self.close_lifeline()
        read_end, self._write_end = os.pipe()
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [str(PROGRAM), *self.arguments, "--lifeline", str(read_end)],
                cwd="/",
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(read_end,),
                start_new_session=True,
            )
        os.close(read_end)
        self._groups.append(self.process.pid)

    def close_lifeline(self) -> None:
        """Let go of a process that has ended."""
        descriptor = self.__dict__.pop("_write_end", None)
        if descriptor is not None:
            os.close(descriptor)

    def signal(self, number: int) -> None:
        """Send a signal to the main process, if it lives."""
        if self.running:
            os.kill(self.pid, number)

    def signal_all(self, number: int) -> None:
        """Send a signal to every process of the group, which the main one leads."""
        for pid in self.members():
            send(pid, number)

    def kill(self) -> None:
        """SIGKILL to the main process, and wait for its end. Its children find out by themselves."""
        self.signal(signal.SIGKILL)
        self.wait()

    def ask(self) -> None:
        """SIGTERM, once: a second one may meet a process whose handlers are gone already."""
        if self.process is not None and self.process.pid not in self._asked:
            self._asked.add(self.process.pid)
            self.signal_all(signal.SIGCONT)
            self.signal(signal.SIGTERM)

    def stop(self) -> int | None:
        """Ask it to leave and wait; SIGKILL to what is left of the group. The exit code, or None after 30 s: then
        a worker's log ends with where its threads were.
        """
        code: int | None = None
        if self.process is not None:
            self.ask()
            code = self.wait(STOP_SECONDS_MAX)
            if code is None:
                self.signal(signal.SIGUSR1)
                self.wait(STACKS_SECONDS)
            self.signal_all(signal.SIGKILL)
            self.process.wait()
        self.close_lifeline()
        return code

    def wait(self, seconds: float = 60) -> int | None:
        """The exit code, or None when it still runs after ``seconds``."""
        if self.process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def children(self) -> list[int]:
        """Numbers of the main process's own children, by age: of a worker, its pool."""
        return [pid for pid, parent, _ in processes() if parent == self.pid] if self.running else []

    def members(self) -> list[int]:
        """Numbers of all live processes that this part is made of, those of an earlier start too."""
        mark = f"PIXTRAWL_HOME={self.environment['PIXTRAWL_HOME']}".encode()
        groups = set(self._groups)
        return [pid for pid, _, group in processes() if group in groups and mark in environ(pid)]

    def words(self) -> str:
        """What it has said since it was last started."""
        return self.log.read_bytes()[self._log_start :].decode("utf-8", "replace")

    def said(self, words: str) -> bool:
        """Whether its log has these words."""
        return self.log.exists() and words in self.log.read_text("utf-8", "replace")


def processes() -> Iterator[tuple[int, int, int]]:
    """(number, parent, group) of every live process on this machine, by age (needs /proc)."""
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            state, parent, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if state != "Z":
            yield int(folder.name), int(parent), int(group)


def environ(pid: int) -> bytes:
    """The environment with which a process was started; nothing once it is gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def send(pid: int, number: int) -> bool:
    """Send a signal to a process found before; whether it was still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def owner_of_port(port: int) -> int:
    """The process that has a TCP connection from this port of loopback. Raises ChaosError when there is none."""
    wanted = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1] == wanted}
    for pid, _, _ in processes():
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) in sockets:
                    return pid
    raise ChaosError(f"no process has a connection from port {port}")
