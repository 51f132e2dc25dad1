"""Following a job while others work on it, and the summary at its end. Reads only; never moves the job.

Progress goes to standard error: a live bar on a terminal, plain lines elsewhere.
"""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import click
from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.database import transaction, transient
from models.jobs import DISCOVERED, JobStatus, SourceState
from models.outcomes import Reason, Verification
from models.reports import job_report, live_workers
from scheduler.explain import explain
from scheduler.printing import clipped, count, duration, moment, place, size, state

UNENDED = frozenset({SourceState.SPLITTING, SourceState.OPEN})
ENDED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})
LOOK_SECONDS = 0.25
PLAIN_SECONDS = 5
HOSTS_SHOWN = 3
SEARCHES_SHOWN = 12
STATUSES_SHOWN = 3
WINDOW_SECONDS = 10
WORKERLESS_SECONDS = 15
DATABASE_AWAY_SECONDS_MAX = 60

Seen = TypeVar("Seen")


class UnknownJobError(LookupError):
    """There is no such job. The message is one sentence."""


def find_job(engine: Engine, job_id: int) -> dict[str, Any]:
    """The object of ``show --json``. Raises UnknownJobError."""
    with transaction(engine) as session:
        job = look_up(session, job_id)
        return job | explain(session, job)


def look_up(session: Session, job_id: int) -> dict[str, Any]:
    """What the job's row tells, without a look at its outcomes. Raises UnknownJobError."""
    job = job_report(session, job_id)
    if job is None:
        raise UnknownJobError(f"There is no job {job_id}: `pixtrawl jobs` shows those there are.")
    return job


def follow(
    engine: Engine, job_id: int, *, stop: Callable[[Mapping[str, Any]], bool] = lambda _: False
) -> dict[str, Any]:
    """Show a job's progress until it has ended, or ``stop`` says so of its report; return what ``find_job`` does.

    Raises UnknownJobError; a database that is away is waited for.
    """
    watched = Watched(engine, job_id)
    with open_display() as display:
        while True:
            job = watched.look()
            display.show(job, watched.status(job), watched.pace(job))
            if job["status"] in ENDED or stop(job):
                return watched.explained(job)
            time.sleep(LOOK_SECONDS)


@dataclass(frozen=True, slots=True)
class Pace:
    """How far a job is (0 to 1), accepted images per second lately, and seconds left when that can be told."""

    fraction: float
    images_per_second: float
    seconds_left: float | None


class Watched:
    """A job seen again and again: remembers enough to tell its pace."""

    def __init__(self, engine: Engine, job_id: int) -> None:
        self.engine = engine
        self.job_id = job_id
        self.samples: deque[tuple[float, int, float]] = deque()
        self.seen_at = self.moved_at = time.monotonic()
        self.workerless = False

    def look(self) -> dict[str, Any]:
        """The job now. Tries again for a while when the database is away."""
        job = self._read(partial(look_up, job_id=self.job_id))
        self._look_for_workers(job)
        return job

    def explained(self, job: dict[str, Any]) -> dict[str, Any]:
        """The job as it was seen, with why its candidates failed."""
        return job | self._read(partial(explain, job=job))

    def status(self, job: Mapping[str, Any]) -> str:
        """The job's state in words, or why nothing happens."""
        if self.workerless and not job["paused"] and job["status"] not in ENDED:
            return "waiting: no worker is running (start `pixtrawl up`)"
        if (
            job["source_wait"]
            and state(job) in {JobStatus.PENDING, JobStatus.RUNNING}
            and not job["active_chunks"]
        ):
            return f"waiting until {moment(job['source_available_at'])}: {job['source_wait']}"
        return state(job)

    def pace(self, job: Mapping[str, Any]) -> Pace:
        """Progress over the last seconds."""
        now = time.monotonic()
        fraction = fraction_done(job)
        if not self.samples or self.samples[-1][2] != fraction:
            self.moved_at = now
        self.samples.append((now, job["valid_images"], fraction))
        while now - self.samples[0][0] > WINDOW_SECONDS:
            self.samples.popleft()
        then, images, before = self.samples[0]
        seconds = now - then
        if seconds < 1 or fraction <= before:
            return Pace(fraction, 0, None)
        left = (1 - fraction) * seconds / (fraction - before)
        return Pace(fraction, (job["valid_images"] - images) / seconds, left)

    def _look_for_workers(self, job: Mapping[str, Any]) -> None:
        """Say so when a job stands still because nobody works."""
        still = time.monotonic() - self.moved_at > WORKERLESS_SECONDS
        self.workerless = still and not job["active_chunks"] and self._read(live_workers) == 0

    def _read(self, read: Callable[[Session], Seen]) -> Seen:
        """Read in a transaction; again for a while when the database is away."""
        while True:
            try:
                with transaction(self.engine) as session:
                    seen = read(session)
            except DBAPIError as error:
                if not transient(error) or time.monotonic() - self.seen_at > DATABASE_AWAY_SECONDS_MAX:
                    raise
                time.sleep(1)
            else:
                self.seen_at = time.monotonic()
                return seen


