"""``make bench-size``: how long each path through the database takes beside a large account and a million chunks.

It fills an embedded PostgreSQL of its own, walks the paths by the program's functions, and leaves nothing behind.
"""

import argparse
import datetime
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from string import Template
from typing import Any

from sqlalchemy import Engine, func, select, text

from benchmarks.filling import Size, fill
from benchmarks.hot_paths import Paths
from benchmarks.plans import Explainer
from benchmarks.report import machine
from models import Base
from models.database import make_engine, migrate
from models.queueing import Message
from scheduler.devstack import ServicesError, join

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "database_size.md"
TEMPLATE = Path(__file__).with_name("size.template.md")
LOAD_MAX = 0.5
BOUND = 20.0
BOUND_OF_CLAIM = 50.0
"""The first is one of medians, the second of 99th percentiles; a dispatch is a claim and more."""
LARGE = Size()
SMALL = Size(
    chunks=100,
    transactions=10_000,
    messages=1_000,
    ended_jobs=30,
    users=30,
    jobs=30,
    pending=10_000,
    stopped=10,
)
UNBOUNDED = (
    "audit",
    "checkpoint",
    "settle with 500",
    "dispatch",
    "out of credits",
    "bring along",
    "retry",
    "`users list`",
    "`projects list`",
)
"""Steps that read every row of an account on purpose, write hundreds of rows, have a claim in them, or show all."""
DRAWN = (
    "claim",
    "`show`",
    "`jobs`",
    "`credits history`",
    "settle with 500",
    "rescue",
    "stopped_jobs",
    "unblock_jobs",
)
"""Steps whose longest statement is drawn on the page."""


class Figures:
    """Milliseconds of each step: ``taken`` from the program's side, with the way there and back; ``worked`` by
    the server's process, where the kernel tells.
    """

    def __init__(self, engine: Engine) -> None:
        self.taken: dict[str, list[float]] = {}
        self.worked: dict[str, list[float]] = {}
        with engine.connect() as connection:
            # The pool has one connection, so there is one such process.
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            self.rows = {
                table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
                for table in Base.metadata.sorted_tables
            }
        self.schedule = Path(f"/proc/{pid}/schedstat")
        self.plans: dict[str, str] = {}

    def around(self, name: str, function: Callable[[], Any]) -> Any:
        """Call the function and keep how long it took under its name."""
        before = self._work()
        began = time.perf_counter()
        result = function()
        self.taken.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        self.worked.setdefault(name, []).append(self._work() - before)
        return result

    def _work(self) -> float:
        try:
            return int(self.schedule.read_text("ascii").split()[0]) / 1_000_000
        except OSError:
            return float("nan")


