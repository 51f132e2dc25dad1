"""Making profiles with their account, and projects; finding them again. Statements that never commit."""

import uuid
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.accounts import TransactionType
from models.credits import CREDITS_MAX, grant

LOCAL_CREDITS = 1_000_000
"""Starting bonus of the local profile: whoever runs the embedded services bills nobody."""

CREATE_PROFILE = text("""
INSERT INTO profiles (email, full_name) VALUES (:email, :full_name) ON CONFLICT (email) DO NOTHING RETURNING id
""")
CREATE_ACCOUNT = text("""
INSERT INTO credit_accounts (user_id, monthly_limit) VALUES (:user_id, :monthly_limit)
""")
CREATE_PREFERENCE = text("INSERT INTO notification_preferences (user_id) VALUES (:user_id)")


def create_profile(
    session: Session, email: str, *, full_name: str | None = None, bonus: int = 0, monthly_limit: int = 2000
) -> uuid.UUID | None:
    """A profile with its account, preferences and ``bonus`` credits; None when the e-mail is taken."""
    user_id = session.execute(CREATE_PROFILE, {"email": email, "full_name": full_name}).scalar_one_or_none()
    if user_id is None:
        return None
    session.execute(CREATE_ACCOUNT, {"user_id": user_id, "monthly_limit": monthly_limit})
    session.execute(CREATE_PREFERENCE, {"user_id": user_id})
    if bonus:
        grant(session, user_id, bonus, kind=TransactionType.BONUS, description="Starting bonus")
    return uuid.UUID(str(user_id))


def create_local_profile(session: Session, email: str) -> None:
    """The profile of an embedded home, if it has none yet: with a bonus, and without a monthly limit."""
    create_profile(session, email, full_name="Local user", bonus=LOCAL_CREDITS, monthly_limit=CREDITS_MAX)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose project it is, and what the owner may spend. ``balance`` is None without an account."""

    project_id: int
    project_name: str
    user_id: uuid.UUID
    email: str
    balance: int | None


FIND_USER = text("SELECT id FROM profiles WHERE email = :email")
LOCK_USER = text("SELECT FROM profiles WHERE id = :user_id FOR NO KEY UPDATE")
OWN_PROJECT = text("""
SELECT id FROM projects WHERE user_id = :user_id AND name = :name AND status = 'active' ORDER BY id LIMIT 1
""")
CREATE_PROJECT = text("INSERT INTO projects (user_id, name) VALUES (:user_id, :name) RETURNING id")
FIND_PROJECT = text("""
SELECT j.id, j.name, p.id AS user_id, p.email, a.current_balance
FROM projects j JOIN profiles p ON p.id = j.user_id LEFT JOIN credit_accounts a ON a.user_id = p.id
WHERE j.status = 'active'
    AND (CAST(j.id AS text) = :project OR (j.name = :project AND p.email = :email))
ORDER BY CAST(j.id AS text) = :project DESC, j.id
LIMIT 1
""")


def find_user(session: Session, email: str) -> uuid.UUID | None:
    """The profile with this e-mail."""
    return session.execute(FIND_USER, {"email": email}).scalar_one_or_none()


def find_project(session: Session, project: str, email: str) -> Owner | None:
    """The active project with this id, whoever owns it (an operator's way), or ``email``'s own of this name."""
    row = session.execute(FIND_PROJECT, {"project": project, "email": email}).one_or_none()
    return None if row is None else Owner(*row)


def create_project(session: Session, user_id: uuid.UUID, name: str) -> int:
    """A new active project."""
    return int(session.execute(CREATE_PROJECT, {"user_id": user_id, "name": name}).scalar_one())


def own_project(session: Session, user_id: uuid.UUID, name: str) -> int:
    """The user's active project of this name, made if there is none; two who ask at once get the same."""
    session.execute(LOCK_USER, {"user_id": user_id})
    found = session.execute(OWN_PROJECT, {"user_id": user_id, "name": name}).scalar_one_or_none()
    return create_project(session, user_id, name) if found is None else int(found)


LIMIT = text("""
UPDATE credit_accounts SET monthly_limit = :limit WHERE user_id = :user_id AND closing_at IS NULL RETURNING id
""")


def set_monthly_limit(session: Session, user_id: uuid.UUID, limit: int) -> bool:
    """The most that an account may spend in a month from now on. False without an open account.

    Below what is spent already it stops what is not held yet; above it, waiting jobs go on by themselves.
    """
    return session.execute(LIMIT, {"user_id": user_id, "limit": limit}).first() is not None
