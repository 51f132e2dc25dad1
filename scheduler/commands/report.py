"""``pixtrawl report``: every outcome of a job counted, by reason and by host, with what the pattern tells."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.text import Text

from scheduler.commands.jobs import job_argument
from scheduler.commands.options import json_option
from scheduler.connect import open_database
from scheduler.explain import report as count_job
from scheduler.printing import clipped, count, counted, print_json, print_rich, print_table
from scheduler.progress import find_job, pages_read, shares, title

OUTCOMES = ("OUTCOME", "CANDIDATES", "SHARE", "MEAN MS", "STATUSES")
FAILING = ("FAILING HOST", "FAILURES", "ACCEPTED", "MEAN MS", "REASONS")
GIVING = ("GIVING HOST", "ACCEPTED", "FAILURES", "MEAN MS")
SEARCHES = ("KEYWORD", "PROVIDER", "ACCEPTED", "CANDIDATES", "ENDED")
NUMBERS = ("CANDIDATES", "SHARE", "MEAN MS", "FAILURES", "ACCEPTED")
REASONS_SHOWN = 3


@click.command()
@job_argument
@click.option(
    "--hosts",
    "hosts_max",
    type=click.IntRange(1, 10_000),
    default=10,
    show_default=True,
    help="So many hosts at most, of those that fail most and of those that give most.",
)
@json_option
def report(job: int, hosts_max: int, as_json: bool) -> None:
    """Count every outcome of a job by reason, status and host, and say what the pattern tells.

    Reads every row, page by page: seconds for a million. `pixtrawl show` tells about the same from a sample;
    `pixtrawl failures` lists the rows.
    """
    with open_database() as (_, engine):
        found = find_job(engine, job)
        document = count_job(engine, found, hosts_max)
    if as_json:
        print_json(document)
        return
    print_rich(title(found))
    print_outcomes(document["outcomes"], found["total_images"])
    print_searches(document["searches"])
    if document["pages"]:
        print_rich(pages_read(document["pages"]))
    print_hosts(document)
    for hint in document["hints"]:
        print_rich(Text(hint["message"]))


def print_outcomes(outcomes: Mapping[str, Mapping[str, Any]], total: int) -> None:
    """A line for each outcome that there is."""
    rows = [
        (
            name,
            count(outcome["candidates"]),
            f"{100 * outcome['candidates'] / max(total, 1):.1f} %",
            milliseconds(outcome),
            shares(outcome["statuses"]),
        )
        for name, outcome in outcomes.items()
    ]
    print_block(OUTCOMES, rows)


def print_searches(searches: Sequence[Mapping[str, Any]]) -> None:
    """What each keyword brought at each provider, if the job searches."""
    rows = [
        (
            clipped(search["keyword"]),
            search["provider"],
            count(search["accepted"]),
            count(search["candidates"]),
            search["ended"] or "",
        )
        for search in searches
    ]
    print_block(SEARCHES, rows)


def print_hosts(document: Mapping[str, Any]) -> None:
    """The hosts that fail most, and those that give most."""
    failing = [
        (
            clipped(host["host"]),
            count(host["failures"]),
            count(host["accepted"]),
            milliseconds(host),
            reasons(host["reasons"]),
        )
        for host in document["hosts"]
    ]
    giving = [
        (clipped(host["host"]), count(host["accepted"]), count(host["failures"]), milliseconds(host))
        for host in document["hosts_accepted"]
    ]
    print_block(FAILING, failing)
    print_block(GIVING, giving)
    if document["hosts_total"] > len(document["hosts"]):
        click.echo(f"{counted(document['hosts_total'], 'host')} in all: --hosts shows more.", err=True)


def print_block(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table if it has rows, and a blank line where the table draws none itself."""
    if not rows:
        return
    print_table(columns, rows, numbers=NUMBERS, spare=("MEAN MS",))
    if not sys.stdout.isatty():
        click.echo()


def reasons(counts: Mapping[str, int]) -> str:
    """The most frequent reasons: http_status 84, timeout 3."""
    said = [f"{reason} {count(number)}" for reason, number in counts.items()]
    return ", ".join(said[:REASONS_SHOWN]) + (", …" if len(said) > REASONS_SHOWN else "")


def milliseconds(group: Mapping[str, Any]) -> str:
    """The mean time of transfers; nothing when none was timed."""
    return "" if group["mean_ms"] is None else count(group["mean_ms"])
