"""Real commands in real processes: started, looked for by their home, and waited for with a deadline."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

PROGRAM = Path(sys.executable).with_name("pixtrawl")
SECONDS_MAX = 60


def until(condition: Callable[[], Any], what: str = "the condition", seconds: float = SECONDS_MAX) -> Any:
    """Wait until a condition is true and return its value; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {seconds} s"
        time.sleep(0.05)
    return value


def free_port() -> int:
    """A TCP port of the loopback that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def environment(home: Path, **variables: object) -> dict[str, str]:
    """The environment of a shell in which only these variables of Pixtrawl are set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PIXTRAWL_")}
    given = {f"PIXTRAWL_{name.upper()}": str(value) for name, value in variables.items()}
    return kept | {"PIXTRAWL_HOME": str(home), "PIXTRAWL_ALLOWED_NETWORKS": "127.0.0.0/8"} | given


@contextmanager
def started(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is killed at the end, also of a test that fails, unless it has ended by then."""
    with subprocess.Popen([str(part) for part in arguments], **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class Command:
    """A context manager around ``pixtrawl ARGUMENTS``: killed at the end unless it has ended by then.

    Its output goes to files, so that no full pipe can stop it.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str], *arguments: object, program: Iterable[object] = ()
    ) -> None:
        self.folder = folder
        self.environment = environment
        self.arguments = [str(part) for part in (*(program or [PROGRAM]), *arguments)]

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        number = len(list(self.folder.glob("*.out")))
        self.files = [self.folder / f"{number}.out", self.folder / f"{number}.err"]
        with self.files[0].open("wb") as output, self.files[1].open("wb") as errors:
            self.process = subprocess.Popen(
                self.arguments,
                cwd=self.folder,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        """Standard output so far."""
        return self.files[0].read_text()

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return self.files[1].read_text()

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Signal this process only, as a part would not see it either."""
        self.process.send_signal(number)

    def wait(self, seconds: float = SECONDS_MAX) -> int:
        """The exit code, within a deadline."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.arguments} still runs:\n{self.errors}") from None


def call(folder: Path, environment: Mapping[str, str], *arguments: object) -> Command:
    """Run ``pixtrawl ARGUMENTS`` to its end."""
    with Command(folder, environment, *arguments) as command:
        command.wait()
    return command


def processes_of(home: Path) -> dict[int, str]:
    """Every live process that was started for a home, by number, with its arguments (needs /proc)."""
    marks = (
        b"PIXTRAWL_HOME=" + os.fsencode(home) + b"\0",
        os.fsencode(home) + b"\0",
        os.fsencode(home) + b"/",
    )
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes()
            if any(mark in arguments or mark in (folder / "environ").read_bytes() + b"\0" for mark in marks):
                found[int(folder.name)] = arguments.replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
    return {pid: words for pid, words in found.items() if words and pid != os.getpid()}


def part_of(home: Path, name: str) -> int | None:
    """The main process of a part of some command of this home: the one whose parent is no such part."""
    pids = [pid for pid, words in processes_of(home).items() if f"scheduler.cli {name} " in words]
    return next((pid for pid in sorted(pids) if parent(pid) not in pids), None)


def parent(pid: int) -> int | None:
    """The parent of a process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None
