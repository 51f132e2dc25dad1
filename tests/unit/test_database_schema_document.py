"""docs/DATABASE_SCHEMA.md against the models that it is written from."""

import re

from docs.database_schema import (
    CREATE_TRIGGER,
    PAGE,
    PURPOSES,
    TRIGGERS,
    declared_statements,
    render,
    unique_keys,
)
from models import Base

TABLES = list(Base.metadata.tables.values())


def test_the_page_is_what_the_models_say() -> None:
    """The page in the checkout is the one that `make docs` writes now."""
    assert PAGE.read_text() == render(), "docs/DATABASE_SCHEMA.md is stale: run `make docs`"


def test_every_table_and_column_has_a_comment() -> None:
    """Each has one plain phrase of its own, which fits a line of psql and breaks no table of the page."""
    places = {table.name: table.comment for table in TABLES}
    places |= {str(column): column.comment for table in TABLES for column in table.columns}
    for place, comment in places.items():
        assert comment, f"{place} has no comment"
        assert re.fullmatch(r"[^|\n]{3,100}", comment), (place, comment)


def test_every_index_and_trigger_has_a_purpose() -> None:
    """What the page says of indexes, unique keys and triggers is about those that exist."""
    named = {str(index.name) for table in TABLES for index in table.indexes}
    named |= {str(key.name) for table in TABLES for key in unique_keys(table)}
    assert set(PURPOSES) <= named
    statements = "\n".join(declared_statements())
    triggers = [name for name, *_ in CREATE_TRIGGER.findall(statements)]
    assert len(triggers) == statements.count("CREATE TRIGGER")
    assert set(triggers) == set(TRIGGERS)


def test_the_diagram_has_every_foreign_key() -> None:
    """Each foreign key is an arrow, to one child where its column is unique."""
    arrows = set(re.findall(r"^    (\w+) (\S+) (\w+) : (\w+)$", PAGE.read_text(), re.MULTILINE))
    keys = {
        (key.column.table.name, key.parent.table.name, key.parent.name)
        for t in TABLES
        for key in t.foreign_keys
    }
    assert {(parent, child, column) for parent, _, child, column in arrows} == keys
    to_one = {child for _, arrow, child, _ in arrows if arrow.endswith("o|")}
    assert to_one == {"credit_accounts", "notification_preferences"}
