"""``pixtrawl retry``: let what failed be tried again."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import click

from models.database import transaction
from models.outcomes import FINAL, Reason
from models.reopening import RetryError
from models.retrying import ALL_FAILURES, TRANSIENT_FAILURES, Selection
from models.workers import live_slots
from scheduler.commands.jobs import job_argument
from scheduler.commands.options import json_option
from scheduler.connect import open_database
from scheduler.printing import count, counted, print_json
from scheduler.progress import find_job
from scheduler.retry import Retry
from scheduler.retry import retry as retry_job

TRANSIENT_WORD = "transient"


def read_reasons(_context: click.Context, _parameter: click.Parameter, given: str | None) -> Selection | None:
    """The failures that ``--only`` names: reasons, and all that may pass by itself as ``transient``."""
    if given is None:
        return None
    words = {word.strip() for word in given.split(",")}
    selection = Selection(frozenset())
    if TRANSIENT_WORD in words:
        selection = TRANSIENT_FAILURES
    for word in sorted(words - {TRANSIENT_WORD}):
        if word not in set(Reason) - FINAL:
            known = ", ".join([TRANSIENT_WORD, *(reason.value for reason in Reason if reason not in FINAL)])
            why = "is never tried again" if word in set(FINAL) else "is no reason"
            raise click.BadParameter(f"'{word}' {why}: name some of {known}.")
        selection = replace(selection, reasons=selection.reasons | {Reason(word)})
    return selection


@click.command()
@job_argument
@click.option(
    "--only",
    metavar="REASONS",
    callback=read_reasons,
    help="Those that failed for these reasons, such as timeout,dns; transient: all that may pass by itself, "
    f"and answers like 503.  [default: {TRANSIENT_WORD}]",
)
@click.option(
    "--chunk",
    "chunks",
    type=click.IntRange(1, 2_147_483_647),
    multiple=True,
    metavar="ID",
    help="Only of this chunk, whatever the reason; may be repeated.",
)
@click.option("--all-failed", is_flag=True, help="Whatever the reason, what was cancelled too.")
@json_option
def retry(job: int, only: Selection | None, chunks: tuple[int, ...], all_failed: bool, as_json: bool) -> None:
    """Try candidates of a job again that ended without an image; it goes on, or runs anew when it has ended.
    Pages of a crawl that could not be read are read again for the same reasons, once its source has ended.

    Duplicates, images and what --max-images left out stay as they are. Only chunks that have ended are looked at.
    """
    if only is not None and all_failed:
        raise click.UsageError("--only and --all-failed are two ways to choose: give one of them.")
    selection = only or (ALL_FAILURES if all_failed or chunks else TRANSIENT_FAILURES)
    if chunks:
        selection = replace(selection, chunk_ids=frozenset(chunks))
    with open_database() as (settings, engine):
        try:
            done = retry_job(engine, settings.store, job, selection, partial(click.echo, err=True))
        except RetryError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            click.echo("Stopped half way: the same command goes on.", err=True)
            raise
        paused = find_job(engine, job)["paused"]
        with transaction(engine) as session:
            slots = live_slots(session)
    if as_json:
        print_json(done.report())
        return
    if done.candidates or not done.pages:
        click.echo(sentence(done) if done.candidates else nothing(done))
    if done.pages:
        click.echo(
            f"Job {job} reads {counted(done.pages, 'page')} again, and takes the images that are there."
        )
    if done.candidates or done.pages:
        click.echo(way_on(job, paused=paused, slots=slots), err=True)


def sentence(done: Retry) -> str:
    """What is tried again, and what it may cost."""
    places = [counted(done.chunks, "chunk")] if done.chunks else []
    places += ["the rest of its list"] if done.unchunked else []
    said = (
        f"Job {done.job.id}: {counted(done.candidates, 'candidate')} in {' and '.join(places)} to try again "
        f"({listed(done.reasons)}), for {counted(done.credits_max, 'credit')} at most."
    )
    if done.left_out:
        said += " No more may be under way for its max_images; the same command takes others afterwards."
    return said


def nothing(done: Retry) -> str:
    """Why nothing is tried again, and what could be."""
    said = f"Nothing to try again: job {done.job.id}"
    if done.left_out:
        return f"{said} has its max_images, or as many candidates under way as they need."
    if not done.job.failures:
        return f"{said} has no failures."
    if not set(done.job.failures) - set(FINAL):
        return f"{said} has only {listed(done.job.failures)}, which is never tried again."
    return (
        f"{said} has no such failure in a chunk that has ended. It has {listed(done.job.failures)} "
        "(choose with --only, or take all with --all-failed)."
    )


def way_on(job_id: int, *, paused: bool, slots: int) -> str:
    """What to do next."""
    if paused:
        return f"It is paused: `pixtrawl resume {job_id}` lets it go on."
    if not slots:
        return "No worker lives: `pixtrawl up`, or the `pixtrawl run` that made the job, lets it go on."
    return f"`pixtrawl watch {job_id}` follows it."


def listed(reasons: Mapping[str, int]) -> str:
    """Reasons with their numbers, the most frequent first."""
    return ", ".join(f"{count(number)} {reason}" for reason, number in Counter(reasons).most_common())