def fraction_done(job: Mapping[str, Any]) -> float:
    """Candidates with an outcome of all, or images of those wanted, whichever is further."""
    if job["status"] in ENDED:
        return 1.0
    accepted = job["valid_images"] / job["max_images"]
    if job["source_kind"] in DISCOVERED and job["source_state"] in UNENDED:
        return float(accepted)  # Nobody knows how many candidates there will be.
    resolved = (job["valid_images"] + job["failed_images"]) / max(1, job["total_images"])
    return float(max(resolved, accepted))


class Display(Protocol):
    """Where progress is shown."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, job: Mapping[str, Any], status: str, pace: Pace) -> None:
        """Show a job as it is now."""


def open_display() -> Display:
    """A live bar when standard error is a terminal, else plain lines."""
    return Bar() if sys.stderr.isatty() else Lines()


class Bar:
    """One line that is drawn again and again."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        self.task = self.progress.add_task("", total=1.0, figures="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def show(self, job: Mapping[str, Any], status: str, pace: Pace) -> None:
        """Draw the line."""
        text = f"Job {job['id']} {status}"
        self.progress.update(self.task, completed=pace.fraction, description=text, figures=figures(job, pace))


class Lines:
    """A line now and then, when it says something new."""

    def __init__(self) -> None:
        self.said_at = float("-inf")
        self.said = self.status = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, job: Mapping[str, Any], status: str, pace: Pace) -> None:
        """Print the line if it is due."""
        text = f"Job {job['id']} {status}: {pace.fraction:.0%}, {figures(job, pace)}"
        due = time.monotonic() - self.said_at >= PLAIN_SECONDS or status != self.status
        if due and text != self.said:
            click.echo(text, err=True)
            self.said_at, self.said, self.status = time.monotonic(), text, status


def figures(job: Mapping[str, Any], pace: Pace) -> str:
    """The counters of a progress line."""
    parts = [f"{count(job['valid_images'])} accepted", f"{count(job['failed_images'])} failed"]
    if pace.images_per_second:
        parts.append(f"{pace.images_per_second:.0f} images/s")
    if pace.seconds_left is not None and job["status"] not in ENDED:
        parts.append(f"{duration(round(pace.seconds_left))} left".replace(".0 s", " s"))
    return ", ".join(parts)


