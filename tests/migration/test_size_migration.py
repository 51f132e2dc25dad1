"""Revision 008 on a database that has work to do: jobs know what they have ready, before and after, up and down."""

from sqlalchemy import Connection, text

from alembic import command
from models.database import alembic_config, migrate

JOBS = """
INSERT INTO profiles (id, email) VALUES (gen_random_uuid(), 'ada@example.invalid');
INSERT INTO projects (name, user_id) SELECT 'Birds', id FROM profiles;
INSERT INTO crawl_jobs (project_id, name)
SELECT id, unnest(ARRAY['mixed', 'parked', 'queued', 'none']) FROM projects;
INSERT INTO job_chunks (job_id, chunk_index, priority, candidates, queued_at, available_at)
VALUES (1, 0, 3, '\\x00', NULL, NULL), (1, 1, 7, '\\x00', NULL, NULL), (1, 2, 9, NULL, NULL, NULL),
    (2, 0, 5, '\\x00', NULL, now() + interval '1 min'), (3, 0, 5, '\\x00', now(), NULL);
"""
READY = text("SELECT name, ready_priority FROM crawl_jobs ORDER BY id")
QUEUED_AGAIN = "UPDATE job_chunks SET queued_at = NULL WHERE job_id = 3"


def test_008_finds_what_is_ready(empty_database_url: str, connection: Connection) -> None:
    """Jobs that have ready chunks say so once it is applied, and the triggers go on with it; twice is as once."""
    migrate(empty_database_url, "007")
    connection.execute(text(JOBS))
    for _ in range(2):
        migrate(empty_database_url, "008")
        ready = dict(tuple(row) for row in connection.execute(READY))
        assert ready == {"mixed": 7, "parked": None, "queued": None, "none": None}
        command.downgrade(alembic_config(empty_database_url), "007")
    migrate(empty_database_url, "008")
    connection.execute(text(QUEUED_AGAIN))
    connection.execute(text("UPDATE job_chunks SET available_at = NULL"))
    assert dict(tuple(row) for row in connection.execute(READY)) == {
        "mixed": 7,
        "parked": 5,
        "queued": 5,
        "none": None,
    }
