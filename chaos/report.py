"""What the faults came to, in words: a line for each run, the table, the page. It runs nothing itself.

``python -m chaos.report RECORD…`` writes the page from the records of several runs.
"""

import dataclasses
import datetime
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from string import Template

from chaos.registry import load
from chaos.runner import Result

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reliability.md"
TEMPLATE = Path(__file__).with_name("reliability.template.md")
HEAD = [
    "| fault | injected | jobs | recovery, median | longest | end check |",
    "|---|---|---|---|---|---|",
]


def line(result: Result) -> str:
    """One run in one line."""
    seconds = " ".join(f"{value:.1f}" for value in sorted(result.recoveries)[-5:])
    check = "good" if result.good else f"{len(result.differences)} differences"
    return (
        f"{result.fault.noun:10} {result.fault.name:32} {result.injected:>4} times {result.seconds:6.1f} s  "
        f"{result.jobs} jobs, {result.refused} submissions refused, {result.orphans} orphans, "
        f"recovered after {seconds or '-'} s: {check}"
    )


def table(results: Sequence[Result]) -> list[str]:
    """A line for each fault, all its runs together."""
    by_name: dict[str, list[Result]] = {}
    for result in results:
        by_name.setdefault(result.fault.name, []).append(result)
    return HEAD + [_row(runs) for runs in by_name.values()]


def _row(runs: Sequence[Result]) -> str:
    recoveries = [seconds for run in runs for seconds in run.recoveries]
    times = [f"{median(recoveries):.1f} s", f"{max(recoveries):.1f} s"] if recoveries else ["-", "-"]
    bad = sum(not run.good for run in runs)
    check = f"**{bad} of {len(runs)} runs differ**" if bad else "good"
    sentence = runs[0].fault.sentence.rstrip(".")
    figures = [sum(run.injected for run in runs), sum(run.jobs for run in runs)]
    return f"| {sentence} (`{runs[0].fault.name}`) | {figures[0]} | {figures[1]} | {' | '.join(times)} | {check} |"


def page(results: Sequence[Result], date: str) -> str:
    """docs/reliability.md, from the template beside this file."""
    minutes = sum(result.seconds for result in results) / 60
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        machine=f"{os.cpu_count()} logical processors, {platform.system()}, Python {platform.python_version()}",
        date=date,
        seeds=", ".join(str(seed) for seed in sorted({result.seed for result in results})),
        minutes=f"{minutes:.0f}",
        injections=f"{sum(result.injected for result in results):,}",
        jobs=f"{sum(result.jobs for result in results):,}",
        table="\n".join(table(results)),
    )


def write(results: Sequence[Result]) -> None:
    """Write the page of what ran until today."""
    PAGE.write_text(page(results, datetime.datetime.now(datetime.UTC).date().isoformat()), "utf-8")
    print(f"\nWritten to {PAGE.relative_to(ROOT)}.")


def record(result: Result, path: Path) -> None:
    """Add one run to a record: a line of JSON."""
    names = [field.name for field in dataclasses.fields(result)]
    values = {name: getattr(result, name) for name in names} | {"fault": result.fault.name}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def read(path: Path) -> list[Result]:
    """The runs of a record."""
    faults = load()
    lines = path.read_text("utf-8").splitlines()
    return [Result(**values | {"fault": faults[values["fault"]]}) for values in map(json.loads, lines)]


if __name__ == "__main__":
    recorded = [result for name in sys.argv[1:] for result in read(Path(name))]
    order = list(load())
    recorded.sort(key=lambda result: order.index(result.fault.name))
    write(recorded)
