"""``submit --quote``: what a job would bring and cost, from some of its candidates. Holds no arithmetic."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from models.outcomes import Reason
from scheduler.commands.asked import Asked
from scheduler.connect import open_database
from scheduler.interrupts import INTERRUPTED, Interrupts
from scheduler.printing import clipped, count, counted, duration, print_json, print_rich, size
from scheduler.progress import shares
from scheduler.quote import Ears, make_quote
from worker.child import StuckError, leave_at_once

SEED = 1
"""The same input gives the same sample."""
FAILED = 1
STOPPING = "Stopping: what is known so far follows."
UNANSWERED = "no answer in time"


def show_quote(
    asked: Asked, options: Mapping[str, Any], project: str | None, user: str | None, *, as_json: bool
) -> int:
    """Try some candidates and print what follows from them; the exit code."""
    try:
        return _show_quote(asked, options, project, user, as_json=as_json)
    except StuckError as error:
        say(f"pixtrawl: {error}: leave it out, or crawl it by a job, which goes on without it.")
        leave_at_once(FAILED)  # An ordinary end would wait for the thread that hangs.


def _show_quote(
    asked: Asked, options: Mapping[str, Any], project: str | None, user: str | None, *, as_json: bool
) -> int:
    from models.database import transaction
    from models.logs import hushed
    from scheduler.enqueue import find_owner, read_request

    asked.refuse_both_looks()
    with open_database() as (settings, engine), Interrupts(STOPPING, say) as interrupts:
        supply, wanted = read_request(settings, asked.given(settings), **options)
        with transaction(engine) as session:
            owner = find_owner(session, settings, project, user, paying=False)
        with hushed(settings), listening(interrupts, supply.title) as ears:
            quote = make_quote(settings, engine, supply, wanted, owner, random=random.Random(SEED), ears=ears)
    if as_json:
        print_json(quote)
    else:
        print_rich(summary(quote))
    if quote["interrupted"]:
        return INTERRUPTED
    return 0 if quote["sample"]["size"] else FAILED


@contextmanager
def listening(interrupts: Interrupts, title: str) -> Iterator[Ears]:
    """A bar while candidates are tried, on a terminal; else a line. Ctrl-C stops the trial, not the command."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True, highlight=False),
        transient=True,
        disable=not sys.stderr.isatty(),
    )

    task = bar.add_task(f"Looking at {clipped(title)}", total=None)

    def begun(number: int, population: int | None) -> None:
        if bar.disable:
            say(f"Trying {candidates(number, population)}.")
        bar.update(task, description="Trying candidates", total=number, completed=0)

    def asking() -> None:
        interrupts.gentle = True

    with bar:
        yield Ears(interrupts.stop.is_set, asking, begun, lambda done: bar.update(task, completed=done))


def candidates(number: int, population: int | None) -> str:
    """200 of 20,000 candidates."""
    if population is None or population == number:
        return counted(number, "candidate")
    return f"{count(number)} of {counted(population, 'candidate')}"


def summary(quote: Mapping[str, Any]) -> Group:
    """What was tried, what to expect by reason, what it takes, and what to know about these figures."""
    sample = quote["sample"]
    tried = candidates(sample["size"], quote["candidates"])
    how = (
        ""
        if sample["size"] == quote["candidates"]
        else " at random"
        if sample["at_random"]
        else ", the first"
    )
    title = f"Quote for '{quote['name']}': {tried}{how} tried in {duration(sample['seconds'])}."
    sentences = [Text(sentence, overflow="fold") for sentence in quote["notes"]]
    return Group(Text(title, style="bold"), figures(quote), *sentences)


def figures(quote: Mapping[str, Any]) -> Table:
    """One line for each outcome, and one for what they take."""
    table = Table(box=None, show_header=True, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    table.add_column("")
    table.add_column("sample", justify="right")
    table.add_column("expected", justify="right")
    table.add_column("")
    sample, images = quote["sample"], quote["images"]
    confidence = f"{count(images['low'])} to {count(images['high'])} ({images['confidence']:.0%})"
    table.add_row("accepted", count(sample["accepted"]), count(images["expected"]), confidence)
    for reason, number in sample["failures"].items():
        expected = quote["failures"].get(reason)
        answers = shares(sample["statuses"]) if reason == Reason.HTTP_STATUS else ""
        table.add_row(f"  {reason}", count(number), "" if expected is None else count(expected), answers)
    if sample["unanswered"]:
        table.add_row(f"  {UNANSWERED}", count(sample["unanswered"]), count(quote["unanswered"]), "")
    if quote["seconds"] is not None:
        table.add_row("bytes", "", size(quote["wire_bytes"]), f"{size(quote['bytes'])} of them stored")
        table.add_row("time", "", duration(quote["seconds"]), pace(quote["pace"]))
    credits_ = quote["credits"]
    bound = (
        f"{count(credits_['low'])} at least" if quote["at_least"] else f"{count(credits_['high'])} at most"
    )
    has = f"{bound}; {credits_['user']} has {count(credits_['balance'])}"
    if credits_["monthly_left"] < credits_["balance"]:
        has += f", and may spend {count(credits_['monthly_left'])} this month"
    table.add_row("credits", "", count(credits_["expected"]), has)
    return table


def pace(pace: Mapping[str, Any]) -> str:
    """What the time was reckoned from."""
    if pace["slowest_host"]:
        return f"as fast as {pace['slowest_host']} may be asked"
    if not pace["workers"]:
        return f"with {counted(pace['slots'], 'processor')} of this machine: no worker is running"
    workers = counted(pace["workers"], "worker")
    return f"with {counted(pace['slots'], 'slot')} of {workers}, each as fast as this machine"


def say(sentence: str) -> None:
    """Talk goes to standard error."""
    click.echo(sentence, err=True)
