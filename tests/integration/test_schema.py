"""The whole schema as other services find it: every column, word, range, unique key, CHECK and relationship.

What the seed names is in test_seed_reference.py; here stands what it leaves open, and that nothing is untested.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, inspect, text

from models import (
    ActivityLog,
    APIKey,
    Base,
    CrawlJob,
    CreditAccount,
    CreditTransaction,
    Failure,
    Image,
    JobChunk,
    Leadership,
    Notification,
    NotificationPreference,
    Page,
    Profile,
    Project,
    SeenKey,
    UsageMetric,
    Worker,
)
from models.outcomes import Reason
from tests.support import seed
from tests.support.filled import index_on
from tests.support.rows import ROWS, Rows, database_of_rows, rows_on

# name type = default; '?' for a column that may be null. Behind '+' stands what this project adds.
COLUMNS = {
    "profiles": """
        id uuid = gen_random_uuid() · email varchar(255) · full_name varchar(100)? · avatar_url text? ·
        role varchar(20) = 'user' · user_tier varchar(20) = 'FREE' ·
        created_at timestamptz = now() · updated_at timestamptz = now()
    """,
    "projects": """
        id serial · name varchar(100) · description text? · user_id uuid · status varchar(20) = 'active' ·
        created_at timestamptz = now() · updated_at timestamptz = now()
    """,
    "crawl_jobs": """
        id serial · project_id int · name varchar(100) · keywords jsonb? · max_images int = 1000 ·
        status varchar(20) = 'pending' · progress int = 0 · total_images int = 0 ·
        downloaded_images int = 0 · valid_images int = 0 · total_chunks int = 0 · active_chunks int = 0 ·
        completed_chunks int = 0 · failed_chunks int = 0 · task_ids jsonb = '[]' ·
        started_at timestamptz? · completed_at timestamptz? ·
        created_at timestamptz = now() · updated_at timestamptz = now()
        +
        priority int = 5 · unit_price int = 1 · fingerprint varchar(64)? · store_url text? ·
        source_kind varchar(20)? · source jsonb = '{}' · source_step int = 0 · source_cursor jsonb = '{}' ·
        source_position int = 0 · source_state varchar(20) = 'splitting' ·
        failed_images int = 0 · failures jsonb = '{}' · stored_bytes bigint = 0 · wire_bytes bigint = 0 ·
        blocked_reason varchar(50)? · dispatched_at timestamptz? · paused_at timestamptz? ·
        cancelled_at timestamptz? · ready_priority smallint? · reprioritized_at timestamptz? ·
        swept_at timestamptz? · deleting_at timestamptz? · ignored_opt_outs jsonb = '[]' ·
        verification varchar(10) = 'full' · source_detail text? · source_worker varchar(255)? ·
        source_lease_until timestamptz? · source_attempts int = 0 · source_asked_at timestamptz? ·
        source_available_at timestamptz? · source_wait text?
    """,
    "job_chunks": """
        id serial · job_id int · chunk_index int · status varchar(20) = 'pending' · priority int = 5 ·
        image_range jsonb = '{}' · error_message text? · retry_count int = 0 · task_id varchar(255)? ·
        created_at timestamptz = now() · updated_at timestamptz = now()
        +
        size int = 0 · accepted int = 0 · failed int = 0 · attempt int = 0 · checkpoint int = 0 ·
        queued_at timestamptz? · available_at timestamptz? · lease_until timestamptz? ·
        worker varchar(255)? · candidates bytea?
    """,
    "images": """
        id bigint identity · crawl_job_id int · original_url text · filename varchar(255) ·
        storage_url text? · width int? · height int? · file_size int? · format varchar(10)? ·
        created_at timestamptz = now() · updated_at timestamptz = now()
        +
        chunk_id int? · position int? · sha256 bytea? · perceptual_hash bigint? · orientation smallint? ·
        keyword text? · final_url text? · source_page text? · provider varchar(50)? · licence text? ·
        creator text? · fetched_at timestamptz? · http_status smallint? · attempts smallint? · elapsed_ms int? ·
        metadata jsonb?
    """,
    "activity_logs": """
        id serial · user_id uuid? · action text · resource_type varchar(50)? · resource_id varchar(50)? ·
        metadata jsonb? · timestamp timestamptz = now()
    """,
    "credit_accounts": """
        id uuid = gen_random_uuid() · user_id uuid · current_balance int = 0 · monthly_usage int = 0 ·
        average_daily_usage numeric(10,2) = 0 · auto_refill_enabled bool = false ·
        refill_threshold int = 100 · refill_amount int = 500 · monthly_limit int = 2000 ·
        created_at timestamptz = now() · updated_at timestamptz = now()
        +
        usage_period varchar(7) = '' · closing_at timestamptz? · refill_declines int = 0 ·
        refill_after timestamptz? · averaged_on date?
    """,
    "credit_transactions": """
        id uuid = gen_random_uuid() · account_id uuid · user_id uuid · type varchar(20) · description text? ·
        amount int · balance_after int · status varchar(20) = 'completed' · metadata jsonb? ·
        created_at timestamptz = now()
        +
        job_id int? · chunk_id bigint? · held int? · unit_price int? · period varchar(7)? ·
        settled_at timestamptz? · reference varchar(255)? · refill bool = false
    """,
    "notifications": """
        id serial · user_id uuid · title varchar(255) · message text · type varchar(50) = 'info' ·
        category varchar(50)? · icon varchar(50)? · color varchar(20)? · action_url text? ·
        action_label varchar(100)? · is_read bool = false · read_at timestamptz? · metadata jsonb? ·
        created_at timestamptz = now()
    """,
    "notification_preferences": """
        id uuid = gen_random_uuid() · user_id uuid · email_enabled bool = true · push_enabled bool = false ·
        sms_enabled bool = false · crawl_jobs_enabled bool = true · datasets_enabled bool = true ·
        billing_enabled bool = true · security_enabled bool = true · marketing_enabled bool = false ·
        product_updates_enabled bool = true · digest_frequency varchar(20) = 'daily' ·
        quiet_hours_start time? · quiet_hours_end time? ·
        created_at timestamptz = now() · updated_at timestamptz = now()
    """,
    "api_keys": """
        id uuid = gen_random_uuid() · user_id uuid · name varchar(200) · key_hash varchar(255) ·
        key_prefix varchar(20) · status varchar(20) = 'active' · permissions jsonb = '[]' ·
        rate_limit int = 1000 · usage_count int = 0 · last_used_at timestamptz? ·
        last_used_ip varchar(45)? · expires_at timestamptz? ·
        created_at timestamptz = now() · updated_at timestamptz = now()
    """,
    "usage_metrics": """
        id uuid = gen_random_uuid() · user_id uuid · metric_date date · images_processed int = 0 ·
        images_limit int = 10000 · storage_used_gb numeric(10,2) = 0 ·
        storage_limit_gb numeric(10,2) = 100 · api_calls int = 0 · api_calls_limit int = 50000 ·
        bandwidth_used_gb numeric(10,2) = 0 · bandwidth_limit_gb numeric(10,2) = 500 ·
        created_at timestamptz = now()
        +
        storage_used_bytes bigint = 0 · bandwidth_used_bytes bigint = 0
    """,
    "failures": """
        +
        job_id int · position int · position_end int · chunk_id int? · url text? · reason varchar(30) ·
        http_status smallint? · final_url text? · detail text? · at timestamptz = now() · evidence jsonb? ·
        attempts smallint? · elapsed_ms int?
    """,
    "workers": """
        +
        name varchar(255) · slots int · version varchar(20) · started_at timestamptz = now() ·
        seen_at timestamptz = now() · busy int = 0 · active_at timestamptz = now() · aside int = 0
    """,
    "seen_keys": """
        +
        job_id int · key bytea · position int
    """,
    "pages": """
        +
        job_id int · key bytea · number int · kind varchar(10) · url text · depth smallint ·
        hops smallint = 0 · found_on text? · pattern bytea · state varchar(10) = 'pending' ·
        reason varchar(20)? · http_status smallint? · detail text? · evidence jsonb? · images int = 0 ·
        fresh bool = false · losses smallint = 0 · attempts smallint = 0 ·
        refusals smallint = 0 · rest bytea? · ended_at timestamptz?
    """,
    "leadership": """
        +
        id smallint = 1 · scheduler varchar(255) · since timestamptz = now() · round_at timestamptz = now()
    """,
}
WORDS = {
    "profiles.role": "user admin moderator",
    "profiles.user_tier": "FREE PRO ENTERPRISE",
    "projects.status": "active archived deleted",
    "crawl_jobs.source_kind": "url_list url_table keywords pages",
    "crawl_jobs.source_state": "splitting open exhausted satisfied",
    "crawl_jobs.blocked_reason": "out_of_credits monthly_limit",
    "crawl_jobs.verification": "full header none",
    "pages.kind": "start page sitemap",
    "pages.state": "pending read redirected failed",
    "failures.reason": " ".join(Reason),
    "notification_preferences.digest_frequency": "realtime daily weekly never",
    "credit_transactions.type": "purchase usage refund bonus",
}
RANGES = {
    "crawl_jobs.progress": (0, 100),
    "crawl_jobs.priority": (0, 10),
    "crawl_jobs.source_position": (0, None),
    "crawl_jobs.source_attempts": (0, None),
    "crawl_jobs.max_images": (1, None),
    "crawl_jobs.unit_price": (1, None),
    "crawl_jobs.active_chunks": (0, None),
    "job_chunks.retry_count": (0, None),
    "credit_accounts.refill_threshold": (1, None),
    "credit_accounts.refill_amount": (1, None),
    "credit_accounts.monthly_limit": (1, None),
    "credit_accounts.refill_declines": (0, None),
    "usage_metrics.storage_used_bytes": (0, None),
    "usage_metrics.bandwidth_used_bytes": (0, None),
    "pages.depth": (0, None),
    "pages.hops": (0, None),
    "pages.losses": (0, None),
    "pages.attempts": (0, None),
    "pages.refusals": (0, None),
    "workers.slots": (0, None),
    "workers.aside": (0, None),
    "workers.busy": (0, None),
    "leadership.id": (1, 1),
}
# Rules that tie columns together or hold a form, each with a row that breaks it and no other rule.
OTHER_CHECKS: dict[str, dict[str, Any]] = {
    "ck_crawl_jobs_chunks": {"total_chunks": 1, "completed_chunks": 1, "failed_chunks": 1},
    "ck_crawl_jobs_images": {"total_images": 1, "valid_images": 1, "failed_images": 1},
    "ck_crawl_jobs_ended": {"status": "'completed'"},
    "ck_crawl_jobs_source_leased": {"source_worker": "'w'"},
    "ck_crawl_jobs_source_waits": {"source_wait": "'asked to'"},
    "ck_crawl_jobs_ignored_opt_outs": {"ignored_opt_outs": """'["everything"]'"""},
    "ck_job_chunks_outcomes": {"size": 1, "accepted": 1, "failed": 1},
    "ck_job_chunks_ended_whole": {"size": 1, "status": "'failed'"},
    "ck_job_chunks_leased": {"status": "'processing'"},
    "ck_job_chunks_lease_holder": {"worker": "'w'"},
    "ck_job_chunks_queued": {"queued_at": "now()", "status": "'completed'"},
    "ck_seen_keys_key": {"key": r"'\x00'"},
    "ck_pages_key": {"key": r"'\x00'"},
    "ck_pages_failed": {"state": "'failed'", "reason": "NULL"},
    "ck_pages_rest": {"state": "'read'", "rest": "''"},
    "ck_images_sha256": {"sha256": r"'\x00'"},
    "ck_failures_range": {"position_end": 1},
    "ck_failures_evidence": {"evidence": "'{}'"},
    "ck_credit_accounts_usage_period": {"usage_period": "'2026-1'"},
    "ck_credit_transactions_usage_amount": {"type": "'usage'", "amount": 1},
    "ck_credit_transactions_held": {"amount": -2, "held": 1},
    "ck_credit_transactions_refill": {"refill": "true", "type": "'bonus'", "amount": 1},
    "ck_credit_transactions_settled": {"status": "'pending'", "settled_at": "now()"},
    "ck_notifications_read": {"is_read": "true"},
}
UNIQUE = (
    "api_keys.key_hash",
    "job_chunks.(job_id, chunk_index)",
    "images.(crawl_job_id, position)",
    "images.(crawl_job_id, sha256)",
)
# Beyond the seed's: every foreign key's, and those of the public schema that the seed belongs to.
INDEXES = (
    "job_chunks.(job_id, status)",
    "job_chunks.(priority, created_at)",
    "job_chunks.task_id",
    "credit_transactions.account_id",
    "credit_transactions.user_id",
    "credit_transactions.(user_id, created_at)",
    "notifications.(user_id, is_read)",
    "notifications.(user_id, created_at)",
)
FOREIGN_KEYS_BEYOND_THE_SEED = {
    ("Profile", "CreditTransaction"),
    ("CrawlJob", "Failure"),
    ("CrawlJob", "SeenKey"),
    ("CrawlJob", "Page"),
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
    Failure: "",
    Leadership: "",
    SeenKey: "",
    Page: "",
    Worker: "",
}


@pytest.fixture(scope="module")
def database(services: Any, administration: Engine, template: str) -> Iterator[Engine]:
    """One database for this file."""
    with database_of_rows(services.database_url, administration, template) as engine:
        yield engine


@pytest.fixture
def rows(database: Engine) -> Iterator[Rows]:
    """Tries rows in plain SQL; nothing of it stays."""
    with database.connect() as connection:
        yield rows_on(connection)


DESCRIBE = text("""
SELECT c.relname, a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || CASE a.attidentity
        WHEN 'd' THEN ' identity' ELSE '' END || CASE WHEN a.attnotnull THEN '' ELSE '?' END
    || coalesce(' = ' || pg_get_expr(d.adbin, d.adrelid), '')
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
    AND c.relname <> 'alembic_version' AND a.attnum > 0 AND NOT a.attisdropped
