"""``pixtrawl credits``: the account of a user. models/credits.py moves the credits."""

from typing import Any

import click

from models.credits import CREDITS_MAX, CreditError, grant
from models.database import transaction
from models.members import find_user
from models.reports import account_report, credit_history
from scheduler.commands.audit import audit
from scheduler.commands.options import json_option, limit_option, user_option
from scheduler.connect import open_database
from scheduler.printing import count, moment, print_json, print_table

COLUMNS = ("TIME", "TYPE", "STATUS", "AMOUNT", "BALANCE", "DESCRIPTION")


@click.group("credits")
def credits_() -> None:
    """Show, grant, trace and audit credits. One credit buys one accepted image, unless priced otherwise."""


credits_.add_command(audit)


@credits_.command("show")
@user_option
@json_option
def show(user: str | None, as_json: bool) -> None:
    """Show what an account may spend."""
    with open_database() as (settings, engine), transaction(engine) as session:
        account = _found(account_report(session, user or settings.user), user or settings.user)
    if as_json:
        print_json(account)
        return
    click.echo(f"{account['user']}: {count(account['balance'])} credits to spend")
    click.echo(f"held for chunks under way: {count(account['held'])}")
    click.echo(f"this month: {count(account['monthly_usage'])} of {count(account['monthly_limit'])}")


@credits_.command("grant")
@click.argument("amount", type=click.IntRange(1, CREDITS_MAX))
@user_option
@click.option("--reason", default="Granted on the command line", show_default=True, help="For the statement.")
@json_option
def grant_(amount: int, user: str | None, reason: str, as_json: bool) -> None:
    """Add credits to an account. Jobs that wait for credits go on by themselves."""
    with open_database() as (settings, engine), transaction(engine) as session:
        email = user or settings.user
        _found(account_report(session, email), email)
        user_id = find_user(session, email)
        if user_id is not None:
            try:
                grant(session, user_id, amount, description=reason)
            except CreditError as error:
                raise click.UsageError(str(error)) from None
        account = _found(account_report(session, email), email)
    if as_json:
        print_json(account)
        return
    click.echo(f"{email} has {count(account['balance'])} credits to spend")


@credits_.command("history")
@user_option
@limit_option
@json_option
def history(user: str | None, limit: int, as_json: bool) -> None:
    """List an account's transactions, the newest first. A pending one is the hold of a chunk."""
    with open_database() as (settings, engine), transaction(engine) as session:
        email = user or settings.user
        _found(account_report(session, email), email)
        transactions = credit_history(session, email, limit)
    if as_json:
        print_json(transactions)
        return
    rows = [
        (
            moment(row["created_at"]),
            row["type"],
            row["status"],
            f"{row['amount']:+,}",
            count(row["balance_after"]),
            row["description"] or "",
        )
        for row in transactions
    ]
    print_table(COLUMNS, rows, numbers=("AMOUNT", "BALANCE"))


def _found(account: dict[str, Any] | None, email: str) -> dict[str, Any]:
    if account is None:
        raise click.ClickException(
            f"There is no user {email} with an account: `pixtrawl users list` shows those there are."
        )
    return account
