"""Those who race: Pixtrawl, the floor, img2dataset. Each crawls one list into an empty folder and is timed.

None is touched while it runs, and a run that does not keep every picture is an error, not a result.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.environment import program
from models.settings import Settings

PROCESSES = 2
THREADS = 64
SHARDS_PER_PROCESS = 4
RUN_SECONDS_MAX = 1800
STOP_SECONDS_MAX = 30


class RunError(Exception):
    """A contender failed or lost pictures. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one run: at work, and from the start of the command to its end."""

    work_seconds: float
    wall_seconds: float


@dataclass(frozen=True, slots=True)
class Race:
    """What every contender gets: the list, an empty folder for its output, the settings of the services."""

    list_file: Path
    urls: Sequence[str]
    folder: Path
    settings: Settings


Contender = Callable[[Race], Timing]


def run_pixtrawl(race: Race) -> Timing:
    """``pixtrawl run`` as a user types it; its services run already. At work: from the job's ``started_at`` to
    its ``completed_at``, by the database's clock.
    """
    arguments = ["run", str(race.list_file), "--out", str(race.folder / "images")]
    arguments += ["--concurrency", str(PROCESSES), "--again", "--json"]
    # The settings of this process without the URLs of its services: the command finds those by their home.
    environment = race.settings.model_copy(update={"database_url": None, "redis_url": None}).environment()
    command = [sys.executable, "-P", "-m", "scheduler.cli", *arguments]
    output, wall_seconds = finish(race, "pixtrawl", command, environment)
    job = json.loads(output)
    check_kept("Pixtrawl", job["valid_images"], race)
    return Timing(job["duration_seconds"], wall_seconds)


def run_floor(race: Race) -> Timing:
    """Two processes of floor.py, each with half of the list, every JPEG decoded in full."""
    return time_floor(race, "full")


def run_shrunk_floor(race: Race) -> Timing:
    """The same with Pixtrawl's own way to decode a JPEG."""
    return time_floor(race, "shrunk")


def time_floor(race: Race, decode: str) -> Timing:
    """At work: from the word to begin, given when all are ready, to the last one's end."""
    images = race.folder / "images"
    images.mkdir()
    started = time.monotonic()
    with ExitStack() as stack:
        log = stack.enter_context((race.folder / "floor.log").open("wb"))
        processes = []
        for number in range(PROCESSES):
            part = race.folder / f"part-{number}.txt"
            part.write_text("\n".join(race.urls[number::PROCESSES]), "utf-8")
            script = str(Path(__file__).with_name("floor.py"))
            command = [program("python"), "-P", script, str(part), str(images), decode]
            processes.append(stack.enter_context(talking_to(command, log)))
        for process in processes:
            expect(process, "ready")
        begun = time.monotonic()
        for process in processes:
            say(process, "go")
        for process in processes:
            expect(process, "done")
        ended = time.monotonic()
    check_kept("The floor", len(list(images.iterdir())), race)
    return Timing(ended - begun, time.monotonic() - started)


def run_img2dataset(race: Race) -> Timing:
    """The defaults (every picture resized to 256 by 256 and encoded again, one file each) with two processes of
    64 threads, and shards enough for both. At work: from the first shard's start to the last one's end.
    """
    images = race.folder / "images"
    shard = -(-len(race.urls) // (PROCESSES * SHARDS_PER_PROCESS))
    command = [program("img2dataset"), "--url_list", str(race.list_file), "--output_folder", str(images)]
    command += ["--processes_count", str(PROCESSES), "--thread_count", str(THREADS)]
    command += ["--number_sample_per_shard", str(shard)]
    # One of its libraries asks the web for a newer version of itself at every start.
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"}
    _, wall_seconds = finish(race, "img2dataset", command, environment)
    shards = [json.loads(path.read_bytes()) for path in images.glob("*_stats.json")]
    check_kept("img2dataset", sum(shard["successes"] for shard in shards), race)
    begun, ended = (min(s["start_time"] for s in shards), max(s["end_time"] for s in shards))
    return Timing(ended - begun, wall_seconds)


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


def expect(process: subprocess.Popen[bytes], word: str) -> None:
    """Wait for one line from a process. Raises RunError for any other."""
    assert process.stdout is not None
    line = process.stdout.readline().decode().strip()
    if line != word:
        raise RunError(f"A process of the floor said {line or 'nothing'} instead of {word}.")


def check_kept(who: str, kept: int, race: Race) -> None:
    """A rate counts only when nothing was lost. Raises RunError."""
    if kept != len(race.urls):
        raise RunError(f"{who} kept {kept} of {len(race.urls)} pictures.")
