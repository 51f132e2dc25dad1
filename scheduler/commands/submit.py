"""``pixtrawl submit``: checks an input and queues a job for it. Crawls nothing."""

import click

from models.outcomes import Verification
from scheduler.commands.options import ignore_opt_outs_option, json_option, user_option, verify_option
from scheduler.connect import open_database
from scheduler.enqueue import DEFAULT_PROJECT
from scheduler.enqueue import submit as enqueue
from scheduler.printing import counted, print_json


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--name", help="Name of the job.  [default: the name of the file]")
@click.option("--project", help=f"Id or name of a project.  [default: {DEFAULT_PROJECT}]")
@user_option
@click.option("--max-images", type=int, help="Stop when so many images are accepted.  [default: all]")
@click.option("--priority", type=int, default=5, show_default=True, help="0 to 10, 10 most urgent.")
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
    ignore_opt_outs: str,
    verify: str,
    as_json: bool,
) -> None:
    """Queue a job for files of URLs, one a line; - is standard input.

    Blank lines and lines that begin with # are skipped. Several files become one job, in their order. A line
    that is no URL does not stop the job: its outcome is invalid_url.

    \b
    pixtrawl submit urls.txt --name kingfishers --priority 8
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
        )
        job = find_job(engine, submission.job_id)
        with transaction(engine) as session:
            workers = live_workers(session)
    if as_json:
        print_json(job)
        return
    candidates = counted(submission.candidates, "candidate")
    click.echo(f"Job {submission.job_id}: {candidates} queued in project {submission.project}")
    if not workers:
        click.echo("No worker is running: start `pixtrawl up` in another terminal.", err=True)
    click.echo(f"Follow it with `pixtrawl watch {submission.job_id}`.", err=True)
