"""docs/SCHEMA_ALIGNMENT_SUMMARY.md: what equals the reference, and what is added to it."""

import re
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from models.database import migrate

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "SCHEMA_ALIGNMENT_SUMMARY.md").read_text()
REFERENCE = (ROOT / "tests" / "support" / "reference_schema.txt").read_text()
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|", re.MULTILINE)
COLUMNS = text("""
SELECT c.relname, a.attname, concat_ws(' ', format_type(a.atttypid, a.atttypmod),
    CASE WHEN NOT a.attnotnull THEN 'NULL' END, '= ' || pg_get_expr(d.adbin, d.adrelid),
    CASE WHEN a.attidentity <> '' THEN 'identity' END)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' AND c.relname <> 'alembic_version'
    AND a.attnum > 0 AND NOT a.attisdropped
""")
SHORT = (
    (r"character varying", "varchar"),
    (r"timestamp with time zone", "timestamptz"),
    (r"time without time zone", "time"),
    (r"integer = nextval\(.*\)", "serial"),
    (r"::[a-z ]+$", ""),
)

Columns = dict[str, dict[str, str]]


def reference() -> Columns:
    """{table: {column: type and default}} of the reference."""
    tables: Columns = {}
    table = ""
    for line in REFERENCE.splitlines():
        if re.match(r"\w", line):
            table = line
            tables[table] = {}
        elif line.startswith("  "):
            name, _, meaning = line.strip().partition(" ")
            tables[table][name] = meaning
    return tables


def columns_of(url: str) -> Columns:
    """The same of a database."""
    tables: Columns = {}
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        for table, name, meaning in connection.execute(COLUMNS):
            for long, short in SHORT:
                meaning = re.sub(long, short, meaning)  # noqa: PLW2901 - made shorter step by step
            tables.setdefault(table, {})[name] = meaning
    return tables


def listed(title: str) -> dict[str, list[str]]:
    """{table: columns} of the table in a section of the page; a table may have several rows."""
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    tables: dict[str, list[str]] = {}
    for table, names in ROW.findall(section):
        tables.setdefault(table, []).extend(re.findall(r"`(\w+)`", names))
    return tables


def test_revision_003_is_the_reference(empty_database_url: str) -> None:
    """After 003 a database has the tables and columns of the reference, with type and default, and no more."""
    migrate(empty_database_url, "003")
    assert columns_of(empty_database_url) == reference()


def test_what_the_page_calls_equal_is_equal(database_url: str) -> None:
    """At head the listed columns are those of the reference, unchanged in type, nullability and default."""
    assert listed("Equal") == {table: list(columns) for table, columns in reference().items()}
    head = columns_of(database_url)
    assert {
        table: {name: head[table][name] for name in columns} for table, columns in reference().items()
    } == (reference())


def test_what_the_page_calls_added_is_all_that_is_added(database_url: str) -> None:
    """The listed columns and tables are those that head has beyond the reference, and none is asked for."""
    head, known = columns_of(database_url), reference()
    added = {table: set(head[table]) - set(columns) for table, columns in known.items()}
    assert {table: set(names) for table, names in listed("Added, and why").items()} == {
        table: names for table, names in added.items() if names
    }
    new = set(re.findall(r"`(\w+)` \(", PAGE.partition("new: ")[2].partition("\n")[0]))
    assert set(head) - set(known) == new
    for table, names in added.items():
        for name in names:
            assert re.search(r" NULL| = ", f" {head[table][name]}"), (table, name)
