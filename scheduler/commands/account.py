"""The account that a command is about: found by its user's e-mail, or one sentence that says why not."""

import uuid
from typing import Any

import click
from sqlalchemy.orm import Session

from models.members import find_user
from models.reports import account_report
from scheduler.printing import count


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


def refill_line(account: dict[str, Any]) -> str:
    """Auto-refill in one line."""
    refill = account["auto_refill"]
    wish = f"{count(refill['amount'])} credits under a balance of {count(refill['threshold'])}"
    if not refill["enabled"]:
        return f"auto-refill: off (it would buy {wish})"
    if refill["pending"]:
        return f"auto-refill: {wish}; one is being paid ({refill['pending']})"
    if refill["declines"]:
        return f"auto-refill: {wish}; declined, next not before {account['refill_after']}"
    return f"auto-refill: {wish}"
