"""The schema of the seed: its tables, words, ranges, unique keys, cascades and relationships."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, func, inspect, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from models import (
    ActivityLog,
    APIKey,
    Base,
    CrawlJob,
    CreditAccount,
    CreditTransaction,
    Image,
    JobChunk,
    Notification,
    NotificationPreference,
    Profile,
    Project,
    UsageMetric,
)
from models.outcomes import Reason
from tests.support.factories import create_chunk, create_job, create_profile, create_project

# A row of each table that the seed names; {user}, {project}, {job} and {account} are ids of existing rows.
ROWS = {
    "profiles": "email = 'new@example.invalid'",
    "projects": "name = 'Owls', user_id = {user}",
    "crawl_jobs": "name = 'Owls', project_id = {project}",
    "job_chunks": "job_id = {job}, chunk_index = 1",
    "images": "crawl_job_id = {job}, original_url = 'u', filename = 'f', position = 1, sha256 = sha256('b')",
    "failures": "job_id = {job}, position = 2, position_end = 2, reason = 'dns'",
    "activity_logs": "user_id = {user}, action = 'login'",
    "credit_accounts": "user_id = {user}",
    "credit_transactions": "account_id = {account}, user_id = {user}, type = 'bonus', amount = -1, "
    "balance_after = 0",
    "notifications": "user_id = {user}, title = 't', message = 'm'",
    "notification_preferences": "user_id = {user}",
    "api_keys": "user_id = {user}, name = 'n', key_hash = 'new', key_prefix = 'p'",
    "usage_metrics": "user_id = {user}, metric_date = '2026-01-02'",
    "workers": "name = 'w', slots = 1, version = '0.1'",
}
WORDS = {
    "profiles.role": "user admin moderator",
    "profiles.user_tier": "FREE PRO ENTERPRISE",
    "projects.status": "active archived deleted",
    "crawl_jobs.status": "pending running completed failed cancelled",
    "crawl_jobs.source_kind": "url_list",
    "crawl_jobs.source_state": "splitting open exhausted satisfied",
    "crawl_jobs.blocked_reason": "out_of_credits monthly_limit",
    "failures.reason": " ".join(Reason),
    "job_chunks.status": "pending processing completed failed",
    "notifications.type": "success info warning error",
    "notification_preferences.digest_frequency": "realtime daily weekly never",
    "api_keys.status": "active revoked expired",
    "credit_transactions.type": "purchase usage refund bonus",
    "credit_transactions.status": "completed pending failed cancelled",
}
RANGES = {
    "crawl_jobs.progress": (0, 100),
    "crawl_jobs.priority": (0, 10),
    "crawl_jobs.source_position": (0, None),
    "crawl_jobs.max_images": (1, None),
    "crawl_jobs.unit_price": (1, None),
    "crawl_jobs.active_chunks": (0, None),
    "job_chunks.priority": (0, 10),
    "job_chunks.retry_count": (0, None),
    "credit_accounts.current_balance": (0, None),
    "credit_accounts.monthly_usage": (0, None),
    "credit_accounts.refill_threshold": (1, None),
    "credit_accounts.refill_amount": (1, None),
    "credit_accounts.monthly_limit": (1, None),
    "usage_metrics.images_processed": (0, None),
    "usage_metrics.storage_used_bytes": (0, None),
    "usage_metrics.bandwidth_used_bytes": (0, None),
    "workers.slots": (0, None),
}
UNIQUE = {
    "profiles.email": "email = 'a@example.invalid'",
    "credit_accounts.user_id": "user_id = {owner}",
    "notification_preferences.user_id": "user_id = {owner}",
    "usage_metrics.(user_id, metric_date)": "user_id = {owner}, metric_date = '2026-01-01'",
    "api_keys.key_hash": "key_hash = 'hash'",
    "job_chunks.(job_id, chunk_index)": "chunk_index = 0",
    "images.(crawl_job_id, position)": "position = 0",
    "images.(crawl_job_id, sha256)": "sha256 = sha256('a')",
    "failures.(job_id, position)": "position = 1",
}
RELATIONSHIPS = {
    Profile: "projects activity_logs credit_account api_keys notifications notification_preference usage_metrics",
    Project: "user crawl_jobs",
    CrawlJob: "project images chunks",
    Image: "crawl_job",
    JobChunk: "job",
    CreditAccount: "user transactions",
    CreditTransaction: "account",
    ActivityLog: "user",
    APIKey: "user",
    Notification: "user",
    NotificationPreference: "user",
    UsageMetric: "user",
}


def create_tree(session: Session) -> Profile:
    """A user with one row in every table that hangs on a user."""
    user = create_profile(session, "a@example.invalid", balance=100)
    job = create_job(session, create_project(session, user))
    chunk = create_chunk(session, job)
    session.add_all(
        [
            Image(crawl_job_id=job.id, original_url="u", filename="f", position=0, sha256=b"\0" * 32),
            ActivityLog(user_id=user.id, action="submit"),
            APIKey(user_id=user.id, name="key", key_hash="hash", key_prefix="p"),
            Notification(user_id=user.id, title="Done", message="One image"),
            NotificationPreference(user_id=user.id),
            UsageMetric(user_id=user.id, metric_date=func.date("2026-01-01")),
        ]
    )
    session.flush()
    session.execute(text("UPDATE images SET sha256 = sha256('a')"))
    session.execute(
        text(
            "INSERT INTO failures (job_id, position, position_end, chunk_id, reason) VALUES (:j, 1, 1, :c, 'dns')"
        ),
        {"j": job.id, "c": chunk.id},
    )
    session.commit()
    session.expire_all()
    return user


class Rows:
    """Writes rows beside an existing tree of rows; what a statement wrote is undone at once."""

    def __init__(self, connection: Connection, ids: dict[str, Any]) -> None:
        self.connection, self.ids = connection, ids

    def insert(self, table: str, **values: Any) -> None:
        """A valid row of ``table`` with these values (SQL) instead of its own."""
        columns = self.columns(ROWS[table]) | values
        names, expressions = ", ".join(columns), ", ".join(str(value) for value in columns.values())
        with self.connection.begin_nested() as savepoint:
            self.connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({expressions})"))
            savepoint.rollback()

    def columns(self, row: str) -> dict[str, str]:
        """{column: SQL} of a line of ROWS or UNIQUE."""
        parts = (part.split(" = ") for part in row.format(**self.ids).split(", "))
        return dict(parts)


@pytest.fixture
def rows(session: Session, engine: Engine) -> Iterator[Rows]:
    """A tree of rows, a second user without any, and a way to try more."""
    owner = create_tree(session)
    other = create_profile(session)
    assert owner.credit_account is not None
    ids = {
        "owner": f"'{owner.id}'",
        "user": f"'{other.id}'",
        "account": f"'{owner.credit_account.id}'",
        "project": owner.projects[0].id,
        "job": owner.projects[0].crawl_jobs[0].id,
    }
    session.delete(other.credit_account)
    session.commit()
    with engine.connect() as connection:
        yield Rows(connection, ids)


def implied(table: str, column: str, word: str) -> dict[str, str]:
    """What a valid row needs besides the word, by the rules that tie columns together."""
    if (table, column) == ("crawl_jobs", "status") and word in {"completed", "failed", "cancelled"}:
        return {"completed_at": "now()"}
    return {}


def test_every_table_exists_and_takes_a_row(rows: Rows) -> None:
    """The declared tables are the existing ones, and each takes a row of the seed's columns."""
    tables = set(inspect(rows.connection).get_table_names()) - {"alembic_version"}
    assert tables == set(Base.metadata.tables) == set(ROWS)
    for table in ROWS:
        rows.insert(table)


