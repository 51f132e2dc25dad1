"""``pixtrawl credits refill`` and ``answer``: when an account buys credits, and what became of a payment."""

import uuid

import click

from models.credits import CREDITS_MAX
from models.database import transaction
from models.refills import complete_refill, configure_refill, give_up_refill
from scheduler.commands.account import account_of, being_deleted, owner_of, refill_line
from scheduler.commands.options import json_option, user_option
from scheduler.connect import open_database
from scheduler.printing import print_json

credits_range = click.IntRange(1, CREDITS_MAX)


@click.command()
@click.option(
    "--on/--off", "enabled", default=None, help="Whether credits are bought when the account runs low."
)
@click.option("--threshold", type=credits_range, metavar="N", help="Buy when the balance is under N.")
@click.option("--amount", type=credits_range, metavar="N", help="Buy N credits each time.")
@user_option
@json_option
def refill(
    enabled: bool | None, threshold: int | None, amount: int | None, user: str | None, as_json: bool
) -> None:
    """Set when an account buys credits by itself, and how many; without options, show it."""
    with open_database() as (settings, engine), transaction(engine) as session:
        email = user or settings.user
        user_id = owner_of(session, email)
        wishes = {"threshold": threshold, "amount": amount}
        changed = enabled is not None or any(wish is not None for wish in wishes.values())
        if changed and not configure_refill(session, user_id, enabled=enabled, **wishes):
            raise being_deleted(email)
        account = account_of(session, email)
        provided = settings.payment_url or settings.payment_provider
    if account["auto_refill"]["enabled"] and not provided:
        click.echo(
            "No payment provider is set here (PIXTRAWL_PAYMENT_URL): without one nothing is bought.", err=True
        )
    if as_json:
        print_json(account["auto_refill"])
        return
    click.echo(refill_line(account, settings.refills_per_day_max))


@click.command()
@click.argument("refill_id", metavar="REFILL", type=click.UUID)
@click.option("--paid", metavar="PAYMENT", help="It was paid; PAYMENT is what the service calls it.")
@click.option("--unpaid", is_flag=True, help="It was not paid, and the service will not pay it any more.")
@json_option
def answer(refill_id: uuid.UUID, paid: str | None, unpaid: bool, as_json: bool) -> None:
    """Say what became of a refill when its payment service no longer can. Look there first: nothing is asked.

    REFILL is the id that `pixtrawl credits show` gives for one that is being paid.
    """
    if (paid is None) != unpaid or (paid is not None and not paid.strip()):
        raise click.UsageError("Say either --paid PAYMENT or --unpaid")
    with open_database() as (_, engine), transaction(engine) as session:
        given_up = paid is None and give_up_refill(session, refill_id)
        completed = paid is not None and complete_refill(session, refill_id, paid)
    if not (given_up or completed):
        raise click.ClickException(
            f"No refill {refill_id} is pending: `pixtrawl credits history` shows what became of it."
        )
    if as_json:
        print_json({"refill": str(refill_id), "status": "completed" if completed else "cancelled"})
        return
    click.echo(f"Refill {refill_id}: {'credited' if completed else 'cancelled'}")
