"""Deleting a user: the statements, each of which deletes a bounded number of rows. scheduler/closing.py walks.

They take a Session and never commit. None deletes a row that others are deleted with, unless those are gone
already: a cascade has no bound.
"""

import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Estate:
    """What a profile owns. ``images`` and ``bytes`` are what the counters of its jobs say."""

    user_id: uuid.UUID
    email: str
    closing: bool
    projects: int
    jobs: int
    images: int
    bytes: int


ESTATE = text("""
SELECT u.id, u.email, coalesce(bool_or(a.closing_at IS NOT NULL), false), count(DISTINCT p.id), count(j.id),
    coalesce(sum(j.valid_images), 0), coalesce(sum(j.stored_bytes), 0)
FROM profiles u LEFT JOIN credit_accounts a ON a.user_id = u.id
    LEFT JOIN projects p ON p.user_id = u.id LEFT JOIN crawl_jobs j ON j.project_id = p.id
WHERE u.email = :email GROUP BY u.id
""")


def find_estate(session: Session, email: str) -> Estate | None:
    """What the profile with this e-mail owns; None when there is no such profile."""
    row = session.execute(ESTATE, {"email": email}).one_or_none()
    return None if row is None else Estate(row[0], row[1], row[2], row[3], row[4], int(row[5]), int(row[6]))


UNENDED = text("""
SELECT j.id FROM projects p JOIN crawl_jobs j ON j.project_id = p.id
WHERE p.user_id = :user_id AND j.status IN ('pending', 'running') AND j.cancelled_at IS NULL
ORDER BY j.id LIMIT :limit
""")
LOCK_ACCOUNT = text("SELECT FROM credit_accounts WHERE user_id = :user_id FOR UPDATE")
CLOSE_ACCOUNT = text("""
UPDATE credit_accounts SET closing_at = coalesce(closing_at, now()) WHERE user_id = :user_id
""")


def unended_jobs(session: Session, user_id: uuid.UUID, limit: int) -> list[int]:
    """Jobs of a user that have not ended and were not cancelled."""
    return list(session.execute(UNENDED, {"user_id": user_id, "limit": limit}).scalars())


def close_account(session: Session, user_id: uuid.UUID) -> bool:
    """open → closing: nothing is held, granted or submitted any more. False, and open, while a job goes on.

    The jobs are cancelled before, one a transaction: whoever locks several may meet another who locks them in
    another order. The lock on the account waits for submissions under way (see ``being_closed``), so a closing
    account has no job that dispatch would claim again and again and never get a hold for.
    """
    session.execute(LOCK_ACCOUNT, {"user_id": user_id})
    if unended_jobs(session, user_id, 1):
        return False
    session.execute(CLOSE_ACCOUNT, {"user_id": user_id})
    return True


BEING_CLOSED = text("""
SELECT closing_at IS NOT NULL FROM credit_accounts WHERE user_id = :user_id FOR KEY SHARE
""")


def being_closed(session: Session, user_id: uuid.UUID) -> bool:
    """Whether a user is being deleted. An account that is open stays so until the caller's transaction ends."""
    return bool(session.execute(BEING_CLOSED, {"user_id": user_id}).scalar_one_or_none())


PREPARE = text("""
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
    set_config('pixtrawl.closing_account', coalesce(CAST((
        SELECT id FROM credit_accounts WHERE user_id = :user_id) AS text), ''), true)
""")


def prepare_deletes(session: Session, user_id: uuid.UUID | None) -> None:
    """For this transaction: the ledger lets a closing account's rows go (that of ``user_id``, if any), and plans
    are for tables that shrink.

    Statistics are stale by now, or there are none. Only an index scan marks the entries of deleted rows as
    dead as it passes, so that the next batch, and in the end the foreign key's own check, need not look again.
    """
    session.execute(PREPARE, {"user_id": user_id})


def _delete_some(table: str, owner: str, key: str = "id", found_by: str = "") -> TextClause:
    """DELETE of the next rows of an owner, whichever they are, through the index on the foreign key."""
    found = found_by or f"SELECT {key} FROM {table} WHERE {owner} = :owner LIMIT :limit"
    return text(f"DELETE FROM {table} WHERE {owner} = :owner AND {key} = ANY(ARRAY({found})) RETURNING {key}")


@dataclass(frozen=True, slots=True)
class ClosingJob:
    """A job to be deleted, where its images are, and the object that its input was copied to."""

    id: int
    store_url: str | None
    input: str | None