""")
SHORT = {
    r"character varying": "varchar",
    r"timestamp with time zone": "timestamptz",
    r"time without time zone": "time",
    r"integer = nextval\(.*\)": "serial",
    r"integer": "int",
    r"boolean": "bool",
    r"'::(varchar|jsonb)$": "'",
}


def described(connection: Connection) -> dict[str, set[str]]:
    """{table: its columns, in the notation of COLUMNS}."""
    tables: dict[str, set[str]] = {}
    for table, column in connection.execute(DESCRIBE):
        short = column
        for long, word in SHORT.items():
            short = re.sub(long, word, short)
        tables.setdefault(table, set()).add(short)
    return tables


def test_every_column(rows: Rows) -> None:
    """Each table has exactly these columns, of these types and lengths, with these defaults."""
    expected = {
        table: {
            column for column in re.split(r" · | \+ ", f" {' '.join(lines.split())} ".strip("+ ")) if column
        }
        for table, lines in COLUMNS.items()
    }
    assert described(rows.connection) == expected
    assert set(expected) == set(Base.metadata.tables)


def test_every_table_takes_a_row(rows: Rows) -> None:
    """The columns of a row of ROWS are all that a writer must give; a profile may bring its id."""
    assert set(ROWS) == set(COLUMNS)
    for table in ROWS:
        assert rows.refused_by(table) is None
    assert rows.refused_by("profiles", id="gen_random_uuid()") is None


@pytest.mark.parametrize("place", WORDS)
def test_every_word_is_accepted_and_every_other_refused(rows: Rows, place: str) -> None:
    """A column of words takes these words in their letters, and nothing else."""
    table, [column] = seed.place(place)
    words = WORDS[place].split()
    for word in words:
        assert rows.refused_by(table, **{column: f"'{word}'"}) is None
    for word in ("", "other", words[0].swapcase()):
        assert rows.refused_by(table, **{column: f"'{word}'"}) == f"ck_{table}_{column}"


@pytest.mark.parametrize("place", RANGES)
def test_ranges_hold_at_their_ends(rows: Rows, place: str) -> None:
    """A number is accepted at each end of its range and refused one beyond."""
    table, [column] = seed.place(place)
    lowest, highest = RANGES[place]
    ends = {lowest - 1: False, lowest: True} | (
        {} if highest is None else {highest: True, highest + 1: False}
    )
    for value, accepted in ends.items():
        assert rows.refused_by(table, **{column: value}) == (None if accepted else f"ck_{table}_{column}")


@pytest.mark.parametrize("rule", OTHER_CHECKS)
def test_every_other_check_refuses_its_row(rows: Rows, rule: str) -> None:
    """The rule refuses a row that breaks it."""
    table = next(table for table in ROWS if rule.startswith(f"ck_{table}_"))
    assert rows.refused_by(table, **OTHER_CHECKS[rule]) == rule


@pytest.mark.parametrize("line", [*UNIQUE, "failures.(job_id, position)"])
def test_unique_keys_refuse_a_second_row(rows: Rows, line: str) -> None:
    """There is one row for each key; with one column of it different it is another row."""
    table, names = seed.place(line)
    key = rows.again(table, names)
    if table == "failures":
        key["position_end"] = key["position"]
    expected = "pk_failures" if table == "failures" else f"uq_{table}_{'_'.join(names)}"
    assert rows.refused_by(table, **key) == expected
    for name in names:
        assert rows.refused_by(table, **{other: key[other] for other in names if other != name}) is None


NAMES = text("""
SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype = CAST(:kind AS "char")
    AND conrelid <> 'alembic_version'::regclass AND conparentid = 0
