"""What a CREATE INDEX CONCURRENTLY leaves behind that was interrupted: an index that nobody reads."""

import psycopg2
import pytest
from sqlalchemy import Connection, make_url, text


def leave_invalid_index(url: str, connection: Connection, name: str, table: str, column: str) -> None:
    """Interrupt an index build, which waits for an older transaction."""
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    older = psycopg2.connect(plain)
    try:
        older.cursor().execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
        connection.execute(text("SET statement_timeout = '100ms'"))
        with pytest.raises(Exception, match="statement timeout"):
            connection.execute(text(f"CREATE INDEX CONCURRENTLY {name} ON {table} ({column})"))
        connection.execute(text("SET statement_timeout = 0"))
    finally:
        older.close()
    invalid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
    assert connection.execute(invalid, {"name": name}).scalar() is False