def main() -> int:
    """Measure, print, and write the page if asked to."""
    options = parse_arguments()
    # SIGTERM unwinds as Ctrl-C does, so that whatever was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    load = os.getloadavg()[0]
    if load > LOAD_MAX:
        print(f"The machine is not idle (load {load:.1f}): do not quote these figures.", file=sys.stderr)
    try:
        little = measure(SMALL, options.rounds)
        runs = [measure(LARGE, options.rounds) for _ in range(options.runs)]
    except ServicesError as error:
        print(f"bench-size: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(*table(runs, little), sep="\n")
    if options.write:
        PAGE.write_text(page(runs, little, load), "utf-8")
        print(f"\nWritten to {PAGE.relative_to(ROOT)}.")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.size", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=3, help="times that a database is filled and walked [3]")
    parser.add_argument(
        "--rounds", type=int, default=200, help="dispatches of the crowd's chunks in a run [200]"
    )
    parser.add_argument("--write", action="store_true", help="write docs/database_size.md")
    options = parser.parse_args()
    if min(options.runs, options.rounds) < 1:
        parser.error("at least one run and one round")
    return options


def measure(size: Size, rounds: int) -> Figures:
    """One run, on a server of its own: what one leaves dead is not read by the next."""
    with tempfile.TemporaryDirectory(prefix="pixtrawl-bench-") as scratch, join(Path(scratch)) as services:
        migrate(services.database_url)
        engine = make_engine(services.database_url)
        print(f"filling: {size.images:,} images …", file=sys.stderr, flush=True)
        job_id = fill(engine, size)
        figures = Figures(engine)
        print("walking …", file=sys.stderr, flush=True)
        walk(engine, job_id, figures, rounds)
        engine.dispose()
    return figures


def walk(engine: Engine, job_id: int, figures: Figures, rounds: int) -> None:
    """Every path, the frequent ones often."""
    paths = Paths(engine, job_id, figures.around)
    paths.prepare("INSERT INTO workers (name, slots, version) VALUES ('benchmark', 64, '0')")
    paths.audit()
    flight = [message for _ in range(8) for message in paths.dispatch()]
    for take, number in ((paths.work, 25), (paths.settle, 25)):
        for _ in range(number):
            take(flight.pop())
    for lost_leases_max in (3, 0) * 5:
        paths.rescue(flight.pop(), lost_leases_max=lost_leases_max)
    for _ in range(20):
        paths.look()
        paths.round()
        paths.publish_again()
    figures.plans = explain(engine, job_id, flight)
    for _ in range(3):
        paths.pause()
        flight = [message for _ in range(4) for message in paths.dispatch()]
    paths.reprioritize()
    paths.run_out()
    for message in flight[:10]:
        paths.hand_back(message)
    paths.cancel()
    paths.retry()
    paths.cancel()
    walk_the_crowd(paths, rounds)


def walk_the_crowd(paths: Paths, rounds: int) -> None:
    """Chunks of a thousand users from the claim to the end, a hundred in flight; and rounds with nothing to do."""
    flight: list[Message] = []
    for number in range(rounds):
        flight += paths.dispatch()
        while len(flight) > 100:
            paths.settle(flight.pop(0))
        if number % 10 == 0:
            paths.round()


def explain(engine: Engine, job_id: int, flight: list[Message]) -> dict[str, str]:
    """The plan of the longest statement of each step of DRAWN, with chunks in flight."""
    with Explainer(engine, draw=True) as explainer:
        paths = Paths(engine, job_id, explainer.around)
        paths.look()
        paths.round()
        paths.settle(flight.pop())
        flight += paths.dispatch(1)
        paths.rescue(flight.pop(), lost_leases_max=3)
    steps = {name: explainer.steps[name] for name in DRAWN}
    return {name: max(steps[name], key=lambda explained: explained.milliseconds).drawing for name in steps}


def table(runs: Sequence[Figures], little: Figures) -> list[str]:
    """Each step: how often it was walked in a run; the medians over the runs of median, p99 and longest."""
    lines = [
        "| step | times | median ms | p99 ms | longest ms | bound ms | server's work ms | small account ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in runs[-1].taken:
        taken = [sorted(run.taken[name]) for run in runs]
        middle, late, longest = (median(map(pick, taken)) for pick in (median, percentile_99, max))
        bound = BOUND_OF_CLAIM if name == "claim" else None if name.startswith(UNBOUNDED) else BOUND
        cells = [name, str(len(taken[-1])), f"{middle:.1f}", f"{late:.1f}", f"{longest:.1f}"]
        if bound is not None and (late if name == "claim" else middle) > bound:
            cells[3 if name == "claim" else 2] += " **!**"
        worked = median(median(run.worked[name]) for run in runs)
        cells += ["" if bound is None else f"{bound:.0f}", f"{worked:.1f}"]
        cells.append(f"{median(little.taken[name]):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def percentile_99(times: Sequence[float]) -> float:
    """Of sorted times; the longest when there are few."""
    return times[round(0.99 * (len(times) - 1))]


def page(runs: Sequence[Figures], little: Figures, load: float) -> str:
    """docs/database_size.md, from the template beside this file."""
    drawings = [
        f"<details>\n<summary>{name}</summary>\n\n```\n{plan}\n```\n\n</details>"
        for name, plan in runs[-1].plans.items()
    ]
    rows = sorted(runs[-1].rows.items(), key=lambda item: (-item[1], item[0]))
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        machine=machine(),
        load=f"{load:.1f}",
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        runs=len(runs),
        rows=", ".join(f"{count:,} `{name}`" for name, count in rows if count),
        figures="\n".join(table(runs, little)),
        plans="\n\n".join(drawings),
    )


if __name__ == "__main__":
    sys.exit(main())