JOBS = text("""
SELECT j.id, j.store_url, j.source->>'object' FROM projects p JOIN crawl_jobs j ON j.project_id = p.id
WHERE p.user_id = :user_id AND j.id > :after ORDER BY j.id LIMIT :limit
""")


def jobs_of(session: Session, user_id: uuid.UUID, after: int, limit: int) -> list[ClosingJob]:
    """The next jobs of a user, with a larger id than ``after``."""
    rows = session.execute(JOBS, {"user_id": user_id, "after": after, "limit": limit})
    return [ClosingJob(*row) for row in rows]


DELETE_CHUNKS = _delete_some(
    "job_chunks",
    "job_id",
    found_by="""SELECT id FROM job_chunks WHERE job_id = :owner AND NOT (
        :patient AND status = 'processing' AND lease_until > now() AND lease_until < 'infinity')
    LIMIT :limit FOR UPDATE SKIP LOCKED""",
)
CHUNKS_LEFT = text("SELECT count(*) FROM (SELECT FROM job_chunks WHERE job_id = :job_id LIMIT 100) AS first")


def delete_chunks(session: Session, job_id: int, patient: bool, limit: int) -> int:
    """How many chunks were deleted; those that another process has locked are passed over.

    While ``patient`` those under way are left: their workers see within a second that the job was cancelled,
    and settle. Only then is it certain that nothing more is stored. A chunk deleted under its worker fails the
    worker's fence: it writes no row. (A lease without end is another service's.)
    """
    parameters = {"owner": job_id, "limit": limit, "patient": patient}
    return len(session.execute(DELETE_CHUNKS, parameters).all())


def chunks_left(session: Session, job_id: int) -> int:
    """Chunks that a job still has; 100 stands for more."""
    return int(session.execute(CHUNKS_LEFT, {"job_id": job_id}).scalar_one())


EXISTING = text("SELECT id FROM job_chunks WHERE id = ANY(CAST(:ids AS bigint[]))")


def existing_chunks(session: Session, ids: Collection[int]) -> set[int]:
    """Which of these chunks have a row. A row is committed before its first message is sent."""
    return set(session.execute(EXISTING, {"ids": list(ids)}).scalars())


DELETE_IMAGES = _delete_some("images", "crawl_job_id")
DELETE_FAILURES = _delete_some("failures", "job_id", key="position")


def delete_images(session: Session, job_id: int, limit: int) -> int:
    """How many images of a job were deleted."""
    return len(session.execute(DELETE_IMAGES, {"owner": job_id, "limit": limit}).all())


def delete_failures(session: Session, job_id: int, limit: int) -> int:
    """How many failures of a job were deleted."""
    return len(session.execute(DELETE_FAILURES, {"owner": job_id, "limit": limit}).all())


@dataclass(frozen=True, slots=True)
class NamedObject:
    """An image's row and the object that it names. Rows of other services may leave anything out."""

    image_id: int
    url: str | None
    sha256: bytes | None
    bytes: int


NAMED = text("""
SELECT id, storage_url, sha256, coalesce(file_size, 0) FROM images WHERE crawl_job_id = :job_id LIMIT :limit
""")
DELETE_NAMED = text("""
DELETE FROM images WHERE crawl_job_id = :job_id AND id = ANY(CAST(:ids AS bigint[])) RETURNING id
""")


def named_objects(session: Session, job_id: int, limit: int) -> list[NamedObject]:
    """Some images of a job, whichever; deleting them brings others next time."""
    rows = session.execute(NAMED, {"job_id": job_id, "limit": limit})
    return [NamedObject(row[0], row[1], row[2] and bytes(row[2]), row[3]) for row in rows]


def delete_named(session: Session, job_id: int, named: Sequence[NamedObject]) -> int:
    """How many of these images of a job were deleted."""
    ids = [image.image_id for image in named]
    return len(session.execute(DELETE_NAMED, {"job_id": job_id, "ids": ids}).all())


LOCK_JOB = text("SELECT FROM crawl_jobs WHERE id = :job_id FOR UPDATE")
DELETE_JOB = text("""
DELETE FROM crawl_jobs j WHERE j.id = :job_id
    AND NOT EXISTS (SELECT FROM job_chunks c WHERE c.job_id = j.id)
    AND NOT EXISTS (SELECT FROM images i WHERE i.crawl_job_id = j.id)
    AND NOT EXISTS (SELECT FROM failures f WHERE f.job_id = j.id)
    AND NOT EXISTS (SELECT FROM seen_keys s WHERE s.job_id = j.id)
    AND NOT EXISTS (SELECT FROM pages g WHERE g.job_id = j.id)
RETURNING j.id
""")


