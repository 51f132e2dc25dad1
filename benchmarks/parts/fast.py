"""A fast site on loopback: Pixtrawl beside the bare floors, img2dataset and Scrapy, with the same connections."""

from collections.abc import Mapping
from statistics import median

from benchmarks import contenders, plot, web_server
from benchmarks.race import PROCESSES, Contender, Race, Rounds, race_all, rates, ratios
from benchmarks.setting import Bench, Section
from models.outcomes import Verification

CONNECTIONS = 64
FULL, HEADER = "Pixtrawl, `--verify full`", "Pixtrawl, `--verify header`"
FLOOR, FLOOR_MEMORY = "floor: libcurl, decode, hash, write", "floor without the fetch"
SHRUNK, SHRUNK_MEMORY = "floor, JPEGs shrunk as they are decoded", "the same without the fetch"
UNDECODED = "floor that decodes nothing"
FILES, WEBDATASET = "img2dataset, its defaults", "img2dataset, webdataset"
NO_DECODE, SCRAPY = "img2dataset, webdataset, no decode", "Scrapy's images pipeline"

PAIRS = (
    (FULL, FLOOR, 0.85),
    (FULL, FLOOR_MEMORY, 0.75),
    (FULL, SHRUNK, None),
    (FULL, SHRUNK_MEMORY, None),
    (FULL, FILES, 2.0),
    (FULL, WEBDATASET, None),
    (FULL, SCRAPY, None),
    (HEADER, NO_DECODE, 1.0),
    (HEADER, UNDECODED, None),
    (HEADER, FULL, None),
)


def measure(bench: Bench) -> Section:
    """All rounds, and how they compare."""
    names = bench.names()
    logs = bench.scratch / "server"
    logs.mkdir()
    with web_server.serving(bench.pictures, logs) as server:
        urls = [f"{server.url}/{name}" for name in names]
        race = Race(urls, len(urls), CONNECTIONS, bench.settings, bench.scratch, bench.pictures, tuple(names))
        rounds = race_all(choose(others=bench.others), race, bench.options.rounds)
    kilobytes = bench.mean_kilobytes(names)
    text = (
        f"{len(names):,} pictures of distinct bytes, {kilobytes:.0f} kB on average, from {server.program} on the "
        f"same processors; {PROCESSES} processes of {CONNECTIONS} connections; {len(rounds)} rounds."
    )
    lines = [text, "", *rates(rounds, len(names)), "", *ratios(rounds, PAIRS)]
    return Section("\n".join(lines), draw(rounds, len(names)))


def choose(*, others: bool) -> Mapping[str, Contender]:
    """Who races, in the order of each round: who is compared comes one after the other, for machines change."""
    ours = {FLOOR_MEMORY, FLOOR, FULL, HEADER, UNDECODED, SHRUNK, SHRUNK_MEMORY}
    everybody = {
        FLOOR_MEMORY: contenders.floor("full", "memory"),
        FLOOR: contenders.floor("full"),
        FULL: contenders.pixtrawl(Verification.FULL),
        FILES: contenders.img2dataset(contenders.FILES),
        WEBDATASET: contenders.img2dataset(contenders.WEBDATASET),
        SCRAPY: contenders.scrapy,
        HEADER: contenders.pixtrawl(Verification.HEADER),
        NO_DECODE: contenders.img2dataset(contenders.NO_DECODE),
        UNDECODED: contenders.floor("none"),
        SHRUNK: contenders.floor("shrunk"),
        SHRUNK_MEMORY: contenders.floor("shrunk", "memory"),
    }
    return {name: run for name, run in everybody.items() if others or name in ours}


def draw(rounds: Rounds, images: int) -> str:
    """A bar for each contender."""
    bars = []
    for name in rounds[0]:
        found = [images / timings[name].work_seconds for timings in rounds]
        bars.append(
            plot.Bar(name.replace("`", ""), median(found), min(found), max(found), "Pixtrawl" in name)
        )
    return plot.draw("Images a second from a fast local site, medians with least and most", bars)