def summary(job: Mapping[str, Any]) -> RenderableType:
    """What became of a job: outcomes by reason, bytes, time and rate, credits, and where the images are."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    table.add_row("candidates", count(job["total_images"]), "")
    level = "" if job["verification"] == Verification.FULL else f" (verification: {job['verification']})"
    table.add_row("  accepted", count(job["valid_images"]), size(job["bytes"]) + level)
    for reason, number in sorted(job["failures"].items(), key=lambda pair: (-pair[1], pair[0])):
        answers = shares(job["statuses"]) if reason == Reason.HTTP_STATUS else ""
        table.add_row(f"  {reason}", count(number), answers)
    unresolved = job["total_images"] - job["valid_images"] - job["failed_images"]
    if unresolved:
        table.add_row("  no outcome yet", count(unresolved), "")
    if job["source_detail"] or job["source_wait"]:
        table.add_row("source", "", job["source_detail"] or waiting(job))
    if job["ignored_opt_outs"]:
        table.add_row("opt-outs not obeyed", "", ", ".join(job["ignored_opt_outs"]))
    held = job["credits"]["held"]
    table.add_row(
        "credits charged", count(job["credits"]["charged"]), f"{count(held)} more held" if held else ""
    )
    where = Text(f"images in {place(job['store_url'] or '')}", overflow="fold")
    pages = [pages_read(job["pages"])] if job["pages"] else []
    searches = [by_keyword(job["searches"])] if job["searches"] else []
    hosts = [worst_hosts(job)] if job["hosts"] else []
    return Group(
        title(job), table, *pages, *searches, *hosts, where, *[Text(hint["message"]) for hint in job["hints"]]
    )


def waiting(job: Mapping[str, Any]) -> str:
    """Why a source yields nothing now, and until when."""
    return f"{job['source_wait']}: it waits until {moment(job['source_available_at'])}"


def pages_read(pages: Mapping[str, Any]) -> RenderableType:
    """What became of the pages of a crawl: how many were read, wait, or failed, and why."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_row("pages", count(pages["known"]))
    table.add_row("  read", count(pages["read"]))
    for name, number in (
        ("    images refused by their owners", pages["images_refused"]),
        ("  redirected", pages["redirected"]),
        *((f"  {reason}", number) for reason, number in pages["failed"].items()),
        ("  not read yet", pages["pending"]),
    ):
        if number:
            table.add_row(name, count(number))
    return table


def by_keyword(searches: Sequence[Mapping[str, Any]]) -> RenderableType:
    """What each keyword brought: cat (openverse) 120 of 150 candidates, openverse has no more."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for search in searches[:SEARCHES_SHOWN]:
        accepted = "?" if search["accepted"] is None else count(search["accepted"])
        name = f"  {clipped(search['keyword'])} ({search['provider']})"
        table.add_row(name, f"{accepted} of {count(search['candidates'])}", search["ended"] or "")
    if len(searches) > SEARCHES_SHOWN:
        table.add_row(f"  and {len(searches) - SEARCHES_SHOWN} more", "", "")
    return Group("accepted by keyword", table)


def shares(statuses: Mapping[str, int]) -> str:
    """The most frequent statuses and their parts: 404 (90 %), 403 (10 %)."""
    total = sum(statuses.values())
    said = [f"{status} ({100 * number / total:.0f} %)" for status, number in statuses.items()]
    return ", ".join(said[:STATUSES_SHOWN])


def worst_hosts(job: Mapping[str, Any]) -> RenderableType:
    """The hosts with most failures, and why."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    about = "about " if job["hosts_sampled"] else ""
    for host in job["hosts"][:HOSTS_SHOWN]:
        asked = host["failures"] + host["accepted"]
        number = f"{about}{count(host['failures'])} of {count(asked)}"
        table.add_row(f"  {clipped(host['host'])}", number, main_reason(host))
    return Group("failures by host", table)


def main_reason(host: Mapping[str, Any]) -> str:
    """Why a host failed most: mostly http_status 403."""
    reason = next(iter(host["reasons"]))
    status = f" {next(iter(host['statuses']))}" if reason == Reason.HTTP_STATUS and host["statuses"] else ""
    return f"{'mostly ' if len(host['reasons']) > 1 else ''}{reason}{status}"


def title(job: Mapping[str, Any]) -> Text:
    """Job 7 'birds.txt' completed in 12.3 s (142 images/s); how long it has stood still is not known."""
    text = f"Job {job['id']} '{job['name']}' {state(job)}"
    seconds = job["duration_seconds"]
    if seconds and state(job) not in {*ENDED, JobStatus.RUNNING}:
        text += f" (started {duration(seconds)} ago)"
    elif seconds:
        verb = "in" if job["status"] in ENDED else "for"
        text += f" {verb} {duration(seconds)} ({job['valid_images'] / seconds:,.0f} images/s)"
    return Text(text, style="bold")
