"""Writes docs/DATABASE_SCHEMA.md from the models: `make docs`. Says nothing that the models do not say.

What a rule is for stands here, because PostgreSQL and SQLAlchemy keep no words beside an index or a trigger;
a test fails when one has none, or when the page is stale.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, Table, UniqueConstraint, create_mock_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import DefaultClause, ExecutableDDLElement

from models import Base
from models.database import REVISION

PAGE = Path(__file__).with_name("DATABASE_SCHEMA.md")
DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]

# Indexes and unique keys by name; one that only has the column of a foreign key needs no words.
PURPOSES = {
    "ix_activity_logs_resource_type_resource_id": "what was done to one thing",
    "ix_activity_logs_user_id_timestamp": "what one user did lately",
    "ix_crawl_jobs_input": "the job that a copy of an input belongs to: which of them may be swept",
    "ix_crawl_jobs_live": "jobs that have not ended: what the scheduler looks at",
    "ix_crawl_jobs_project_id_status": "a project's jobs with one status",
    "ix_crawl_jobs_reprioritized": "jobs whose chunks are to get another priority",
    "ix_crawl_jobs_status": "jobs with one status",
    "ix_crawl_jobs_unswept": "ended jobs whose folder has not been swept since",
    "ix_credit_accounts_auto_refill": "accounts with auto-refill: asked every other second whether they run low",
    "ix_credit_transactions_charged": "an account's charges by day: the nightly average",
    "ix_credit_transactions_chunk_id": "what a chunk was charged: read when it starts and when its hold is settled",
    "ix_credit_transactions_held_by_account": "open holds of an account: `pixtrawl credits`, grants",
    "ix_credit_transactions_held_by_job": "open holds of a job: `pixtrawl show`, a paused job's holds",
    "ix_credit_transactions_job_id": "held and charged credits of a job: `pixtrawl show`, `jobs`",
    "ix_credit_transactions_refills": "an account's refills of a day: how many more there may be",
    "ix_credit_transactions_top_up": "a user's last top-up: whether to tell again that a job is blocked",
    "ix_credit_transactions_user_id_created_at": "a user's newest transactions: `pixtrawl credits history`",
    "ix_job_chunks_job_id_status": "a job's chunks with one status: drained when it is cancelled",
    "ix_job_chunks_live": "chunks in flight: how many there are, whose lease has ended",
    "ix_job_chunks_parked": "parked chunks by when they are ready again",
    "ix_job_chunks_priority_created_at": "chunks by urgency and age; the scheduler claims by `ix_job_chunks_ready`",
    "ix_job_chunks_ready": "the claim: the next ready chunks of each job",
    "ix_job_chunks_status": "chunks with one status",
    "ix_job_chunks_task_id": "the chunk of a Celery task",
    "ix_notifications_billed_job": "whether a job's owner was told that it is blocked",
    "ix_notifications_user_id_created_at": "a user's newest notifications",
    "ix_notifications_user_id_is_read": "a user's unread notifications",
    "ix_pages_pattern": "how many pages of one kind a crawl has read, and whether they still bring anything",
    "ix_pages_pending": "the pages that are read next",
    "ix_profiles_user_tier": "users with one subscription",
    "uq_api_keys_key_hash": "the key that a request carries",
    "uq_credit_accounts_user_id": "one account for each user",
    "uq_credit_transactions_open_hold": "one open hold for each chunk",
    "uq_credit_transactions_open_refill": "one refill at a time for each account",
    "uq_credit_transactions_reference": "one credit for each reference, however often its writer tries again",
    "uq_images_crawl_job_id_position": "one image for each candidate",
    "uq_images_crawl_job_id_sha256": "one image for the same bytes in a job: the others are `duplicate`",
    "uq_job_chunks_job_id_chunk_index": "one chunk for each number, when a step of the source is repeated",
    "uq_notification_preferences_user_id": "one row for each user",
    "uq_profiles_email": "one user for each address",
    "uq_usage_metrics_user_id_metric_date": "one row for each user and day, whoever writes at once",
}
TRIGGERS = {
    "derive_usage_gb": "GB follow the exact bytes; the bytes follow a writer that changes only GB",
    "keep_ledger": "what has ended stays as it is, what is pending may only end; an account takes its rows along",
    "keep_ledger_whole": "the ledger is never truncated",
    "raise_ready_priority_inserted": "a new chunk that is ready raises its job's `ready_priority`",
    "raise_ready_priority_updated": "so does a chunk that becomes ready, or more urgent",
    "reopen_job": "an ended job is not reopened while it is being deleted, nor while somebody sweeps its folder",
    "settle_deleted_chunks": "what is held for deleted chunks is settled, whoever deletes them, or their job",
    "settle_deleted_chunks_whole": "so it is when the table is truncated",
    "touch_updated_at": "`updated_at` moves with every UPDATE, whoever writes, and never back",
}
OPTIONS = {
    "autovacuum_vacuum_scale_factor": "vacuumed after a smaller share of changes than other tables",
    "fillfactor": "room on each page for the next versions of its rows",
    "STORAGE EXTERNAL": "not compressed a second time, and beside the row when it is large",
}
CREATE_TRIGGER = re.compile(r"CREATE TRIGGER (\w+) (.+) ON (\w+)(?: REFERENCING .+)? FOR EACH (\w+)\s")
SET_STORAGE = re.compile(r"ALTER TABLE (\w+) ALTER COLUMN (\w+) SET STORAGE (\w+)")


def declared_statements() -> list[str]:
    """Every statement with which ``create_all`` makes the declared schema, triggers and comments included."""
    statements: list[str] = []

    def keep(element: ExecutableDDLElement, *_: object, **__: object) -> None:
        statements.append(str(element.compile(dialect=DIALECT)).strip())

    engine = create_mock_engine("postgresql+psycopg2://", keep)
    Base.metadata.create_all(engine, checkfirst=False)
    return statements


HEAD = """# Database schema

