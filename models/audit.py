"""What a job and an account must add up to, read from the rows themselves and not from counters."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from models import invariants

ACCOUNTS_PAGE, JOBS_PAGE = 500, 500
CHUNKS_PAGE = 2_000
"""Jobs of so many chunks are looked at together: a million images."""
MORE = """
SELECT x.rule, u.email, x.job_id, x.chunk_id, x.expected, x.found
FROM rule_rows AS x (rule, user_id, job_id, chunk_id, expected, found) JOIN profiles u ON u.id = x.user_id
WHERE x.expected <> x.found ORDER BY x.job_id, x.chunk_id, x.rule
"""
RULES_OF_ACCOUNTS = [
    text(f"WITH {invariants.ACCOUNTS}, rule_rows AS ({rule}) {MORE}") for rule in invariants.OF_ACCOUNTS
]
RULES_OF_JOBS = [text(f"WITH {invariants.JOBS}, rule_rows AS ({rule}) {MORE}") for rule in invariants.OF_JOBS]
NEXT_ACCOUNTS = text("""
SELECT id FROM credit_accounts
WHERE id > :after AND (CAST(:user_id AS uuid) IS NULL OR user_id = :user_id) ORDER BY id LIMIT :limit
""")
NEXT_JOBS = text("""
SELECT id FROM (
    SELECT j.id, sum(j.total_chunks) OVER (ORDER BY j.id) - j.total_chunks AS before FROM (
        SELECT j.id, j.total_chunks FROM crawl_jobs j WHERE j.id > :after AND (
            CAST(:user_id AS uuid) IS NULL OR j.project_id IN (SELECT id FROM projects WHERE user_id = :user_id))
        ORDER BY j.id LIMIT :limit) j) following
WHERE before < :chunks ORDER BY id
""")


@dataclass(frozen=True, slots=True)
class Difference:
    """A rule that does not hold: ``expected`` by the rows, ``found`` in the counter or balance. ``user`` is the
    e-mail of the account's owner.
    """

    rule: str
    user: str
    job: int | None
    chunk: int | None
    expected: int
    found: int


def differences(session: Session, user_id: uuid.UUID | None = None) -> Iterator[Difference]:
    """Every difference, of one user or of all, page by page: accounts first, then jobs.

    Each statement is right by its own snapshot while others write; in a session that commits after each statement
    nothing is held open between them, however long the walk takes.
    """
    after: uuid.UUID | int = uuid.UUID(int=0)
    while page := _page(session, NEXT_ACCOUNTS, after, user_id, ACCOUNTS_PAGE):
        yield from _broken(session, RULES_OF_ACCOUNTS, "accounts", page)
        after = page[-1]
    after = 0
    while page := _page(session, NEXT_JOBS, after, user_id, JOBS_PAGE):
        yield from _broken(session, RULES_OF_JOBS, "jobs", page)
        after = page[-1]


def _page(
    session: Session, query: TextClause, after: uuid.UUID | int, user_id: uuid.UUID | None, limit: int
) -> Sequence[uuid.UUID | int]:
    parameters = {"after": after, "user_id": user_id, "limit": limit, "chunks": CHUNKS_PAGE}
    return session.execute(query, parameters).scalars().all()


def _broken(
    session: Session, rules: Sequence[TextClause], of: str, page: Sequence[uuid.UUID | int]
) -> Iterator[Difference]:
    for rule in rules:
        for row in session.execute(rule, {of: [str(key) for key in page]}).all():
            yield Difference(row.rule, row.email, row.job_id, row.chunk_id, int(row.expected), int(row.found))


OUTCOMES = text("""
SELECT position, 'accepted' FROM images WHERE crawl_job_id = :job_id
UNION ALL
SELECT generate_series(position, position_end), reason FROM failures WHERE job_id = :job_id
""")


def outcomes(session: Session, job_id: int) -> dict[int, str]:
    """'accepted' or the reason of failure of every position that has an outcome."""
    return {position: str(outcome) for position, outcome in session.execute(OUTCOMES, {"job_id": job_id})}


@dataclass(frozen=True, slots=True)
class StoredImage:
    """Which object a row names, and the digest that its bytes must have."""

    position: int
    url: str
    sha256: bytes


IMAGES = text(
    "SELECT position, storage_url, sha256 FROM images WHERE crawl_job_id = :job_id ORDER BY position"
)


def images(session: Session, job_id: int) -> list[StoredImage]:
    """The accepted images of a job in the order of its candidates."""
    rows = session.execute(IMAGES, {"job_id": job_id})
    return [StoredImage(position, url, bytes(sha256)) for position, url, sha256 in rows]


@dataclass(frozen=True, slots=True)
class Statement:
    """One account in credits. ``granted`` came in; ``held`` was taken for chunks, of which ``charged`` was spent
    and ``released`` given back; ``open`` is still held. ``balance`` is what the account says. ``closing``: the
    user is being deleted, so some transactions are gone already.
    """

    granted: int
    holds: int
    held: int
    charged: int
    released: int
    open: int
    balance: int
    closing: bool = field(default=False, kw_only=True)

    @property
    def correct(self) -> bool:
        """Whether the balance is explained by its transactions. One that is being deleted explains nothing."""
        return self.closing or (
            self.balance == self.granted - self.charged - self.open
            and self.held == self.charged + self.released + self.open
        )


STATEMENT = text("""
SELECT
    coalesce(sum(t.amount) FILTER (WHERE t.type <> 'usage' AND t.status = 'completed'), 0),
    count(*) FILTER (WHERE t.type = 'usage'),
    coalesce(sum(t.held) FILTER (WHERE t.type = 'usage'), 0),
    coalesce(-sum(t.amount) FILTER (WHERE t.type = 'usage' AND t.status = 'completed'), 0),
    coalesce(sum(t.held) FILTER (WHERE t.type = 'usage' AND t.status = 'cancelled'), 0)
        + coalesce(sum(t.held + t.amount) FILTER (WHERE t.type = 'usage' AND t.status = 'completed'), 0),
    coalesce(-sum(t.amount) FILTER (WHERE t.type = 'usage' AND t.status = 'pending'), 0),
    a.current_balance, a.closing_at IS NOT NULL
FROM credit_accounts a LEFT JOIN credit_transactions t ON t.account_id = a.id
WHERE a.user_id = :user_id GROUP BY a.id
""")


def statement(session: Session, user_id: uuid.UUID) -> Statement:
    """What happened on an account, from its transactions."""
    *figures, closing = session.execute(STATEMENT, {"user_id": user_id}).one()
    return Statement(*(int(value) for value in figures), closing=closing)
