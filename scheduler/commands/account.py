"""The account that a command is about: found by its user's e-mail, or one sentence that says why not."""

import uuid
from typing import Any

import click
from sqlalchemy.orm import Session

from models.members import find_user
from models.reports import account_report
from scheduler.printing import count, moment


def account_of(session: Session, email: str) -> dict[str, Any]:
    """What an account may spend. Raises ClickException when there is none."""
    account = account_report(session, email)
    if account is None:
        raise click.ClickException(
            f"There is no user {email} with an account: `pixtrawl users list` shows those there are."
        )
    return account


def owner_of(session: Session, email: str) -> uuid.UUID:
    """The user with this e-mail and an account. Raises ClickException when there is none."""
    account_of(session, email)
    user_id = find_user(session, email)
    assert user_id is not None  # noqa: S101 - its account was found by the same e-mail
    return user_id


def being_deleted(email: str) -> click.ClickException:
    """The account takes no changes any more."""
    return click.ClickException(
        f"{email} is being deleted: `pixtrawl users delete {email}` completes that, and nothing else is possible."
    )


def refill_line(account: dict[str, Any], per_day_max: int) -> str:
    """Auto-refill in one line, with why the next one is not bought at once."""
    refill = account["auto_refill"]
    wish = f"{count(refill['amount'])} credits under a balance of {count(refill['threshold'])}"
    if not refill["enabled"]:
        wish = f"off (it would buy {wish})"
    line = f"auto-refill: {wish}"
    if refill["pending"]:
        return f"{line}; one is being paid ({refill['pending']})"
    if refill["enabled"] and refill["declines"]:
        return f"{line}; declined, next not before {moment(account['refill_after'])}"
    if refill["enabled"] and refill["paid_today"] >= per_day_max:
        return f"{line}; {count(refill['paid_today'])} bought today, the next comes tomorrow (UTC)"
    return line
