"""A race: contenders crawl one list, one after another, each into an empty folder, and are timed.

None is touched while it runs, and a run that does not keep every good picture is an error, not a result.
"""

import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import IO

from models.settings import Settings

PROCESSES = 2
RUN_SECONDS_MAX = 1800
STOP_SECONDS_MAX = 30
TOUCHED_BYTES = 256 * 1024
"""For each picture: three times what anybody writes."""


class RunError(Exception):
    """A contender failed or lost pictures. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run: at work, and from the start of the command to its end."""

    work_seconds: float
    wall_seconds: float


@dataclass(frozen=True, slots=True)
class Race:
    """What every contender gets. ``good`` of the URLs are pictures; each process may have ``connections``;
    ``names`` are the pictures' files, for who needs no web; ``authority`` is a file of certificates to trust.
    """

    urls: Sequence[str]
    good: int
    connections: int
    settings: Settings
    scratch: Path
    pictures: Path
    names: Sequence[str] = ()
    authority: Path | None = None
    folder: Path = Path()

    @property
    def list_file(self) -> Path:
        """The URLs, one a line."""
        return self.scratch / "urls.txt"


Contender = Callable[[Race], Timing]
Rounds = Sequence[Mapping[str, Timing]]


def race_all(contenders: Mapping[str, Contender], race: Race, rounds: int) -> Rounds:
    """Round after round, each contender once in each. Raises RunError."""
    race.list_file.write_text("\n".join(race.urls) + "\n", "utf-8")
    results: list[Mapping[str, Timing]] = []
    for number in range(1, rounds + 1):
        timings = {}
        for name, run in contenders.items():
            # Nobody pays for the writing that another one left to the kernel. What they kept stays until the end:
            # ext4 looks at each inode that was freed in the last minutes before it takes another.
            os.sync()
            touch_memory(len(race.urls) * TOUCHED_BYTES)
            folder = Path(tempfile.mkdtemp(dir=race.scratch))
            timings[name] = timing = run(replace(race, folder=folder))
            rate, wall_rate = race.good / timing.work_seconds, race.good / timing.wall_seconds
            said = f"round {number}  {name:46} {rate:6.0f} images/s  ({wall_rate:.0f} by the wall clock)"
            print(said, file=sys.stderr, flush=True)
        results.append(timings)
    return results


def touch_memory(size: int) -> None:
    """Let there be ``size`` bytes of memory for whoever comes next. A virtual machine's host takes back what lies
    idle, and a page then costs six microseconds when it is first written to: who writes the larger files would pay
    for the others.
    """
    if sys.platform == "linux":
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        mmap.mmap(-1, size, flags=flags).close()


def rates(rounds: Rounds, images: int) -> list[str]:
    """Median images per second of each contender over the rounds, at work and by the wall clock."""
    lines = [
        "| contender | images/s at work | least to most | images/s by the wall clock |",
        "|---|---|---|---|",
    ]
    for name in rounds[0]:
        work = [images / timings[name].work_seconds for timings in rounds]
        wall = [images / timings[name].wall_seconds for timings in rounds]
        spread = f"{min(work):,.0f} to {max(work):,.0f}"
        lines.append(f"| {name} | {median(work):,.0f} | {spread} | {median(wall):,.0f} |")
    return lines


def ratios(rounds: Rounds, pairs: Sequence[tuple[str, str, float | None]]) -> list[str]:
    """How one's rate stands to the other's: the median of the rounds' own ratios, beside what is asked for."""
    lines = ["| of | to | ratio at work | least to most | asked for |", "|---|---|---|---|---|"]
    for ours, other, asked in pairs:
        if ours not in rounds[0] or other not in rounds[0]:
            continue
        found = [timings[other].work_seconds / timings[ours].work_seconds for timings in rounds]
        mark = "" if asked is None else f"≥ {asked:g}" + ("" if median(found) >= asked else " **missed**")
        spread = f"{min(found):.2f} to {max(found):.2f}"
        lines.append(f"| {ours} | {other} | {median(found):.2f} | {spread} | {mark} |")
    return lines


def check_kept(who: str, kept: int, race: Race) -> None:
    """A rate counts only when nothing was lost. Raises RunError."""
    if kept != race.good:
        raise RunError(f"{who} kept {kept} of {race.good} pictures.")


def finish(race: Race, name: str, command: Sequence[str], environment: dict[str, str]) -> tuple[bytes, float]:
    """Run a command to its end; what it printed, and its seconds. Raises RunError with its last words."""
    log = race.folder / f"{name}.log"
    started = time.monotonic()
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        with ending(process):
            output, _ = process.communicate(timeout=RUN_SECONDS_MAX)
    if process.returncode != 0:
        words = log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
        raise RunError(f"{name} ended with exit code {process.returncode}: {words}")
    return output, time.monotonic() - started


@contextmanager
def talking_to(command: Sequence[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with pipes to and from it, for as long as the context is open."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    with process, ending(process):
        yield process


@contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """See to it that the process has ended when the context is left, politely first."""
    try:
        yield
        process.wait(STOP_SECONDS_MAX)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()


def say(process: subprocess.Popen[bytes], word: str) -> None:
    """Write one line to a process."""
    assert process.stdin is not None
    process.stdin.write(f"{word}\n".encode())
    process.stdin.flush()


def hear(process: subprocess.Popen[bytes]) -> str:
    """Wait for one line from a process."""
    assert process.stdout is not None
    return process.stdout.readline().decode().strip()


def expect(process: subprocess.Popen[bytes], word: str) -> None:
    """Wait for one line from a process. Raises RunError for any other."""
    line = hear(process)
    if line != word:
        raise RunError(f"{process.args!r} said {line or 'nothing'} instead of {word}.")
