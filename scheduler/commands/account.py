"""The account that a command is about: found by its user's e-mail, or one sentence that says why not."""

import uuid
from typing import Any

import click
from sqlalchemy.orm import Session

from models.members import find_user
from models.reports import account_report


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
