"""The migrations lead to the declared schema, keep rows both ways, and are safe to run at once."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from alembic import command
from models import Base
from models.database import REVISION, SchemaError, alembic_config, check_schema, migrate
from tests.support.catalog import Catalog, read_catalog, read_columns, read_rows

CHECKOUT = Path(__file__).parents[2]
REVISIONS = ("001", "002", "003", "004")
USER = "'00000000-0000-0000-0000-000000000001'"
ROWS_AT_001 = f"""
INSERT INTO profiles (id, email) VALUES ({USER}, 'a@example.invalid');
INSERT INTO projects (name, user_id) VALUES ('Birds', {USER});
INSERT INTO crawl_jobs (project_id, name, keywords, status, valid_images, completed_at)
    VALUES (1, 'Owls', '["owl"]', 'completed', 2, '2026-01-02');
INSERT INTO images (crawl_job_id, original_url, filename)
    SELECT 1, 'http://a/' || n, n FROM generate_series(1, 2) n;
INSERT INTO activity_logs (user_id, action, metadata)
    VALUES ({USER}, 'login', '{{"ip": 1}}'), (NULL, 'start', NULL);
INSERT INTO credit_accounts (id, user_id, current_balance) VALUES ({USER}, {USER}, 90);
INSERT INTO credit_transactions (account_id, user_id, type, amount, balance_after)
    VALUES ({USER}, {USER}, 'bonus', 100, 100), ({USER}, {USER}, 'usage', -10, 90);
INSERT INTO notifications (user_id, title, message) VALUES ({USER}, 'Done', 'Two images');
INSERT INTO notification_preferences (user_id, quiet_hours_start) VALUES ({USER}, '22:00');
INSERT INTO api_keys (user_id, name, key_hash, key_prefix) VALUES ({USER}, 'k', 'h', 'p');
INSERT INTO usage_metrics (user_id, metric_date, storage_used_gb) VALUES ({USER}, '2026-01-01', 1.25);
"""
ROWS_AT = {
    "001": ROWS_AT_001,
    "002": "UPDATE profiles SET user_tier = 'PRO'; INSERT INTO job_chunks (job_id, chunk_index) VALUES (1, 0)",
    "003": "DELETE FROM images WHERE id = 2; UPDATE crawl_jobs SET total_images = 2",
    "004": """
UPDATE images SET position = 0, sha256 = sha256('a'), chunk_id = 1;
UPDATE job_chunks SET status = 'processing', worker = 'w', lease_until = now();
INSERT INTO failures (job_id, position, position_end, reason) VALUES (1, 1, 1, 'dns');
INSERT INTO workers (name, slots, version) VALUES ('w', 2, '0.1')""",
}
INSERT_IMAGE = text(
    "INSERT INTO images (crawl_job_id, original_url, filename) VALUES (1, 'u', 'f') RETURNING id"
)
TEN_PROCESSES = """
import os, sys
from models.database import migrate
children = []
for _ in range(10):
    children.append(os.fork())
    if not children[-1]:
        migrate(sys.argv[1])
        os._exit(0)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""
Alembic = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[Engine]:
    """Engine on a database without tables that keeps no connection open."""
    engine = create_engine(empty_database_url, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def connection(empty: Engine) -> Iterator[Connection]:
    """Connection in which each statement stands alone, so that it never blocks a migration."""
    with empty.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


@pytest.fixture
def alembic(empty_database_url: str) -> Alembic:
    """The command `alembic …`, run in the checkout."""

    def run(*arguments: str, url: str = empty_database_url) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("alembic"), *arguments],
            cwd=CHECKOUT,
            env=os.environ | {"PIXTRAWL_DATABASE_URL": url},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def downgrade(url: str, revision: str) -> None:
    """Go back to ``revision``; the program itself never does."""
    command.downgrade(alembic_config(url), revision)