""")


def test_no_rule_is_untested(rows: Rows) -> None:
    """Every CHECK and unique key that the database has is tried above or in test_seed_reference.py."""
    placed = [*WORDS, *RANGES, *seed.status_words(), *seed.ranges()]
    checks = {f"ck_{place.replace('.', '_')}" for place in placed} | set(OTHER_CHECKS)
    assert set(rows.connection.execute(NAMES, {"kind": "c"}).scalars()) == checks
    keys = [seed.place(line) for line in (*UNIQUE, *seed.bullets("Unique Constraints"))]
    unique = {f"uq_{table}_{'_'.join(columns)}" for table, columns in keys}
    assert set(rows.connection.execute(NAMES, {"kind": "u"}).scalars()) == unique


def test_foreign_keys_cascade_and_have_an_index(rows: Rows) -> None:
    """Each cascades, and its column is the first of an index over all rows: no delete scans a table."""
    found = inspect(rows.connection)
    keys = {(table, key["referred_table"]): key for table in COLUMNS for key in found.get_foreign_keys(table)}
    named = {(parent, child) for parent, child, _number in seed.foreign_keys()} | FOREIGN_KEYS_BEYOND_THE_SEED
    tables = {mapper.class_.__name__: mapper.class_.__tablename__ for mapper in Base.registry.mappers}
    assert set(keys) == {(tables[child], tables[parent]) for parent, child in named}
    for (table, _parent), key in keys.items():
        assert key["options"] == {"ondelete": "CASCADE"}, key["name"]
        whole = [i for i in found.get_indexes(table) if "postgresql_where" not in i["dialect_options"]]
        first = {index["column_names"][0] for index in whole}
        first.add(found.get_pk_constraint(table)["constrained_columns"][0])
        assert key["constrained_columns"][0] in first, key["name"]


@pytest.mark.parametrize("line", INDEXES)
def test_indexes_beyond_the_seed(rows: Rows, line: str) -> None:
    """The index is there, over all rows and on exactly these columns."""
    assert index_on(rows.connection, *seed.place(line))


def test_relationships_have_their_names_and_are_two_way() -> None:
    """Every relationship has its name, and another one that leads back."""
    assert {mapper.class_ for mapper in Base.registry.mappers} == set(RELATIONSHIPS)
    for mapper in Base.registry.mappers:
        assert set(mapper.relationships.keys()) == set(RELATIONSHIPS[mapper.class_].split())
        for relationship in mapper.relationships:
            back = relationship.mapper.relationships[relationship.back_populates]
            assert back.mapper is mapper


@pytest.mark.parametrize("model", [ActivityLog, CreditTransaction, Image, Notification])
def test_a_column_metadata_has_another_attribute(model: type[Base]) -> None:
    """SQLAlchemy keeps ``metadata`` for itself, so the column of that name is the attribute ``details``."""
    assert inspect(model).columns["details"].name == "metadata"
    assert model.metadata is Base.metadata
