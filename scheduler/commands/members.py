"""``pixtrawl users``, ``projects`` and ``notifications``: who uses the system, and what they are told."""

import re

import click

from models.credits import CREDITS_MAX
from models.database import transaction
from models.members import create_profile, create_project, find_user
from models.reports import notification_reports, project_reports, user_reports
from scheduler.commands.options import json_option, limit_option, user_option
from scheduler.connect import open_database
from scheduler.printing import count, counted, moment, print_json, print_table, size

FAILED = 1
EMAIL_LENGTH_MAX = 255
PROJECT_NAME_LENGTH_MAX = 100


@click.group()
def users() -> None:
    """Create, list and delete users. Each has an account and projects of their own."""


@users.command("create")
@click.argument("email")
@click.option("--name", help="Full name.")
@click.option("--credits", "bonus", type=click.IntRange(0, CREDITS_MAX), default=0, help="Starting bonus.")
@click.option("--monthly-limit", type=click.IntRange(1, CREDITS_MAX), default=2000, show_default=True)
@json_option
def create_user(email: str, name: str | None, bonus: int, monthly_limit: int, as_json: bool) -> None:
    """Create a user with an account."""
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", email) or len(email) > EMAIL_LENGTH_MAX:
        raise click.ClickException(f"{email} is not an e-mail address.")
    if name is not None and len(name) > 100:
        raise click.ClickException("A full name has at most 100 characters.")
    with open_database() as (_, engine), transaction(engine) as session:
        created = create_profile(session, email, full_name=name, bonus=bonus, monthly_limit=monthly_limit)
        if created is None:
            raise click.ClickException(f"The user {email} exists already.")
        report = next(user for user in user_reports(session) if user["email"] == email)
    if as_json:
        print_json(report)
        return
    click.echo(f"{email}: {count(bonus)} credits, at most {count(monthly_limit)} a month")


@users.command("list")
@json_option
def list_users(as_json: bool) -> None:
    """List users with their balance."""
    with open_database() as (_, engine), transaction(engine) as session:
        reports = user_reports(session)
    if as_json:
        print_json(reports)
        return
    rows = [
        (
            user["email"],
            user["full_name"] or "",
            "" if user["balance"] is None else count(user["balance"]),
            "" if user["monthly_limit"] is None else count(user["monthly_limit"]),
            "being deleted" if user["closing_at"] else "",
        )
        for user in reports
    ]
    columns = ("USER", "NAME", "CREDITS", "MONTHLY LIMIT", "STATE")
    print_table(columns, rows, numbers=("CREDITS", "MONTHLY LIMIT"))


@users.command("delete")
@click.argument("email")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def delete_user(email: str, yes: bool, as_json: bool) -> int:
    """Delete a user with everything: jobs, images and their files, account, ledger. Others work on meanwhile.

    What was interrupted goes on when the command is run again; until then the account can start nothing.
    """
    from functools import partial

    from models.closing import find_estate
    from scheduler.closing import Closing
    from scheduler.commands.closing import Progress, confirmed, describe, run_deletion, say

    with open_database() as (settings, engine):
        with transaction(engine) as session:
            estate = find_estate(session, email)
        if estate is None:
            raise click.ClickException(
                f"There is no user {email}: `pixtrawl users list` shows those there are."
            )
        images = f"{counted(estate.images, 'image')} ({size(estate.bytes)})"
        jobs = f"{counted(estate.jobs, 'job')} in {counted(estate.projects, 'project')}"
        question = f"Delete {email} with {jobs}, {images}, account and ledger, for good?"
        if not yes and not confirmed("the user", question):
            say("Nothing was deleted.")
            return FAILED
        unfinished = (
            f"{email} is deleted in part and can start nothing: `pixtrawl users delete {email}` completes it."
        )
        make = partial(Closing, settings, engine, estate.user_id)
        code, deleted = run_deletion(make, Progress(email, estate.jobs), unfinished)
    if as_json:
        print_json({"user": email, "id": str(estate.user_id), **deleted.report()})
    else:
        tables = (("crawl_jobs", "job"), ("images", "image"), ("credit_transactions", "transaction"))
        click.echo(describe(email, deleted, *tables))
    return code


@click.group()
def projects() -> None:
    """Create and list projects: folders of jobs, paid for by their user."""


@projects.command("create")
@click.argument("name")
@user_option
@json_option
def create_project_(name: str, user: str | None, as_json: bool) -> None:
    """Create a project."""
    if not name.strip() or len(name) > PROJECT_NAME_LENGTH_MAX:
        raise click.ClickException(f"A project's name has 1 to {PROJECT_NAME_LENGTH_MAX} characters.")
    if name.isdecimal():
        raise click.ClickException(f"A project's name needs more than digits: {name} would read as an id.")
    with open_database() as (settings, engine), transaction(engine) as session:
        email = user or settings.user
        user_id = find_user(session, email)
        if user_id is None:
            raise click.ClickException(
                f"There is no user {email}: `pixtrawl users create {email}` makes one."
            )
        reports = project_reports(session, email)
        if any(project["name"] == name and project["status"] == "active" for project in reports):
            raise click.ClickException(f"{email} has a project {name} already.")
        project_id = create_project(session, user_id, name)
        report = next(project for project in project_reports(session, email) if project["id"] == project_id)
    if as_json:
        print_json(report)
        return
    click.echo(f"Project {project_id}: {name}, of {email}")


@projects.command("list")
@user_option
@json_option
def list_projects(user: str | None, as_json: bool) -> None:
    """List projects; those of all users unless one is named."""
    with open_database() as (_, engine), transaction(engine) as session:
        reports = project_reports(session, user)
    if as_json:
        print_json(reports)
        return
    rows = [
        (str(project["id"]), project["name"], project["user"], project["status"], count(project["jobs"]))
        for project in reports
    ]
    print_table(("PROJECT", "NAME", "USER", "STATUS", "JOBS"), rows, numbers=("PROJECT", "JOBS"))


@click.command()
@user_option
@limit_option
@json_option
def notifications(user: str | None, limit: int, as_json: bool) -> None:
    """List what the system has told a user, the newest first."""
    with open_database() as (settings, engine), transaction(engine) as session:
        email = user or settings.user
        if find_user(session, email) is None:
            raise click.ClickException(
                f"There is no user {email}: `pixtrawl users list` shows those there are."
            )
        reports = notification_reports(session, email, limit)
    if as_json:
        print_json(reports)
        return
    rows = [(moment(row["created_at"]), row["type"], row["title"], row["message"]) for row in reports]
    print_table(("TIME", "TYPE", "TITLE", "MESSAGE"), rows)
