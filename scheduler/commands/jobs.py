"""``pixtrawl jobs``, ``show``, ``watch``, ``cancel``, ``pause``, ``resume``, ``priority``: jobs that exist."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import click

from models.database import transaction
from models.job_lifecycle import cancel_job, pause_job, resume_job
from models.jobs import JobStatus
from models.prioritizing import change_priority
from models.reports import chunk_reports, job_reports
from scheduler.commands.options import json_option, limit_option, user_option
from scheduler.connect import open_database
from scheduler.locked import patiently
from scheduler.printing import count, moment, print_json, print_rich, print_table, state
from scheduler.progress import ENDED, find_job, follow, summary

COLUMNS = (
    "JOB",
    "NAME",
    "PROJECT",
    "STATUS",
    "DONE",
    "CANDIDATES",
    "ACCEPTED",
    "FAILED",
    "PRIORITY",
    "CREATED",
)
SPARE = ("CREATED", "PROJECT", "PRIORITY")
NUMBERS = ("JOB", "DONE", "CANDIDATES", "ACCEPTED", "FAILED", "PRIORITY")
CHUNK_COLUMNS = ("CHUNK", "STATUS", "CANDIDATES", "ACCEPTED", "FAILED", "ATTEMPT", "LOST", "WORKER", "ERROR")
CHUNK_SPARE = ("WORKER", "LOST", "ATTEMPT")
CHUNK_NUMBERS = ("CHUNK", "ACCEPTED", "FAILED", "ATTEMPT", "LOST")
NO_JOBS = "There is no job yet: `pixtrawl submit` makes one."
job_argument = click.argument("job", type=click.IntRange(1, 2_147_483_647))


@click.command()
@click.option("--status", type=click.Choice([status.value for status in JobStatus]), help="Only these.")
@click.option("--project", help="Only those of this project: id or name.")
@user_option
@limit_option
@json_option
def jobs(status: str | None, project: str | None, user: str | None, limit: int, as_json: bool) -> None:
    """List jobs, the newest first; those of all users unless one is named.

    A narrow terminal shows fewer columns; --json has all.
    """
    with open_database() as (_, engine), transaction(engine) as session:
        reports = job_reports(session, status=status, project=project, user=user, limit=limit)
    if as_json:
        print_json(reports)
        return
    if not reports:
        click.echo("There is no such job." if status or project or user else NO_JOBS, err=True)
        return
    rows = [
        (
            str(job["id"]),
            job["name"],
            job["project"],
            state(job),
            f"{job['progress']} %",
            count(job["total_images"]),
            count(job["valid_images"]),
            count(job["failed_images"]),
            str(job["priority"]),
            moment(job["created_at"]),
        )
        for job in reports
    ]
    print_table(COLUMNS, rows, numbers=NUMBERS, spare=SPARE)


@click.command()
@job_argument
@click.option("--chunks", is_flag=True, help="Its chunks, too: `pixtrawl retry --chunk` takes their numbers.")
@json_option
def show(job: int, chunks: bool, as_json: bool) -> None:
    """Show one job: its state, its outcomes by reason and host, its credits and where its images are."""
    with open_database() as (_, engine):
        report = find_job(engine, job)
        if chunks:
            with transaction(engine) as session:
                report["chunks"] = chunk_reports(session, job)
    if as_json:
        print_json(report)
        return
    print_rich(summary(report))
    if report.get("chunks"):
        print_table(
            CHUNK_COLUMNS, map(_chunk_row, report["chunks"]), numbers=CHUNK_NUMBERS, spare=CHUNK_SPARE
        )


def _chunk_row(chunk: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(chunk["id"]),
        chunk["status"],
        f"{chunk['image_range'].get('start', 0)}-{chunk['image_range'].get('end', 0) - 1}",
        count(chunk["accepted"]),
        count(chunk["failed"]),
        str(chunk["attempt"]),
        str(chunk["retry_count"]),
        chunk["worker"] or "",
        chunk["error_message"] or "",
    )


@click.command()
@job_argument
@json_option
def watch(job: int, as_json: bool) -> int:
    """Follow a job until it ends. Ctrl-C stops watching; the job goes on.

    Exit code 0: the job completed; 1: it failed or was cancelled.
    """
    with open_database() as (_, engine):
        try:
            report = follow(engine, job)
        except KeyboardInterrupt:
            click.echo(f"Stopped watching; job {job} goes on while a worker runs.", err=True)
            raise
    if as_json:
        print_json(report)
    else:
        print_rich(summary(report))
    return 0 if report["status"] == JobStatus.COMPLETED else 1


@click.command()
@job_argument
@json_option
def cancel(job: int, as_json: bool) -> None:
    """End a job early. Images that it has are kept and paid for; everything else is released."""
    _move(job, cancel_job, "is being cancelled: what is accepted is kept, the rest is released", as_json)


@click.command()
@job_argument
@json_option
def pause(job: int, as_json: bool) -> None:
    """Hand out nothing more of a job, until `pixtrawl resume`."""
    sentence = f"is paused: chunks under way finish, then it waits for `pixtrawl resume {job}`"
    _move(job, pause_job, sentence, as_json)


@click.command()
@job_argument
@json_option
def resume(job: int, as_json: bool) -> None:
    """Go on with a paused job."""
    _move(job, resume_job, "goes on", as_json)


@click.command()
@job_argument
@click.argument("number", metavar="N", type=click.IntRange(0, 10))
@json_option
def priority(job: int, number: int, as_json: bool) -> None:
    """Let a job that has not ended be as urgent as N says, from 0 to 10: 10 is most urgent."""
    _move(
        job,
        partial(change_priority, priority=number),
        f"has priority {number} from its next chunk on",
        as_json,
    )


def _move(job_id: int, arrow: Callable[..., bool], sentence: str, as_json: bool) -> None:
    """Take one arrow of a job and say what happens next; refuse when it leads nowhere from the job's state."""
    with open_database() as (_, engine):
        moved = patiently(engine, partial(arrow, job_id=job_id), partial(click.echo, err=True))
        report = find_job(engine, job_id)
    if not moved:
        if report["status"] in ENDED:
            raise click.ClickException(f"Job {job_id} has ended: it is {report['status']}.")
        if arrow is resume_job and not report["cancelled"]:
            raise click.ClickException(f"Job {job_id} is not paused: it is {state(report)}.")
        raise click.ClickException(f"Job {job_id} is {state(report)} already.")
    if as_json:
        print_json(report)
        return
    click.echo(f"Job {job_id} {sentence}.")
