"""Databases for tests, each as the migrations left it. A used one is emptied rather than another one made.

Copying a template and dropping the copy costs the server 200 ms of processor time; this, 20 ms.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from sqlalchemy import Connection, Engine, Row, create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

PAGES_MAX = 4
CATALOGS = """
    pg_attrdef pg_attribute pg_class pg_constraint pg_default_acl pg_depend pg_description pg_event_trigger
    pg_extension pg_index pg_inherits pg_largeobject_metadata pg_namespace pg_partitioned_table pg_policy pg_proc
    pg_rewrite pg_sequence pg_statistic pg_statistic_ext pg_trigger pg_type alembic_version
"""
OWN = "(SELECT oid FROM pg_database WHERE datname = current_database())"
# Whoever inserts or changes a row of a catalog leaves a younger one, who deletes one leaves fewer; only VACUUM and
# ANALYZE write in place, what they know of tables.
SHAPE = " UNION ALL ".join(
    [f"SELECT count(*), max(xmin::text::bigint) FROM {name}" for name in CATALOGS.split()]
    + [
        "SELECT count(*), sum(hashtext(concat_ws(' ', oid, relpages, reltuples))) FROM pg_class WHERE oid >= 16384",
        f"SELECT sum(datconnlimit), sum(datallowconn::int) FROM pg_database WHERE oid = {OWN}",
        f"SELECT count(*), 0 FROM pg_db_role_setting WHERE setdatabase = {OWN}",
    ]
)
TABLES = (
    "SELECT oid::regclass::text, pg_relation_size(oid) / 8192 FROM pg_class "
    "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace AND relname <> 'alembic_version'"
)
LEAVE = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s"
RESET = "SELECT setval(seqrelid::regclass, seqstart, false) FROM pg_sequence; SELECT pg_stat_reset()"
SPARE = "spare"
numbers = count(1)


def of_database(url: str, name: str) -> str:
    """The same server's URL for another database."""
    return make_url(url).set(database=name).render_as_string(hide_password=False)


class Databases:
    """The databases at this program's revision that one server lends to one test after another."""

    def __init__(self, url: str, administration: Engine, template: str) -> None:
        self.url = url
        self.administration = administration
        self.template = template
        self.spare = False
        self.shape: list[Row[tuple[int, int]]] | None = None

    @contextmanager
    def lend(self) -> Iterator[str]:
        """URL of a database under a name that no earlier test's process knows."""
        name = f"test_{next(numbers)}"
        if self.spare:
            self.spare = False
            self._execute(f"ALTER DATABASE {SPARE} RENAME TO {name}")
        else:
            self._execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        yield of_database(self.url, name)
        if self.spare or not self._take_back(name):
            self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _take_back(self, name: str) -> bool:
        """Whether it could be made the spare one: nobody is in it any more, and it is as it was."""
        try:
            with self.administration.connect() as connection:
                connection.exec_driver_sql(LEAVE, (name,))
                connection.exec_driver_sql(f"ALTER DATABASE {name} RENAME TO {SPARE}")
        except DBAPIError:
            # Somebody comes back again and again, or the test has dropped it.
            return False
        engine = create_engine(of_database(self.url, SPARE), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            self.spare = self._as_it_was(connection)
        if not self.spare:
            self._execute(f"DROP DATABASE {SPARE} WITH (FORCE)")
        return True

    def _as_it_was(self, connection: Connection) -> bool:
        """Empty the tables; False when its schema, its statistics or the size of a table are another's."""
        if self._shape() != connection.exec_driver_sql(SHAPE).all():
            # Perhaps it is the template that has changed: the server analyzes it, too.
            self.shape = None
            return False
        sizes = dict(iter(connection.exec_driver_sql(TABLES)))
        if max(sizes.values()) > PAGES_MAX:
            # Rows that were deleted would show in plans and in what is read.
            return False
        written = [f"DELETE FROM {name}" for name, pages in sizes.items() if pages]
        # As a replica's session, no trigger refuses and no key cascades.
        connection.exec_driver_sql(";".join(["SET session_replication_role = replica", *written, RESET]))
        return True

    def _shape(self) -> list[Row[tuple[int, int]]]:
        """The template's, looked at through a copy of it: whoever connects to a template stands in its way."""
        if self.shape is None:
            self._execute(f"CREATE DATABASE shape TEMPLATE {self.template}")
            engine = create_engine(of_database(self.url, "shape"), poolclass=NullPool)
            with engine.connect() as connection:
                self.shape = list(connection.exec_driver_sql(SHAPE).all())
            self._execute("DROP DATABASE shape WITH (FORCE)")
        return self.shape

    def _execute(self, statement: str) -> None:
        with self.administration.connect() as connection:
            connection.exec_driver_sql(statement)
