"""``pixtrawl run``: from URLs, or a search, to images on disk in one command. Holds no logic of crawling."""

import itertools
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.jobs import BlockedReason, JobStatus
from models.outcomes import Verification
from models.settings import Settings, read_settings
from scheduler.commands.asked import Asked, asked_options, begun, max_images_option
from scheduler.commands.options import ignore_opt_outs_option, json_option, verify_option
from scheduler.commands.preview import show_preview
from scheduler.interrupts import INTERRUPTED
from scheduler.printing import counted, print_json, print_rich, state
from worker.tables.formats import TableOptions

if TYPE_CHECKING:
    from scheduler.enqueue import Supply

FAILED = 1
WAY_OUT = {
    BlockedReason.OUT_OF_CREDITS: "Add credits with `pixtrawl credits grant`.",
    BlockedReason.MONTHLY_LIMIT: "Wait for the next month, or have the account's monthly limit raised.",
}


@click.command()
@asked_options
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the images.  [default: the store]")
@click.option("--name", help="Name of the job.  [default: the name of the input]")
@click.option("--project", help="Project by name or number.  [default: default]")
@max_images_option
@click.option("--priority", type=click.IntRange(0, 10), default=5, help="10 is most urgent.  [default: 5]")
@click.option("--concurrency", type=click.IntRange(1, 1024), help="Chunks at once.  [default: processors]")
@click.option("--again", is_flag=True, help="Crawl anew, whatever was crawled before.")
@ignore_opt_outs_option
@verify_option
@json_option
def run(
    asked: Asked,
    out: Path | None,
    name: str | None,
    project: str | None,
    max_images: int | None,
    priority: int,
    concurrency: int | None,
    again: bool,
    ignore_opt_outs: str,
    verify: str,
    as_json: bool,
) -> int:
    """Crawl the URLs in INPUT (a list, one a line; csv, tsv, json, jsonl, parquet; - for standard input), or what a
    search finds (-k), and wait for the end.

    The same command again resumes a job that was interrupted. Starts everything that it needs.
    """
    from scheduler.enqueue import check_ignored

    settings = read_settings()
    given = asked.given(settings)
    check_inputs(settings, asked.inputs, asked.tables)
    check_ignored(settings, ignore_opt_outs)
    folder = prepare_folder(out) if out is not None else None
    options = {
        "name": name,
        "project": project,
        "max_images": max_images,
        "priority": priority,
        "ignore_opt_outs": ignore_opt_outs,
        "verification": Verification(verify),
        "tables": asked.tables,
        "unique_urls": asked.unique_urls,
    }
    if asked.dry_run:
        return show_preview(asked, project, None, max_images, as_json=as_json)
    return crawl(settings, given, options, folder, concurrency=concurrency, again=again, as_json=as_json)


def crawl(
    settings: Settings,
    given: "Sequence[str] | Supply",
    options: dict[str, Any],
    folder: str | None,
    *,
    concurrency: int | None,
    again: bool,
    as_json: bool,
) -> int:
    """Submit or resume, follow, and print what became of it; returns the exit code."""
    from scheduler.enqueue import submit
    from scheduler.progress import ENDED, find_job, summary
    from scheduler.system import BlockedJobError, InterruptedJobError, PartError, running

    try:
        with running(settings, concurrency, say) as system:
            submission = submit(
                system.settings, system.engine, given, folder=folder, reuse=not again, **options
            )
            if submission.existing:
                job = find_job(system.engine, submission.job_id)
                if job["status"] in ENDED:
                    raise click.UsageError(f"{describe(job)} To crawl the same input anew, add --again.")
                say(f"{describe(job)} It goes on where it stopped.")
            else:
                say(f"Job {submission.job_id}: {begun(given, submission, options['max_images'])}.")
            if submission.detail:
                say(f"{submission.detail}. What was read before is crawled.")
            job = system.follow(submission.job_id)
            if as_json:
                print_json(job)
            else:
                print_rich(summary(job))
    except PartError as error:
        say(f"pixtrawl: {error}")
        return FAILED
    except BlockedJobError as error:
        if as_json:
            print_json(error.job)
        say(f"{describe(error.job)} {WAY_OUT[error.job['blocked_reason']]} The same command resumes it.")
        return FAILED
    except InterruptedJobError as error:
        if as_json:
            print_json(error.job)
        say(f"{describe(error.job)} The same command resumes it.")
        return INTERRUPTED
    # A search or a site that brought nothing to fetch is no success, though nothing failed.
    return 0 if job["status"] == JobStatus.COMPLETED and job["total_images"] else FAILED


def describe(job: Mapping[str, Any]) -> str:
    """A job in one sentence."""
    images = counted(job["valid_images"], "image")
    return f"Job {job['id']} '{job['name']}' is {state(job)}: {images} accepted."


def say(sentence: str) -> None:
    """Progress and hints go to standard error."""
    click.echo(sentence, err=True)


def check_inputs(settings: Settings, inputs: Sequence[str], tables: TableOptions) -> None:
    """Refuse what can be refused before anything is started. Raises RequestError.

    Only files are looked into: what comes through a pipe can be read once.
    """
    from scheduler.copying import copy_of

    copy = copy_of(settings, inputs, tables)
    for given in copy.inputs:
        path = given.path
        if path is not None and not (
            path.exists() and not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()
        ):
            # Two blocks: the whole of a small file, the beginning of a large one.
            for _ in itertools.islice(copy_of(settings, [given.given], tables).blocks(), 2):
                pass


def prepare_folder(path: Path) -> str:
    """Make the folder for the images; its URL. Raises UsageError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise click.UsageError(f"--out {path} is a file: name a folder.") from None
    except OSError as error:
        raise click.UsageError(f"--out {path} cannot be made: {error.strerror}.") from None
    return path.absolute().as_uri()
