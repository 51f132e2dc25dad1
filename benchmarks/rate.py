"""``make bench``: Pixtrawl's rate, the bare floor's and img2dataset's in one run, and how they compare.

It leaves nothing running, and nothing behind but the pictures in the cache and .venv-bench.
"""

import argparse
import datetime
import ipaddress
import os
import random
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from benchmarks import contenders, environment, pictures, report, web_server
from benchmarks.contenders import Contender, Race, RunError, Timing
from models.settings import Settings, read_settings
from scheduler.connect import connected
from scheduler.servers import ServicesError

PAGE = environment.ROOT / "docs" / "performance.md"
LOAD_MAX = 0.5
ORDER_SEED = 7


def main() -> int:
    """Measure, print, and write the page if asked to."""
    options = parse_arguments()
    # SIGTERM unwinds as Ctrl-C does, so that whatever was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        rounds, circumstances = measure(options)
    except (RunError, ServicesError, environment.EnvironmentMissingError, web_server.ServerError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print("", *report.table(rounds, options.images), "", *report.ratios(rounds), sep="\n")
    if options.write:
        PAGE.write_text(report.page(rounds, circumstances), "utf-8")
        print(f"\nWritten to {PAGE.relative_to(environment.ROOT)}.")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/rate.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=positive, default=5, help="rounds of all contenders [5]")
    parser.add_argument("--images", type=positive, default=3000, help="pictures in the list [3000]")
    parser.add_argument("--skip-img2dataset", action="store_true", help="leave img2dataset out")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    options = parser.parse_args()
    if options.write and options.skip_img2dataset:
        parser.error("the page compares with img2dataset, too: --write needs it")
    return options


def positive(text: str) -> int:
    """A number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return number


def measure(options: argparse.Namespace) -> tuple[list[Mapping[str, Timing]], report.Circumstances]:
    """All rounds, with services and web server started once for them."""
    load = os.getloadavg()[0]
    if load > LOAD_MAX:
        print(f"The machine is not idle (load {load:.1f}): do not quote these figures.", file=sys.stderr)
    racing = choose(img2dataset=not options.skip_img2dataset)
    cache = Path(platformdirs.user_cache_dir("pixtrawl")) / "bench"
    print(f"{options.images} pictures in {cache} …", file=sys.stderr, flush=True)
    folder = pictures.make_pictures(cache, options.images)
    names = sorted(path.name for path in folder.iterdir())
    # The server reads from memory in every run, the first one too.
    mean_bytes = sum(len((folder / name).read_bytes()) for name in names) / len(names)
    random.Random(ORDER_SEED).shuffle(names)
    with tempfile.TemporaryDirectory(prefix="pixtrawl-bench-") as scratch:
        settings = read_settings(
            home=Path(scratch) / "home",
            database_url=None,
            redis_url=None,
            store_url=None,
            allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),),
        )
        logs = Path(scratch) / "server"
        logs.mkdir()
        with web_server.serving(folder, logs) as server, connected(settings):
            circumstances = report.Circumstances(
                len(names), mean_bytes, server.program, datetime.datetime.now(datetime.UTC).date().isoformat()
            )
            introduce(circumstances)
            urls = [f"{server.url}/{name}" for name in names]
            rounds = race_all(racing, urls, Path(scratch), settings, options.rounds)
    return rounds, circumstances


def choose(*, img2dataset: bool) -> dict[str, Contender]:
    """Who races, in the order of each round."""
    available = environment.prepare(img2dataset=img2dataset)
    racing: dict[str, Contender] = {
        report.OURS: contenders.run_pixtrawl,
        report.FLOOR: contenders.run_floor,
        report.SHRUNK_FLOOR: contenders.run_shrunk_floor,
    }
    if available:
        racing[report.IMG2DATASET] = contenders.run_img2dataset
    elif img2dataset:
        print("img2dataset cannot be installed here and is left out.", file=sys.stderr)
    return racing


def introduce(circumstances: report.Circumstances) -> None:
    """Print what the figures depend on."""
    print(f"machine: {report.machine()}")
    print(f"server: {circumstances.server}, on the same processors")
    print(f"list: {circumstances.images} pictures, {circumstances.mean_bytes / 1000:.1f} kB on average")


def race_all(
    racing: Mapping[str, Contender], urls: list[str], scratch: Path, settings: Settings, rounds: int
) -> list[Mapping[str, Timing]]:
    """Round after round, each contender once in each. Raises RunError."""
    list_file = scratch / "urls.txt"
    list_file.write_text("\n".join(urls) + "\n", "utf-8")
    results: list[Mapping[str, Timing]] = []
    for number in range(1, rounds + 1):
        timings = {}
        for name, run in racing.items():
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                # Nobody pays for the writing that another one left to the kernel.
                os.sync()
                timings[name] = run(Race(list_file, urls, Path(folder), settings))
            rate = len(urls) / timings[name].work_seconds
            wall_rate = len(urls) / timings[name].wall_seconds
            print(
                f"round {number}  {name:13} {rate:6.0f} images/s  ({wall_rate:.0f} by the wall clock)",
                flush=True,
            )
        results.append(timings)
    return results


if __name__ == "__main__":
    sys.exit(main())
