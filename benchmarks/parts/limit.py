"""One host with a limit: it serves so many requests a second and answers 429 with Retry-After beyond that.

Here the fastest is not the best: what counts is how near a crawler comes to the rate that the host offers, how
often it had to be told, and whether it got every picture all the same.
"""

import tempfile
from pathlib import Path

from benchmarks import contenders, sites
from benchmarks.race import PROCESSES, Race
from benchmarks.setting import Bench, Section, listed

CONNECTIONS = 64
SECONDS = 60
"""So long a run takes at the host's own rate."""
HEADER = (
    "contender",
    "pictures kept",
    "seconds",
    "of the host's rate",
    "answers 429",
    "429 for each picture",
)


def measure(bench: Bench) -> Section:
    """Each contender once."""
    rate = bench.options.rate
    count = min(rate * SECONDS, bench.options.images)
    rows = [visit(bench, rate, count, "Pixtrawl")]
    if bench.others:
        rows.append(visit(bench, rate, count, "img2dataset"))
    text = (
        f"{count:,} small pictures of one host that lets {rate} requests a second through (half a second's worth "
        f"at once) and answers 429, `Retry-After: 1`, beyond; at its own rate it takes {count / rate:.0f} seconds. "
        f"{PROCESSES} processes of {CONNECTIONS} connections, settings as they are by default."
    )
    return Section("\n".join([text, "", *listed(HEADER, rows)]))


def visit(bench: Bench, rate: int, count: int, who: str) -> tuple[str, str, str, str, str, str]:
    """One contender against a limited host of its own, whose bucket is full; its row."""
    with (
        tempfile.TemporaryDirectory(dir=bench.scratch) as web_folder,
        tempfile.TemporaryDirectory(dir=bench.scratch) as folder,
    ):
        with sites.web(bench.pictures, Path(web_folder), rate=rate) as web:
            urls = [web.url(0, f"/t/{number}") for number in range(count)]
            race = Race(
                urls,
                count,
                CONNECTIONS,
                bench.settings,
                bench.scratch,
                bench.pictures,
                folder=Path(folder),
            )
            race.list_file.write_text("\n".join(urls) + "\n", "utf-8")
            kept = keep(who, race)
        counts = web.counts
    seconds = max(counts["seconds"], 1 / rate)
    return (
        who,
        f"{kept:,} of {count:,}",
        f"{seconds:.0f}",
        f"{counts['served'] / seconds / rate:.2f}",
        f"{counts['refused']:,.0f}",
        f"{counts['refused'] / count:.2f}",
    )


def keep(who: str, race: Race) -> int:
    """How many pictures one got. Losing some is a result here."""
    if who == "Pixtrawl":
        job, _ = contenders.crawl(race, ["--concurrency", str(PROCESSES)], polite=True)
        return job["valid_images"]
    return contenders.crawl_with_img2dataset(race, contenders.FILES)[0]