What `models/` declares at revision {revision}, written by `make docs`; a test fails when it is stale. An operator
sees the same comments in psql: `\\d+ crawl_jobs`. [QUICK_REFERENCE.md](QUICK_REFERENCE.md) tells how to read and
write it, [SCHEMA_DECISION.md](SCHEMA_DECISION.md) why it is so.

{diagram}

Every foreign key deletes the children with their parent. Columns that name another row without an arrow, such as
`images.chunk_id` and `credit_transactions.job_id`, have no foreign key: see [why](SCHEMA_DECISION.md). A table
without any is not drawn.

| table | what it holds |
| --- | --- |
{tables}"""


def render() -> str:
    """The whole page."""
    tables = sorted(Base.metadata.tables.values(), key=lambda table: table.name)
    statements = declared_statements()
    listed_tables = "\n".join(f"| [{table.name}](#{table.name}) | {table.comment} |" for table in tables)
    head = HEAD.format(revision=REVISION, diagram=diagram(), tables=listed_tables)
    return "\n\n".join([head, *(part for table in tables for part in describe(table, statements))]) + "\n"


def diagram() -> str:
    """Tables with their keys, and their foreign keys: one-to-one where the column is unique."""
    parents = {key.column.table for table in Base.metadata.tables.values() for key in table.foreign_keys}
    tables = [table for table in Base.metadata.sorted_tables if table in parents or table.foreign_keys]
    lines = ["```mermaid", "erDiagram"]
    lines += [f"    {relationship(key)}" for table in tables for key in keys_to_parents(table)]
    for table in tables:
        lines.append(f"    {table.name} {{")
        lines += [f"        {attribute}" for attribute in attributes(table)]
        lines.append("    }")
    return "\n".join([*lines, "```"])


def keys_to_parents(table: Table) -> list[ForeignKey]:
    """The foreign keys in the order of their columns' names."""
    return sorted(table.foreign_keys, key=lambda key: key.parent.name)


def relationship(key: ForeignKey) -> str:
    """``parent ||--o{ child : column``."""
    child, parent = key.parent.table, key.column.table
    unique = [key.parent.name] in [[column.name for column in it.columns] for it in unique_keys(child)]
    at_parent = "|o" if key.parent.nullable else "||"
    at_child = "o|" if unique else "o{"
    return f"{parent.name} {at_parent}--{at_child} {child.name} : {key.parent.name}"


def attributes(table: Table) -> Iterator[str]:
    """The columns of primary, foreign and unique keys, with their type and role."""
    for column in table.columns:
        roles = ["PK"] if column.primary_key else []
        roles += ["FK"] if column.foreign_keys else []
        roles += ["UK"] if any(column.name in key.columns for key in unique_keys(table)) else []
        if roles:
            yield f"{type_of(column).split('(')[0].replace(' ', '_')} {column.name} {', '.join(roles)}"


