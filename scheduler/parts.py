"""The processes that a command starts, and how none of them outlives it, however it ends.

Every part reads a pipe, its lifeline, whose only write end is here: the kernel closes it however this process
dies, and the part leaves. Must never signal a process that it has not started.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from models.settings import Settings
from scheduler.devstack import Layout, ServicesError, tend
from scheduler.servers import last_words

POLL_SECONDS = 0.1
TEND_SECONDS = 5
RESTART_SECONDS = (0.2, 1, 2, 5, 10, 30)
STEADY_SECONDS = 30
"""A part that lived for so long did not die from the start: its pause begins anew."""
STOP_SECONDS = 10
ORPHAN_SECONDS = 15
LOG_BYTES_MAX = 4 * 1024 * 1024
FOREIGN = ("CELERY_", "DJANGO_SETTINGS_MODULE")
"""Variables of somebody else's Celery: they would point our worker at another broker."""


@dataclass(slots=True)
class Part:
    """One process: what it runs, since when, how often in a row it died, and when it is started again."""

    name: str
    module: str
    arguments: Sequence[str]
    descriptors: tuple[int, ...]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0
    log_start: int = 0
    deaths: int = 0
    restart_at: float | None = None
    last_line: str = ""

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Signal the process; SIGKILL goes to the whole group. One that has ended is left alone."""
        if self.process is None or not self.running:
            return
        with contextlib.suppress(ProcessLookupError):
            if number is signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)


@dataclass
class Parts:
    """A context manager that starts parts, starts again those that die, and stops all of them.

    ``settings`` have both URLs, so that a part never joins the embedded services by itself. With ``home`` the
    services are embedded: parts share the users' lock, and the guardian is looked after. ``say`` gets a
    sentence about each event. Output goes to HOME/logs/<part>.log, or line by line to ``show``. A part that
    dies ``deaths_max`` times in a row sets ``failure`` and calls ``on_failure``.
    """

    settings: Settings
    say: Callable[[str], None]
    home: Path | None = None
    show: Callable[[str, str], None] | None = None
    deaths_max: int | None = None
    on_failure: Callable[[], None] = lambda: None
    failure: str | None = field(default=None, init=False)
    parts: list[Part] = field(default_factory=list, init=False)

    def __enter__(self) -> Self:
        self._lifeline, self._write_end = os.pipe()
        self._users = _share_users_lock(self.home) if self.home is not None else None
        self._hurry = threading.Event()
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="parts", daemon=True)
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            # Whatever is left of a part now leaves at the end of its lifeline.
            for descriptor in (self._write_end, self._lifeline, self._users):
                if descriptor is not None:
                    os.close(descriptor)

    def start(
        self, name: str, *arguments: str, module: str = "scheduler.cli", descriptors: tuple[int, ...] = ()
    ) -> Part:
        """Start ``python -m MODULE ARGUMENTS --lifeline FD`` as a part; ``descriptors`` pass to it, too."""
        part = Part(name, module, arguments, descriptors)
        self._spawn(part)
        self.parts.append(part)
        return part

    def hurry(self) -> None:
        """Make ``stop`` kill at once. Safe in a signal handler."""
        self._hurry.set()

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM to every part, SIGKILL to what is left after ``seconds``; return when all have ended."""
        self._stopping.set()
        self._watcher.join()
        for part in self.parts:
            part.signal(signal.SIGTERM)
        deadline = time.monotonic() + seconds
        while any(part.running for part in self.parts):
            if self._hurry.is_set() or time.monotonic() > deadline:
                for part in self.parts:
                    part.signal(signal.SIGKILL)
            time.sleep(0.02)

    def log(self, name: str) -> Path:
        """Where the output of a part goes that is not shown."""
        return Layout(self.settings.home).log(name)

    def _watch(self) -> None:
        tend_at = time.monotonic() + TEND_SECONDS
        while not self._stopping.wait(POLL_SECONDS):
            for part in list(self.parts):
                self._look(part)
            if self.home is not None and time.monotonic() > tend_at:
                tend_once(self.home, self.say)
                tend_at = time.monotonic() + TEND_SECONDS

    def _look(self, part: Part) -> None:
        """Notice a death, and start the part again when its pause is over."""
        now = time.monotonic()
        if part.restart_at is not None:
            if now >= part.restart_at:
                self._spawn(part)
            return
        if part.process is None or part.running:
            return
        part.deaths = 1 if now - part.started > STEADY_SECONDS else part.deaths + 1
        pause = RESTART_SECONDS[min(part.deaths, len(RESTART_SECONDS)) - 1]
        part.restart_at = now + pause
        how = describe_end(part.process.returncode)
        if self.deaths_max is not None and part.deaths >= self.deaths_max:
            self._give_up(part, how)
        else:
            self.say(f"The {part.name} {how}; it is started again in {pause:g} s.")

    def _give_up(self, part: Part, how: str) -> None:
        part.restart_at = float("inf")
        words = part.last_line if self.show else last_words(self.log(part.name), part.log_start)
        where = "" if self.show else f" (see {self.log(part.name)})"
        self.failure = f"The {part.name} {how} {part.deaths} times in a row: {words.rstrip('.')}{where}."
        self.on_failure()

    def _spawn(self, part: Part) -> None:
        part.started, part.restart_at = time.monotonic(), None
        descriptors = (self._lifeline, *part.descriptors)
        if self._users is not None:
            descriptors += (self._users,)
        command = [sys.executable, "-P", "-m", part.module, *part.arguments]
        command += ["--lifeline", str(self._lifeline)]
        with contextlib.ExitStack() as stack:
            output: IO[bytes] | int = subprocess.PIPE
            if self.show is None:
                output = stack.enter_context(open_log(self.log(part.name)))
                part.log_start = output.seek(0, os.SEEK_END)
            part.process = subprocess.Popen(
                command,
                # Celery puts the current folder first in the path: there must be nothing of a user's in it.
                cwd="/",
                env=_environment(self.settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                start_new_session=True,
            )
        if self.show is not None:
            threading.Thread(target=self._pass_on, args=(part, part.process), daemon=True).start()

    def _pass_on(self, part: Part, process: subprocess.Popen[bytes]) -> None:
        if self.show is None or process.stdout is None:
            return
        with process.stdout as lines:
            for line in lines:
                part.last_line = line.decode("utf-8", "replace").rstrip()
                self.show(part.name, part.last_line)


def follow_command(descriptor: int) -> None:
    """Called by a part: leave when the command that started it is gone, politely first."""

    def watch() -> None:
        # Nothing is ever written to a lifeline: a read returns at its end only.
        os.read(descriptor, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


@contextlib.contextmanager
def tended(home: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Look after the guardian of ``home`` while the context is open: for a command that runs for long."""
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(TEND_SECONDS):
            tend_once(home, say)

    thread = threading.Thread(target=watch, name="tend", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


@contextlib.contextmanager
def standing(settings: Settings, say: Callable[[str], None]) -> Iterator[Settings]:
    """Settings with both URLs for a command that runs for long: embedded services are joined and tended."""
    if not settings.embedded:
        yield settings
        return
    from scheduler.connect import connected

    with connected(settings) as joined, tended(settings.home, say):
        yield joined


def tend_once(home: Path, say: Callable[[str], None]) -> None:
    """Start the guardian again if it was killed, and say so."""
    try:
        if tend(home):
            say("The guardian of the embedded services was gone; there is a new one.")
    except (ServicesError, OSError) as error:
        say(str(error))


def describe_end(returncode: int) -> str:
    """How a process ended, as the rest of a sentence."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was killed by signal {-returncode}"


def open_log(path: Path) -> IO[bytes]:
    """Open a log to append to; a large one is put aside first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def _share_users_lock(home: Path) -> int:
    """Open the users' lock once more: it passes to the parts, so that the services outlive them."""
    descriptor = Layout(home).lock("users")
    # We hold it already, so nobody has it exclusively.
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def _environment(settings: Settings) -> dict[str, str]:
    return {name: value for name, value in settings.environment().items() if not name.startswith(FOREIGN)}