def test_every_word_is_accepted_and_every_other_refused(rows: Rows) -> None:
    """A column of words takes the seed's words in their letters, and nothing else."""
    for place, words in WORDS.items():
        table, column = place.split(".")
        for word in words.split():
            rows.insert(table, **{column: f"'{word}'"}, **implied(table, column, word))
        for word in ("", "other", words.split()[0].swapcase()):
            with pytest.raises(IntegrityError, match=f"ck_{table}_{column}"):
                rows.insert(table, **{column: f"'{word}'"})


def test_ranges_hold_at_their_ends(rows: Rows) -> None:
    """A number is accepted at each end of its range and refused one beyond."""
    for place, (lowest, highest) in RANGES.items():
        table, column = place.split(".")
        for value in (lowest, highest):
            if value is not None:
                rows.insert(table, **{column: value})
        for value in (lowest - 1, None if highest is None else highest + 1):
            if value is not None:
                with pytest.raises(IntegrityError, match=f"ck_{table}_{column}"):
                    rows.insert(table, **{column: value})


def test_unique_keys_refuse_a_second_row(rows: Rows) -> None:
    """There is one row for each unique key, whatever its other columns hold."""
    for place, values in UNIQUE.items():
        with pytest.raises(IntegrityError, match="duplicate key"):
            rows.insert(place.split(".")[0], **rows.columns(values))