def describe(table: Table, statements: list[str]) -> Iterator[str]:
    """One section of the page."""
    yield f"## {table.name}"
    yield str(table.comment)
    rows = [
        f"| `{column.name}` | {type_of(column)} | {'yes' if column.nullable else ''} | {default_of(column)} | "
        f"{column.comment} |"
        for column in table.columns
    ]
    yield "\n".join(
        ["| column | type | null | default | meaning |", "| --- | --- | --- | --- | --- |", *rows]
    )
    keys = [f"primary key `({', '.join(column.name for column in table.primary_key)})`", *foreign_keys(table)]
    keys += [
        f"unique `({', '.join(key.columns.keys())})`: {PURPOSES[str(key.name)]}" for key in unique_keys(table)
    ]
    yield listed("Keys", keys)
    checks = sorted((it for it in table.constraints if isinstance(it, CheckConstraint)), key=name_of)
    yield from optional("CHECKs", [f"`{name_of(check)}`: `{check.sqltext}`" for check in checks])
    yield from optional("Indexes", [index_line(index) for index in sorted(table.indexes, key=name_of)])
    yield from optional("Triggers", list(triggers(table, statements)))
    yield from optional("Storage", list(storage(table, statements)))


def listed(title: str, items: list[str]) -> str:
    """A bold word and a list."""
    return f"**{title}**\n\n" + "\n".join(f"- {item}" for item in items)


def optional(title: str, items: list[str]) -> Iterator[str]:
    """The list, if there is anything on it."""
    if items:
        yield listed(title, items)


def foreign_keys(table: Table) -> Iterator[str]:
    """``user_id → profiles, ON DELETE CASCADE``."""
    for key in keys_to_parents(table):
        yield f"`{key.parent.name}` → [{key.column.table.name}](#{key.column.table.name}), ON DELETE {key.ondelete}"


def unique_keys(table: Table) -> list[UniqueConstraint]:
    """The unique constraints in the order of their names."""
    return sorted((it for it in table.constraints if isinstance(it, UniqueConstraint)), key=name_of)


def index_line(index: Index) -> str:
    """Name, columns, condition and purpose."""
    kind = "unique " if index.unique else ""
    where = index.dialect_options["postgresql"]["where"]
    condition = "" if where is None else f" where `{where}`"
    columns = ", ".join(str(part).rpartition(".")[2] for part in index.expressions)
    return f"{kind}`{index.name}` `({columns})`{condition}: {purpose_of(index)}"


def purpose_of(index: Index) -> str:
    """What it is for: in words of its own, or those of its foreign key."""
    if str(index.name) in PURPOSES:
        return PURPOSES[str(index.name)]
    [column] = index.columns
    [key] = column.foreign_keys
    return f"the rows of one parent in {key.column.table.name}, also for its cascade"


def triggers(table: Table, statements: list[str]) -> Iterator[str]:
    """Name, event and purpose of the triggers on a table."""
    for name, moment, on, each in sorted(CREATE_TRIGGER.findall("\n".join(statements))):
        if on == table.name:
            yield f"`{name}` {moment}, for each {each.lower()}: {TRIGGERS[name]}"


def storage(table: Table, statements: list[str]) -> Iterator[str]:
    """Options of the table and of its columns."""
    for name, value in sorted((table.dialect_options["postgresql"]["with"] or {}).items()):
        yield f"`{name} = {value}`: {OPTIONS[name]}"
    for on, column, kind in SET_STORAGE.findall("\n".join(statements)):
        if on == table.name:
            yield f"`{column}` `STORAGE {kind}`: {OPTIONS[f'STORAGE {kind}']}"


def type_of(column: Column[object]) -> str:
    """PostgreSQL's word for the type."""
    words = str(column.type.compile(dialect=DIALECT)).lower()
    return words.replace("timestamp with time zone", "timestamptz").replace("time without time zone", "time")


def default_of(column: Column[object]) -> str:
    """The server's default as SQL, or where the number comes from."""
    if column.identity is not None:
        return "identity"
    if column is column.table.autoincrement_column and column.server_default is None:
        return "sequence"
    if not isinstance(column.server_default, DefaultClause):
        return ""
    return f"`{column.server_default.arg}`"


def name_of(item: Index | CheckConstraint | UniqueConstraint) -> str:
    """The name in the database."""
    return str(item.name)


if __name__ == "__main__":
    PAGE.write_text(render())