def test_migrated_schema_is_the_declared_one(
    engine: Engine, empty_database_url: str, empty: Engine, connection: Connection
) -> None:
    """A database made by the migrations has the catalog of one made from the models, to the last option."""
    Base.metadata.create_all(empty)
    with engine.connect() as migrated:
        assert read_catalog(migrated) == read_catalog(connection)


def test_alembic_finds_nothing_to_migrate(engine: Engine) -> None:
    """Alembic's own comparison of the migrated database with the models finds no difference."""
    with engine.connect() as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "autogenerate_plugins": ["alembic.autogenerate.*", "alembic.ext.checkconstraint_byname"],
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []
    check_schema(engine)


def test_the_program_knows_its_newest_revision() -> None:
    """What a command compares the database with is the newest migration."""
    assert ScriptDirectory.from_config(alembic_config()).get_current_head() == REVISION


def test_each_step_up_and_down_keeps_rows(empty_database_url: str, connection: Connection) -> None:
    """From 001 to head, down to 001 and up again, every row and column that both sides know stays."""
    catalogs: dict[str, Catalog] = {}
    columns: dict[str, dict[str, list[str]]] = {}
    for lower, revision in zip(("base", *REVISIONS), REVISIONS, strict=False):
        before = read_rows(connection, columns.get(lower, {}))
        migrate(empty_database_url, revision)
        assert read_rows(connection, columns.get(lower, {})) == before
        catalogs[revision], columns[revision] = read_catalog(connection), read_columns(connection)
        connection.execute(text(ROWS_AT[revision]))
    assert all(read_rows(connection, columns["004"]).values())
    for revision in reversed(REVISIONS[:-1]):
        kept = read_rows(connection, columns[revision])
        downgrade(empty_database_url, revision)
        assert read_catalog(connection) == catalogs[revision]
        assert read_rows(connection, columns[revision]) == kept
    kept = read_rows(connection, columns["001"])
    migrate(empty_database_url)
    assert read_catalog(connection) == catalogs["004"]
    assert read_rows(connection, columns["001"]) == kept
    downgrade(empty_database_url, "base")
    assert read_catalog(connection) == {}


def test_004_carries_values_over(empty_database_url: str, connection: Connection) -> None:
    """Bytes begin at the GB recorded so far, and candidates cover the images, so that the new rules hold."""
    migrate(empty_database_url, "003")
    connection.execute(text(ROWS_AT_001))
    migrate(empty_database_url)
    assert connection.execute(text("SELECT storage_used_bytes FROM usage_metrics")).scalar() == 1_250_000_000
    assert connection.execute(text("SELECT total_images FROM crawl_jobs")).scalar() == 2


def test_image_ids_are_never_given_twice(empty_database_url: str, connection: Connection) -> None:
    """The images' sequence goes on where it stood, up and down, even when the last row was deleted."""
    migrate(empty_database_url, "003")
    connection.execute(text(ROWS_AT_001))
    connection.execute(text("DELETE FROM images WHERE id = 2"))
    migrate(empty_database_url)
    assert connection.execute(INSERT_IMAGE).scalar() == 3
    downgrade(empty_database_url, "003")
    assert connection.execute(INSERT_IMAGE).scalar() == 4
    migrate(empty_database_url)
    connection.execute(text("SELECT setval('images_id_seq', 3000000000)"))
    connection.execute(INSERT_IMAGE)
    with pytest.raises(CommandError, match="ids up to 3000000001 were given"):
        downgrade(empty_database_url, "003")
    assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "004"


@pytest.fixture(params=["online", "offline"])
def upgrade_to_003(
    request: pytest.FixtureRequest, empty_database_url: str, empty: Engine, alembic: Alembic
) -> Callable[[], None]:
    """Upgrade a database at 002, by a connection or by the script that Alembic prints."""

    def by_script() -> None:
        script = alembic("upgrade", "002:003", "--sql").stdout
        with empty.connect() as connection:
            connection.exec_driver_sql(script)

    return by_script if request.param == "offline" else partial(migrate, empty_database_url)