def test_every_foreign_key_has_an_index(engine: Engine) -> None:
    """Each foreign key's column is the first of an index over all rows, so that cascades scan no table."""
    found = inspect(engine)
    for table in Base.metadata.tables:
        whole = [i for i in found.get_indexes(table) if "postgresql_where" not in i["dialect_options"]]
        first = {index["column_names"][0] for index in whole}
        first |= {key["column_names"][0] for key in found.get_unique_constraints(table)}
        first.add(found.get_pk_constraint(table)["constrained_columns"][0])
        for key in found.get_foreign_keys(table):
            assert key["options"] == {"ondelete": "CASCADE"}, (table, key["name"])
            assert key["constrained_columns"][0] in first, (table, key["name"])


def test_relationships_are_the_seeds_and_load_by_selectin() -> None:
    """Every relationship has the seed's name, two-way, with lazy="selectin"."""
    for mapper in Base.registry.mappers:
        assert set(mapper.relationships.keys()) == set(RELATIONSHIPS.get(mapper.class_, "").split())
        for relationship in mapper.relationships:
            assert relationship.lazy == "selectin", relationship
            assert relationship.back_populates in relationship.mapper.relationships, relationship


def test_fk_constraint(session: Session) -> None:
    """The seed's test: a job of a project that does not exist is refused."""
    job = CrawlJob(project_id=999, name="Nobody's")
    session.add(job)
    with pytest.raises(IntegrityError, match="fk_crawl_jobs_project_id_projects"):
        session.commit()


def test_relationship_loading(session: Session) -> None:
    """The seed's test: both ends of a relationship know each other."""
    user = create_profile(session)
    project = create_project(session, user=user)
    assert project in user.projects
    assert project.user == user


def test_cascade_delete(session: Session) -> None:
    """The seed's test: deleting a profile deletes its project."""
    user = create_profile(session)
    project = create_project(session, user=user)
    project_id = project.id
    session.delete(user)
    session.commit()
    assert not session.query(Project).filter_by(id=project_id).first()


@pytest.mark.parametrize(
    ("deleted", "gone"),
    [
        (
            Profile,
            " ".join(set(ROWS) - {"workers"}),
        ),
        (Project, "projects crawl_jobs job_chunks images failures"),
        (CrawlJob, "crawl_jobs job_chunks images failures"),
        (CreditAccount, "credit_accounts credit_transactions"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_deletes_cascade_as_the_seed_says(session: Session, deleted: type[Any], gone: str) -> None:
    """Deleting a row deletes what hangs on it, and nothing beside."""
    create_tree(session)
    counted = set(Base.metadata.tables) - {"workers"}
    session.delete(session.scalars(select(deleted)).one())
    session.commit()
    empty = {table for table in counted if not session.scalar(text(f"SELECT count(*) FROM {table}"))}
    assert empty == set(gone.split())
