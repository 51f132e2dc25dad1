"""``pixtrawl credits``: the account of a user. models/credits.py, refunds.py and refills.py move the credits."""

import click

from models.accounts import TransactionType
from models.credits import CREDITS_MAX, add_credits, grant
from models.database import transaction
from models.members import set_monthly_limit
from models.refunds import payer, refund_job
from models.reports import credit_history
from scheduler.commands.account import account_of, being_deleted, owner_of, refill_line
from scheduler.commands.audit import audit
from scheduler.commands.jobs import job_argument
from scheduler.commands.options import json_option, limit_option, user_option
from scheduler.commands.refill import answer, refill
from scheduler.connect import open_database
from scheduler.printing import count, counted, moment, print_json, print_table

COLUMNS = ("TIME", "TYPE", "STATUS", "AMOUNT", "BALANCE", "DESCRIPTION")
REFERENCE_LENGTH_MAX = 255
amount_argument = click.argument("amount", type=click.IntRange(1, CREDITS_MAX))


@click.group("credits")
def credits_() -> None:
    """Show, grant, refund, refill, trace and audit credits. One credit buys one accepted image, unless the price is
    set otherwise.
    """


for command in (refill, answer, audit):
    credits_.add_command(command)


@credits_.command("show")
@user_option
@json_option
def show(user: str | None, as_json: bool) -> None:
    """Show what an account may spend."""
    with open_database() as (settings, engine), transaction(engine) as session:
        account = account_of(session, user or settings.user)
    if as_json:
        print_json(account)
        return
    click.echo(f"{account['user']}: {count(account['balance'])} credits to spend")
    click.echo(f"held for chunks under way: {count(account['held'])}")
    click.echo(f"this month: {count(account['monthly_usage'])} of {count(account['monthly_limit'])}")
    click.echo(f"a day, on average: {account['average_daily_usage']:,.2f}")
    click.echo(refill_line(account, settings.refills_per_day_max))


@credits_.command("grant")
@amount_argument
@user_option
@click.option("--reason", default="Granted on the command line", show_default=True, help="For the statement.")
@json_option
def grant_(amount: int, user: str | None, reason: str, as_json: bool) -> None:
    """Add credits to an account. Jobs that wait for credits go on by themselves."""
    with open_database() as (settings, engine), transaction(engine) as session:
        email = user or settings.user
        grant(session, owner_of(session, email), amount, description=reason)
        account = account_of(session, email)
    if as_json:
        print_json(account)
        return
    click.echo(f"{email} has {count(account['balance'])} credits to spend")


@credits_.command("purchase")
@amount_argument
@click.option(
    "--reference", required=True, metavar="NAME", help="What the payment is called where it was made."
)
@user_option
@click.option("--reason", default="Purchase", show_default=True, help="For the statement.")
@json_option
def purchase(amount: int, reference: str, user: str | None, reason: str, as_json: bool) -> None:
    """Add credits that were paid for, once for each reference: a service may try again as often as it likes."""
    with open_database() as (settings, engine), transaction(engine) as session:
        email = user or settings.user
        user_id = owner_of(session, email)
        name = named(reference)
        added = add_credits(session, user_id, amount, TransactionType.PURCHASE, reason, name)
        account = account_of(session, email)
    if as_json:
        print_json({"transaction": str(added.id), "repeated": added.repeated, **account})
        return
    if added.repeated:
        click.echo(f"The purchase {reference} was credited before; nothing changed.", err=True)
    click.echo(f"{email} has {count(account['balance'])} credits to spend")


@credits_.command("refund")
@job_argument
@click.option(
    "--amount", type=click.IntRange(1, CREDITS_MAX), help="Credits.  [default: all not refunded yet]"
)
@click.option("--images", type=click.IntRange(1, CREDITS_MAX), help="The price of so many images.")
@click.option("--reason", required=True, help="For the statement and the owner.")
@click.option("--reference", metavar="NAME", help="Refund once for this name, however often this is run.")
@json_option
def refund(
    job: int, amount: int | None, images: int | None, reason: str, reference: str | None, as_json: bool
) -> None:
    """Give back credits that a job was charged: never more than that, all refunds of the job together."""
    if amount is not None and images is not None:
        raise click.UsageError("--amount and --images exclude each other")
    if not reason.strip():
        raise click.UsageError("Say why with --reason: the owner is told")
    with open_database() as (_, engine), transaction(engine) as session:
        if images is not None:
            amount = min(images * payer(session, job)[1], CREDITS_MAX)
        name = None if reference is None else named(reference)
        done = refund_job(session, job, amount, reason, reference=name)
    if as_json:
        sums = {"amount": done.amount, "charged": done.charged, "refunded": done.refunded}
        print_json({"transaction": str(done.added.id), "job": job, "repeated": done.added.repeated, **sums})
        return
    if done.added.repeated:
        click.echo(f"The refund {reference} was made before; nothing changed.", err=True)
    click.echo(
        f"Refunded {counted(done.amount, 'credit')} of job {job}: "
        f"{count(done.refunded)} of {count(done.charged)} charged are refunded now"
    )


@credits_.command("limit")
@amount_argument
@user_option
@json_option
def limit(amount: int, user: str | None, as_json: bool) -> None:
    """Set the most that an account may spend in a month. Jobs that wait for a higher one go on by themselves."""
    with open_database() as (settings, engine), transaction(engine) as session:
        email = user or settings.user
        if not set_monthly_limit(session, owner_of(session, email), amount):
            raise being_deleted(email)
        account = account_of(session, email)
    if as_json:
        print_json(account)
        return
    click.echo(f"this month: {count(account['monthly_usage'])} of {count(account['monthly_limit'])}")


@credits_.command("history")
@user_option
@limit_option
@json_option
def history(user: str | None, limit: int, as_json: bool) -> None:
    """List an account's transactions, the newest first. A pending one is the hold of a chunk, or a refill."""
    with open_database() as (settings, engine), transaction(engine) as session:
        email = user or settings.user
        account_of(session, email)
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
            ": ".join(filter(None, (row["description"], row["payment"] or row["declined"]))),
        )
        for row in transactions
    ]
    print_table(COLUMNS, rows, numbers=("AMOUNT", "BALANCE"))


def named(reference: str) -> str:
    """A reference as the ledger keeps it. Raises UsageError."""
    name = reference.strip()
    if not name or len(name) > REFERENCE_LENGTH_MAX or not name.isprintable():
        raise click.UsageError(f"A reference has 1 to {REFERENCE_LENGTH_MAX} printable characters")
    return name