def delete_job(session: Session, job_id: int) -> bool:
    """Whether a job is gone; False when something came to it meanwhile.

    The lock comes first: nothing comes to the job any more, and the next statement sees whatever came before.
    """
    if session.execute(LOCK_JOB, {"job_id": job_id}).first() is None:
        return True
    return session.execute(DELETE_JOB, {"job_id": job_id}).first() is not None


EMPTY_PROJECTS = text("""
SELECT p.id FROM projects p
WHERE p.user_id = :user_id AND NOT EXISTS (SELECT FROM crawl_jobs j WHERE j.project_id = p.id)
LIMIT :limit FOR UPDATE
""")
DELETE_PROJECTS = text("""
DELETE FROM projects p WHERE p.id = ANY(CAST(:ids AS int[]))
    AND NOT EXISTS (SELECT FROM crawl_jobs j WHERE j.project_id = p.id) RETURNING p.id
""")


def delete_projects(session: Session, user_id: uuid.UUID, limit: int) -> int:
    """How many projects without jobs were deleted. Once they are locked no job comes to them."""
    ids = list(session.execute(EMPTY_PROJECTS, {"user_id": user_id, "limit": limit}).scalars())
    return len(session.execute(DELETE_PROJECTS, {"ids": ids}).all())


ACCOUNT = "SELECT id FROM credit_accounts WHERE user_id = :user_id"
DELETE_LEDGER = """
DELETE FROM credit_transactions WHERE id = ANY(ARRAY(
    SELECT id FROM (SELECT id, account_id FROM credit_transactions WHERE {found_by} LIMIT :limit) AS next
    WHERE account_id = ({account}))) RETURNING id
"""
DELETE_LEDGER_BY_ACCOUNT = text(DELETE_LEDGER.format(account=ACCOUNT, found_by=f"account_id = ({ACCOUNT})"))
DELETE_LEDGER_BY_USER = text(DELETE_LEDGER.format(account=ACCOUNT, found_by="user_id = :user_id"))


def delete_ledger(session: Session, user_id: uuid.UUID, limit: int) -> int:
    """How many transactions of a closing account were deleted.

    Half of them are found by each foreign key: both indexes are then free of what was deleted when account and
    profile go, and their cascades have nothing to pass over.
    """
    parameters = {"user_id": user_id, "limit": (limit + 1) // 2}
    statements = (DELETE_LEDGER_BY_USER, DELETE_LEDGER_BY_ACCOUNT)
    return sum(len(session.execute(statement, parameters).all()) for statement in statements)


RECORDS = {
    table: _delete_some(table, "user_id")
    for table in ("activity_logs", "notifications", "api_keys", "usage_metrics")
}


def delete_records(session: Session, table: str, user_id: uuid.UUID, limit: int) -> int:
    """How many rows of a table of RECORDS were deleted."""
    return len(session.execute(RECORDS[table], {"owner": user_id, "limit": limit}).all())


LOCK_PROFILE = text("SELECT FROM profiles WHERE id = :user_id FOR UPDATE")
HAS_ROWS = text(f"""
SELECT EXISTS (SELECT FROM projects WHERE user_id = :user_id)
    OR EXISTS (SELECT FROM credit_transactions WHERE account_id = ({ACCOUNT}))
    OR {" OR ".join(f"EXISTS (SELECT FROM {table} WHERE user_id = :user_id)" for table in RECORDS)}
""")
LAST = ("notification_preferences", "credit_accounts")
DELETE_LAST = [text(f"DELETE FROM {table} WHERE user_id = :user_id RETURNING id") for table in LAST]
DELETE_PROFILE = text("DELETE FROM profiles WHERE id = :user_id RETURNING id")


def delete_profile(session: Session, user_id: uuid.UUID) -> dict[str, int] | None:
    """The last rows, counted by table: preferences, account, profile. None when something came meanwhile.

    The lock comes first, as with a job.
    """
    parameters = {"user_id": user_id}
    if session.execute(LOCK_PROFILE, parameters).first() is None:
        return {}
    if session.execute(HAS_ROWS, parameters).scalar_one():
        return None
    statements = zip((*LAST, "profiles"), (*DELETE_LAST, DELETE_PROFILE), strict=True)
    return {table: len(session.execute(statement, parameters).all()) for table, statement in statements}
