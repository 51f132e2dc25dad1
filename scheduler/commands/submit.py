"""``pixtrawl submit``: checks an input and queues a job for it. Crawls nothing."""

from typing import Any

import click

from models.outcomes import Verification
from scheduler.commands.asked import Asked, asked_options, begun, max_images_option
from scheduler.commands.options import ignore_opt_outs_option, json_option, user_option, verify_option
from scheduler.commands.preview import show_preview
from scheduler.commands.quote import show_quote
from scheduler.connect import open_database
from scheduler.enqueue import DEFAULT_PROJECT, Submission
from scheduler.enqueue import submit as enqueue
from scheduler.printing import print_json


@click.command()
@asked_options
@click.option("--name", help="Name of the job.  [default: the name of the file, or the keywords]")
@click.option("--project", help=f"Id or name of a project.  [default: {DEFAULT_PROJECT}]")
@user_option
@max_images_option
@click.option("--priority", type=int, default=5, show_default=True, help="0 to 10, 10 most urgent.")
@ignore_opt_outs_option
@verify_option
@click.option("--quote", is_flag=True, help="Try some of it, and say what the job would bring and cost.")
@json_option
def submit(
    asked: Asked,
    name: str | None,
    project: str | None,
    user: str | None,
    max_images: int | None,
    priority: int,
    ignore_opt_outs: str,
    verify: str,
    quote: bool,
    as_json: bool,
) -> int:
    """Queue a job for lists and tables of URLs: paths, http(s) URLs, s3://, gs://, az://, or - for standard input.
    Or for a search: keywords (-k) at providers of images.

    A list has one URL a line; blank lines and lines that begin with # are skipped. A table is csv, tsv, json,
    jsonl or parquet: its other columns are kept as metadata of the images. Each may be compressed (gz, zst).
    Several inputs become one job, in their order. A line or row that gives no URL does not stop the job: its
    outcome is invalid_url. A search shares --max-images fairly between its keywords.

    \b
    pixtrawl submit urls.txt --name kingfishers --priority 8
    pixtrawl submit urls.txt --quote
    pixtrawl submit laion.parquet --url-column URL --unique-urls
    pixtrawl submit -k cat -k "red panda" -n 1000 --license open
    grep -h jpg lists/*.txt | pixtrawl submit - --max-images 5000
    """  # noqa: D301 - click keeps the lines after this mark as they are
    from models.database import transaction
    from models.reports import live_workers
    from scheduler.progress import find_job

    options: dict[str, Any] = {
        "name": name,
        "max_images": max_images,
        "priority": priority,
        "ignore_opt_outs": ignore_opt_outs,
        "verification": Verification(verify),
        "tables": asked.tables,
        "unique_urls": asked.unique_urls,
    }
    if quote:
        return show_quote(asked, options, project, user, as_json=as_json)
    if asked.dry_run:
        return show_preview(asked, project, user, max_images, as_json=as_json)
    with open_database() as (settings, engine):
        given = asked.given(settings)
        submission = enqueue(settings, engine, given, project=project, user=user, **options)
        job = find_job(engine, submission.job_id)
        with transaction(engine) as session:
            workers = live_workers(session)
    if as_json:
        print_json(job)
        return 0
    tell(submission, begun(given, submission, max_images), workers=workers)
    return 0


def tell(submission: Submission, begins: str, *, workers: int) -> None:
    """Say what was queued, and what to do next; ``begins`` says what the job begins with."""
    if submission.candidates:
        click.echo(f"Job {submission.job_id}: {begins} queued in project {submission.project}")
    else:
        click.echo(f"Job {submission.job_id} in project {submission.project}: {begins}")
    if submission.detail:
        click.echo(f"{submission.detail}. What was read before is crawled.", err=True)
    if not workers:
        click.echo("No worker is running: start `pixtrawl up` in another terminal.", err=True)
    click.echo(f"Follow it with `pixtrawl watch {submission.job_id}`.", err=True)
