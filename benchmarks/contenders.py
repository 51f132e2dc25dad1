"""Those who race: Pixtrawl, the floors, img2dataset, Scrapy. Each crawls a race's list and is timed."""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from redis.asyncio import Redis

from benchmarks.environment import program
from benchmarks.race import (
    PROCESSES,
    Contender,
    Race,
    Timing,
    check_kept,
    expect,
    finish,
    hear,
    say,
    talking_to,
)
from models.outcomes import Verification
from scheduler.connect import connected
from worker.shared import close_redis, open_redis

SHARDS_PER_PROCESS = 4
FILES: Sequence[str] = ()
WEBDATASET = ("--output_format", "webdataset")
NO_DECODE = (*WEBDATASET, "--disable_all_reencoding", "True")
SECONDS_MAX = 10
"""img2dataset's default for one transfer; in a race with hosts that hang, everybody's."""


def pixtrawl(level: Verification) -> Contender:
    """``pixtrawl run --verify``."""
    return partial(_run_pixtrawl, level=level)


def floor(decode: str, source: str = "web") -> Contender:
    """floor.py in two processes; ``decode`` is full, shrunk or none, ``source`` web or memory."""
    return partial(_run_floor, decode=decode, source=source)


def img2dataset(options: Sequence[str]) -> Contender:
    """img2dataset with these options beside its defaults."""
    return partial(_run_img2dataset, options=options)


def _run_pixtrawl(race: Race, level: Verification) -> Timing:
    """As a user types it; its services run already. At work: from the job's ``started_at`` to its ``completed_at``,
    by the database's clock.
    """
    job, timing = crawl(race, ["--verify", level.value, "--concurrency", str(PROCESSES)])
    check_kept("Pixtrawl", job["valid_images"], race)
    return timing


def crawl(race: Race, options: Sequence[str], *, polite: bool = False) -> tuple[dict[str, int], Timing]:
    """``pixtrawl run`` with these options; the object of ``show --json``. Not ``polite``: one host may have all
    connections, for nobody else in a race keeps to less.
    """
    arguments = ["run", str(race.list_file), "--out", str(race.folder / "images"), "--again", "--json"]
    # The settings of this process without the URLs of its services: the command finds those by their home.
    settings = race.settings.model_copy(
        update={"database_url": None, "redis_url": None, "transfers": race.connections}
        | ({} if polite else {"host_transfers": PROCESSES * race.connections})
    )
    forget_hosts(race)
    command = [sys.executable, "-P", "-m", "scheduler.cli", *arguments, *options]
    output, wall_seconds = finish(race, "pixtrawl", command, trusting(race, settings.environment()))
    job = json.loads(output)
    return job, Timing(job["duration_seconds"], wall_seconds)


def forget_hosts(race: Race) -> None:
    """No run may profit from what an earlier one has learned of the hosts."""
    with connected(race.settings) as services:
        redis = open_redis(services)
        asyncio.run(forget(redis))


async def forget(redis: Redis) -> None:
    """Empty a Redis in which no message waits."""
    await redis.flushall()
    await close_redis(redis)


def trusting(race: Race, environment: dict[str, str]) -> dict[str, str]:
    """The same environment; certificates of the race's own authority are valid in it."""
    return environment | ({"SSL_CERT_FILE": str(race.authority)} if race.authority else {})


def _run_floor(race: Race, decode: str, source: str) -> Timing:
    """At work: from the word to begin, given when all are ready, to the last one's end."""
    images = race.folder / "images"
    images.mkdir()
    work = race.urls if source == "web" else [str(race.pictures / name) for name in race.names]
    script, authority = str(Path(__file__).with_name("floor.py")), str(race.authority or "")
    started = time.monotonic()
    with ExitStack() as stack:
        log = stack.enter_context((race.folder / "floor.log").open("wb"))
        processes = []
        for number in range(PROCESSES):
            part = race.folder / f"part-{number}.txt"
            part.write_text("\n".join(work[number::PROCESSES]), "utf-8")
            command = [program("python"), "-P", script, str(part), str(images), decode, source]
            command += [str(race.connections), authority]
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


def _run_img2dataset(race: Race, options: Sequence[str]) -> Timing:
    kept, timing = crawl_with_img2dataset(race, options)
    check_kept("img2dataset", kept, race)
    return timing


def crawl_with_img2dataset(race: Race, options: Sequence[str]) -> tuple[int, Timing]:
    """How many pictures it got. Shards enough for both processes. At work: from the first shard's start to the last
    one's end, by its own statistics.
    """
    images = race.folder / "images"
    shard = -(-len(race.urls) // (PROCESSES * SHARDS_PER_PROCESS))
    command = [program("img2dataset"), "--url_list", str(race.list_file), "--output_folder", str(images)]
    command += ["--processes_count", str(PROCESSES), "--thread_count", str(race.connections)]
    command += ["--number_sample_per_shard", str(shard), "--timeout", str(SECONDS_MAX), *options]
    # One of its libraries asks the web for a newer version of itself at every start.
    environment = trusting(race, {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1"})
    _, wall_seconds = finish(race, "img2dataset", command, environment)
    shards = [json.loads(path.read_bytes()) for path in images.glob("*_stats.json")]
    begun, ended = (min(s["start_time"] for s in shards), max(s["end_time"] for s in shards))
    return sum(shard["successes"] for shard in shards), Timing(ended - begun, wall_seconds)


def scrapy(race: Race) -> Timing:
    """scrapy_pipeline.py in two processes. At work: from the word to begin to the last one's end."""
    images = race.folder / "images"
    images.mkdir()  # Otherwise both processes do, and one of them breaks off when it comes second.
    script = str(Path(__file__).with_name("scrapy_pipeline.py"))
    started = time.monotonic()
    with ExitStack() as stack:
        log = stack.enter_context((race.folder / "scrapy.log").open("wb"))
        processes = []
        for number in range(PROCESSES):
            part = race.folder / f"part-{number}.txt"
            part.write_text("\n".join(race.urls[number::PROCESSES]), "utf-8")
            command = [program("python"), "-P", script, str(part), str(images), str(race.connections)]
            processes.append(stack.enter_context(talking_to(command, log)))
        for process in processes:
            expect(process, "ready")
        begun = time.monotonic()
        for process in processes:
            say(process, "go")
        words = [hear(process) for process in processes]
        ended = time.monotonic()
    kept = sum(int(word) for word in words if word.isdigit())
    check_kept("Scrapy", kept, race)
    return Timing(ended - begun, time.monotonic() - started)