def test_003_lists_orphans_and_changes_nothing(
    empty_database_url: str, connection: Connection, upgrade_to_003: Callable[[], None]
) -> None:
    """Orphans stop 003 before its first change, named by table, column, count and first ids."""
    migrate(empty_database_url, "002")
    connection.execute(text(ROWS_AT_001))
    connection.execute(text("INSERT INTO job_chunks (job_id, chunk_index) SELECT 7, generate_series(1, 9)"))
    connection.execute(text(f"UPDATE api_keys SET user_id = gen_random_uuid(), id = {USER}"))
    before = read_catalog(connection), read_rows(connection, read_columns(connection))
    with pytest.raises((SchemaError, DBAPIError), match="Nothing was changed") as refusal:
        upgrade_to_003()
    message = str(getattr(refusal.value, "orig", refusal.value))
    assert "job_chunks.job_id -> crawl_jobs.id, rows: 9, first ids: 1, 2, 3, 4, 5\n" in message
    assert f"api_keys.user_id -> profiles.id, rows: 1, first ids: {USER[1:-1]}" in message
    assert message.count(".id, rows: ") == 2
    assert (read_catalog(connection), read_rows(connection, read_columns(connection))) == before
    assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "002"


def test_ten_processes_migrate_at_once(empty_database_url: str, empty: Engine, tmp_path: Path) -> None:
    """All succeed without a word, in a folder whose models.py is not ours."""
    (tmp_path / "models.py").write_text("raise SystemExit('the wrong models')")
    command_line = [sys.executable, "-P", "-c", TEN_PROCESSES, empty_database_url]
    done = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    check_schema(empty)


def test_offline_script_gives_the_same_schema(
    engine: Engine, empty: Engine, connection: Connection, alembic: Alembic
) -> None:
    """`alembic upgrade head --sql` prints SQL that leads to the migrated schema, and down again to nothing."""
    with engine.connect() as migrated:
        expected = read_catalog(migrated)
    # No database is asked: this one does not exist.
    script = alembic("upgrade", "head", "--sql", url="postgresql://nobody@/nothing?host=/nowhere")
    connection.exec_driver_sql(script.stdout)
    assert read_catalog(connection) == expected
    check_schema(empty)
    connection.exec_driver_sql(alembic("downgrade", "head:base", "--sql").stdout)
    assert read_catalog(connection) == {}


def test_commands_of_the_quick_reference(alembic: Alembic, connection: Connection) -> None:
    """`alembic` in the checkout upgrades to a revision and to head, goes back one, and tells where it is."""
    assert "003 -> 004 (head)" in alembic("history").stdout
    for arguments in (("upgrade", "003"), ("downgrade", "-1"), ("upgrade", "head")):
        done = alembic(*arguments)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        if arguments == ("downgrade", "-1"):
            assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "002"
    assert alembic("current").stdout == "004 (head)\n"


def test_alembic_without_a_database_says_what_to_do(alembic: Alembic) -> None:
    """Without a URL, or with one where nothing listens, the answer is one message and no traceback."""
    unset = alembic("upgrade", "head", url="")
    assert unset.returncode != 0
    assert unset.stdout.startswith("FAILED: PIXTRAWL_DATABASE_URL is not set")
    assert 'eval "$(pixtrawl env)"' in unset.stdout.replace("\n", " ")
    unreachable = alembic("current", url="postgresql://user:secret@127.0.0.1:1/nothing")
    assert unreachable.returncode != 0
    assert "FAILED: postgresql+psycopg2://user:***@127.0.0.1:1/nothing: connection" in unreachable.stdout
    for output in (unset.stderr, unreachable.stderr):
        assert output == ""


def test_a_callers_transaction_is_the_callers(empty: Engine, connection: Connection) -> None:
    """Migrations on a connection that is in a transaction are undone by its rollback."""
    with empty.connect() as own, own.begin() as transaction:
        command.upgrade(alembic_config(connection=own), "head")
        assert read_columns(own)["workers"]
        transaction.rollback()
    assert read_catalog(connection) == {}
