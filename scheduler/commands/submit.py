"""``pixtrawl submit``: checks an input and queues a job for it. Crawls nothing."""

import click

from models.outcomes import Verification
from scheduler.commands.options import (
    ignore_opt_outs_option,
    json_option,
    table_options,
    user_option,
    verify_option,
)
from scheduler.connect import open_database
from scheduler.enqueue import DEFAULT_PROJECT
from scheduler.enqueue import submit as enqueue
from scheduler.printing import counted, print_json
from worker.tables.formats import Format, TableOptions


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--name", help="Name of the job.  [default: the name of the file]")
@click.option("--project", help=f"Id or name of a project.  [default: {DEFAULT_PROJECT}]")
@user_option
@click.option("--max-images", type=int, help="Stop when so many images are accepted.  [default: all]")
@click.option("--priority", type=int, default=5, show_default=True, help="0 to 10, 10 most urgent.")
@table_options
@ignore_opt_outs_option
@verify_option
@json_option
def submit(
    inputs: tuple[str, ...],
    name: str | None,
    project: str | None,
    user: str | None,
    max_images: int | None,
    priority: int,
    table_format: str | None,
    url_column: str | None,
    hash_column: str | None,
    unique_urls: bool,
    ignore_opt_outs: str,
    verify: str,
    as_json: bool,
) -> None:
    """Queue a job for lists and tables of URLs: paths, http(s) URLs, s3://, gs://, az://, or - for standard input.

    A list has one URL a line; blank lines and lines that begin with # are skipped. A table is csv, tsv, json,
    jsonl or parquet: its other columns are kept as metadata of the images. Each may be compressed (gz, zst).
    Several inputs become one job, in their order. A line or row that gives no URL does not stop the job: its
    outcome is invalid_url.

    \b
    pixtrawl submit urls.txt --name kingfishers --priority 8
    pixtrawl submit laion.parquet --url-column URL --unique-urls
    grep -h jpg lists/*.txt | pixtrawl submit - --max-images 5000
    """  # noqa: D301 - click keeps the lines after this mark as they are
    from models.database import transaction
    from models.reports import live_workers
    from scheduler.progress import find_job

    with open_database() as (settings, engine):
        submission = enqueue(
            settings,
            engine,
            inputs,
            name=name,
            project=project,
            user=user,
            max_images=max_images,
            priority=priority,
            ignore_opt_outs=ignore_opt_outs,
            verification=Verification(verify),
            tables=TableOptions(Format(table_format) if table_format else None, url_column, hash_column),
            unique_urls=unique_urls,
        )
        job = find_job(engine, submission.job_id)
        with transaction(engine) as session:
            workers = live_workers(session)
    if as_json:
        print_json(job)
        return
    candidates = counted(submission.candidates, "candidate")
    click.echo(f"Job {submission.job_id}: {candidates} queued in project {submission.project}")
    if submission.detail:
        click.echo(f"{submission.detail}. What was read before is crawled.", err=True)
    if not workers:
        click.echo("No worker is running: start `pixtrawl up` in another terminal.", err=True)
    click.echo(f"Follow it with `pixtrawl watch {submission.job_id}`.", err=True)
