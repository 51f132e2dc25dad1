"""``pixtrawl delete``: one job with everything of it. scheduler/deletion.py deletes."""

from functools import partial

import click

from models.database import transaction
from models.deleting import charged_credits
from scheduler.commands.closing import FAILED, Progress, confirmed, describe, run_deletion, say
from scheduler.commands.jobs import job_argument
from scheduler.commands.options import json_option
from scheduler.connect import open_database
from scheduler.deletion import JobDeletion
from scheduler.printing import count, counted, print_json, size
from scheduler.progress import find_job

JOB_TABLES = ("job_chunks", "images", "failures", "seen_keys", "pages", "crawl_jobs")


@click.command()
@job_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete(job: int, yes: bool, as_json: bool) -> int:
    """Delete a job with its images and their files. Others work on meanwhile.

    One that goes on is cancelled first. What its images cost stays charged; what is held for the rest is given
    back. What was interrupted goes on when the command is run again.
    """
    with open_database() as (settings, engine):
        report = find_job(engine, job)
        what = f"job {job}"
        images = f"{counted(report['valid_images'], 'image')} ({size(report['bytes'])})"
        question = f"Delete {what} '{report['name']}' of {report['user']} with {images}, for good?"
        if not yes and not confirmed(what, question):
            say("Nothing was deleted.")
            return FAILED
        unfinished = f"Job {job} is deleted in part: `pixtrawl delete {job}` completes it."
        make = partial(JobDeletion, settings, engine, job)
        code, deleted = run_deletion(make, Progress(what, 1), unfinished)
        with transaction(engine) as session:
            charged = charged_credits(session, job)
    if as_json:
        rows = {table: deleted.rows[table] for table in JOB_TABLES}
        print_json({"job": job, "charged": charged, **deleted.report(), "rows": rows})
    else:
        done = describe(what, deleted, ("images", "image"), ("failures", "failure"))
        click.echo(f"{done}; {count(charged)} credits stay charged")
    return code
