"""How rate and memory go with the length of the list, from a thousand candidates on, and with the children.

Scaled down on purpose, so that a million fits into minutes: pictures are of 100 bytes, and the longest lists have
lines that are no URL, which need no web. What is left is what must not grow: splitting, queue, rows, credits,
memory.
"""

import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from benchmarks import contenders, sites, web_server
from benchmarks.race import PROCESSES, Race, RunError, check_kept
from benchmarks.setting import Bench, Section, listed
from benchmarks.usage import CHILD, watching

CONNECTIONS = 64
SMALLEST = 1_000
TINY_SHARE = 10
"""Pictures are fetched for lists of up to a tenth of the longest one."""
CHILDREN = (1, 2, 4, 8)
LATENCY_SECONDS = 0.2
FEW_CONNECTIONS = 16
"""With this latency and so few, a child gets 80 pictures a second and no more; eight of them fit the machine."""
SECONDS = 10
HOSTS = 20
"""Of the far site; each is asked for its robots.txt and its reservation first, a latency each."""
BY_SIZE = (
    "candidates",
    "what they are",
    "candidates/s",
    "a child, MB",
    "scheduler, MB",
    "bytes of rows for each",
)
BY_CHILDREN = ("children", "far site, images/s", "its limit", "near site, images/s")
CHILDREN_TEXT = f"""\
By the number of children, on these two processors. The far site answers after {LATENCY_SECONDS * 1000:.0f} ms and \
gives tiny pictures, over {FEW_CONNECTIONS} connections for each child: there a worker waits, and more children \
are more images. What is missing to its limit are the ends of chunks: a child begins the next one when the last \
transfers of one are over, and a short list has small ones. The near one is the fast site: there it computes, over \
{CONNECTIONS}."""
SIZE = text("SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables")


def measure(bench: Bench) -> Section:
    """Both tables."""
    lines = [
        "By the length of the list:",
        "",
        *listed(BY_SIZE, list(by_size(bench))),
        "",
        CHILDREN_TEXT,
        "",
        *listed(BY_CHILDREN, list(by_children(bench))),
    ]
    return Section("\n".join(lines))


def by_size(bench: Bench) -> Iterator[tuple[str, ...]]:
    """A row for each list: tiny pictures first, lines that are no URL after."""
    with (
        tempfile.TemporaryDirectory(dir=bench.scratch) as folder,
        sites.web(bench.pictures, Path(folder)) as web,
    ):
        for count in sizes(bench.options.candidates // TINY_SHARE):
            lines = (web.url(0, f"/t/{number}") for number in range(count))
            yield grown(bench, count, "tiny pictures", lines, {})
    for count in sizes(bench.options.candidates):
        # A list of which no line is a URL is refused at submit: the first is one, of a port where nobody listens.
        first = f"http://127.0.0.1:{web_server.free_port()}/"
        lines = (f"line {number}" if number else first for number in range(count))
        yield grown(bench, count, "no URLs", lines, {"invalid_url": count - 1, "connect": 1})


def sizes(largest: int) -> Iterator[int]:
    """Ten times as many each time."""
    count = min(SMALLEST, largest)
    while count <= largest:
        yield count
        count *= 10


def grown(
    bench: Bench, count: int, what: str, lines: Iterable[str], failures: dict[str, int]
) -> tuple[str, ...]:
    """Crawl one list; its row. Raises RunError when an outcome is missing or another than was to be expected."""
    before = database_bytes(bench)
    with prepared(bench, lines, count) as race, watching(bench.scratch) as usage:
        job, timing = contenders.crawl(race, ["--concurrency", str(PROCESSES)])
    expected = count - sum(failures.values())
    if job["valid_images"] != expected or job["failures"] != failures:
        raise RunError(
            f"{count} candidates ({what}) ended as {job['valid_images']} images, {job['failures']}."
        )
    memory = usage.megabytes()
    say(f"{count:,} candidates ({what}) in {timing.work_seconds:.1f} s")
    return (
        f"{count:,}",
        what,
        f"{count / timing.work_seconds:,.0f}",
        f"{memory.get(CHILD, 0):,.0f}",
        f"{memory.get('scheduler', 0):,.0f}",
        f"{max(0, database_bytes(bench) - before) / count:,.0f}",
    )


def by_children(bench: Bench) -> Iterator[tuple[str, ...]]:
    """A row for each number of children."""
    names = bench.names()
    per_child = round(FEW_CONNECTIONS / LATENCY_SECONDS)
    for children in CHILDREN:
        count = per_child * children * SECONDS
        latency = (LATENCY_SECONDS, LATENCY_SECONDS)
        with (
            tempfile.TemporaryDirectory(dir=bench.scratch) as folder,
            sites.web(bench.pictures, Path(folder), hosts=HOSTS, latency_seconds=latency) as web,
        ):
            far = rate(bench, [web.url(n, f"/t/{n}") for n in range(count)], children, FEW_CONNECTIONS)
        with (
            tempfile.TemporaryDirectory(dir=bench.scratch) as folder,
            web_server.serving(bench.pictures, Path(folder)) as server,
        ):
            near = rate(bench, [f"{server.url}/{name}" for name in names], children, CONNECTIONS)
        yield str(children), f"{far:,.0f}", f"{per_child * children:,}", f"{near:,.0f}"


def rate(bench: Bench, urls: list[str], children: int, connections: int) -> float:
    """Images a second of one run."""
    with prepared(bench, urls, len(urls)) as race:
        fewer = replace(race, connections=connections)
        job, timing = contenders.crawl(fewer, ["--concurrency", str(children)])
    check_kept("Pixtrawl", job["valid_images"], race)
    say(f"{len(urls):,} pictures with {children} children in {timing.work_seconds:.1f} s")
    return len(urls) / timing.work_seconds


@contextmanager
def prepared(bench: Bench, lines: Iterable[str], count: int) -> Iterator[Race]:
    """A race over these lines, which are written to its list one by one."""
    with tempfile.TemporaryDirectory(dir=bench.scratch) as folder:
        settings = bench.settings.model_copy(update={"transfer_attempts": 1})
        race = Race((), count, CONNECTIONS, settings, bench.scratch, bench.pictures, folder=Path(folder))
        with race.list_file.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
        yield race


def say(sentence: str) -> None:
    """A run is over; the longest takes minutes."""
    print(f"growth: {sentence}", file=sys.stderr, flush=True)


def database_bytes(bench: Bench) -> int:
    """Bytes of all tables with their indexes."""
    engine = create_engine(bench.services.sqlalchemy_url, poolclass=NullPool)
    with engine.connect() as connection:
        return int(connection.execute(SIZE).scalar_one())
