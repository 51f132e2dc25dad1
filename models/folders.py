"""Which jobs store their images where: whether a folder of a user's choice is another's, too. Reads only."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Going:
    """The jobs that are being deleted: all of a user's, or one; none by default. All others stay."""

    user_id: uuid.UUID | None = None
    job_id: int | None = None

    def parameters(self) -> dict[str, object]:
        """As the statements here take it."""
        return {"going_user": self.user_id, "going_job": self.job_id}


STAYS = """p.user_id IS DISTINCT FROM CAST(:going_user AS uuid) AND j.id IS DISTINCT FROM CAST(:going_job AS int)"""
FOLDERS = text(f"""
SELECT j.id, j.store_url, j.store_url <> CAST(:root AS text) || '/jobs/' || j.id AND {STAYS}
FROM crawl_jobs j JOIN projects p ON p.id = j.project_id WHERE j.id > :after ORDER BY j.id LIMIT :limit
""")


@dataclass(frozen=True, slots=True)
class FolderJob:
    """A job and the URL of its folder."""

    id: int
    store_url: str


def folders_of_others(
    session: Session, going: Going, root: str, after: int, limit: int
) -> tuple[list[FolderJob], int | None]:
    """Jobs that stay and store outside their own prefix under ``root``, among the next ``limit`` jobs with
    a larger id than ``after``; and the last id looked at, None when there were none.
    """
    parameters = {**going.parameters(), "root": root, "after": after, "limit": limit}
    rows = session.execute(FOLDERS, parameters).all()
    return [FolderJob(row[0], row[1]) for row in rows if row[2]], rows[-1][0] if rows else None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A job that stays, in the same folder. While ``unended`` it may store anything there."""

    id: int
    email: str
    unended: bool


NEIGHBOURS = text(f"""
SELECT j.id, u.email, j.status IN ('pending', 'running')
FROM crawl_jobs j JOIN projects p ON p.id = j.project_id JOIN profiles u ON u.id = p.user_id
    LEFT JOIN credit_accounts a ON a.user_id = u.id
WHERE j.id = ANY(CAST(:ids AS int[])) AND {STAYS} AND a.closing_at IS NULL AND j.deleting_at IS NULL
ORDER BY j.id
""")


def neighbours(session: Session, going: Going, ids: Sequence[int]) -> list[Neighbour]:
    """Those of the jobs that stay: that are not being deleted, here or elsewhere, alone or with their user."""
    parameters = {**going.parameters(), "ids": list(ids)}
    return [Neighbour(*row) for row in session.execute(NEIGHBOURS, parameters)]


SAME_BYTES = text("""
SELECT sha256 FROM images
WHERE crawl_job_id = ANY(CAST(:ids AS int[])) AND sha256 = ANY(CAST(:sha256 AS bytea[]))
""")


def stored_by(session: Session, ids: Sequence[int], sha256: Sequence[bytes]) -> set[bytes]:
    """Which of these digests an image of one of these jobs has: in one folder that is the same object."""
    rows = session.execute(SAME_BYTES, {"ids": list(ids), "sha256": list(sha256)})
    return {bytes(digest) for digest in rows.scalars()}
