"""``make bench``: how fast Pixtrawl is beside the bare minimum and beside others, part by part, in one run.

It leaves nothing running, and nothing behind but the pictures in the cache, .venv-bench and the page if it is
asked to write it.
"""

import argparse
import datetime
import importlib
import ipaddress
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import platformdirs

from benchmarks import environment, page, pictures, report, web_server
from benchmarks.race import RunError
from benchmarks.setting import Bench, Section
from models.database import SchemaError
from models.logs import configure_logs
from models.settings import read_settings
from scheduler.connect import connected
from scheduler.servers import ServicesError

PARTS = ("fast", "slow", "tls", "limit", "stages", "growth", "split", "queue")
WITH_OTHERS = {"fast", "slow", "tls", "limit"}
LOAD_MAX = 0.5
FAILURES = (
    RunError,
    ServicesError,
    SchemaError,
    environment.EnvironmentMissingError,
    web_server.ServerError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the page if asked to."""
    options = parse_arguments(arguments)
    # SIGTERM unwinds as Ctrl-C does, so that whatever was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    configure_logs(read_settings(log_level="warning"))
    try:
        for name in options.only:
            section = measure(options, name)
            print("", f"# {name}", "", section.text, sep="\n", flush=True)
            if options.write:
                page.write(name, section)
    except FAILURES as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"{PARTS}")
    parser.add_argument("--rounds", type=positive, default=5, help="rounds of all contenders [5]")
    parser.add_argument("--images", type=positive, default=3000, help="pictures in a list [3000]")
    parser.add_argument(
        "--hosts", type=positive, default=2000, help="hosts of the slow web and of TLS [2000]"
    )
    parser.add_argument(
        "--rate", type=positive, default=40, help="requests a second of the limited host [40]"
    )
    parser.add_argument(
        "--candidates", type=positive, default=1_000_000, help="candidates that growth ends at [1000000]"
    )
    parser.add_argument("--urls", type=positive, default=10_000_000, help="URLs that are split [10000000]")
    parser.add_argument("--pending", type=positive, default=1_000_000, help="chunks that wait [1000000]")
    parser.add_argument(
        "--home",
        type=Path,
        help="where services run, kept with the filled database of queue [gone afterwards]",
    )
    parser.add_argument("--alone", action="store_true", help="leave img2dataset and Scrapy out")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    options = parser.parse_args(arguments)
    if options.write and options.alone:
        parser.error("the page compares with others, too: --write needs them")
    return options


def positive(text: str) -> int:
    """A number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1")
    return number


def measure(options: argparse.Namespace, name: str) -> Section:
    """One part, with services and an empty folder of its own."""
    load = os.getloadavg()[0]
    if load > LOAD_MAX:
        print(f"The machine is not idle (load {load:.1f}): do not quote these figures.", file=sys.stderr)
    others = name in WITH_OTHERS and environment.prepare(others=not options.alone)
    cache = Path(platformdirs.user_cache_dir("pixtrawl")) / "bench"
    print(f"{name}: {options.images} pictures in {cache} …", file=sys.stderr, flush=True)
    folder = pictures.make_pictures(cache, options.images)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pixtrawl-bench-")))
        settings = read_settings(
            home=options.home or scratch / "home",
            database_url=None,
            redis_url=None,
            store_url=None,
            allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),),
        )
        services = stack.enter_context(connected(settings))
        bench = Bench(options, scratch, folder, settings, services, others)
        section = importlib.import_module(f"benchmarks.parts.{name}").measure(bench)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    introduction = f"*{report.machine()}; load before it {load:.1f}. {date}.* {section.text}"
    return Section(introduction, section.drawing)


if __name__ == "__main__":
    sys.exit(main())
