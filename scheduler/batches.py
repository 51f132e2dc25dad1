"""A long deletion as one short transaction after another, and the count of what they deleted. Decides nothing."""

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models import closing
from models.database import connection_lost, transaction, transient
from models.folders import Going
from scheduler.discard import Discarded

BATCH = 2000
ATTEMPTS_MAX = 6
TABLES = (
    "job_chunks",
    "images",
    "failures",
    "seen_keys",
    "pages",
    "crawl_jobs",
    "projects",
    *closing.RECORDS,
    "credit_transactions",
    *closing.LAST,
    "profiles",
)

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class StoppedError(Exception):
    """``stop`` was set. Everything is as the last batch left it."""


@dataclass(slots=True)
class Deleted:
    """What was deleted so far: rows by table, objects and their bytes, messages."""

    complete: bool = False
    rows: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TABLES, 0))
    objects: int = 0
    bytes: int = 0
    messages: int = 0
    missing_folders: list[str] = field(default_factory=list)
    """Folders that images were stored in and that are not on this machine."""

    def report(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return asdict(self)


class Batches:
    """Transactions that delete ``size`` rows at most of what is ``going``, until ``stop`` is set.

    ``show`` gets the figures after each.
    """

    def __init__(
        self,
        engine: Engine,
        going: Going,
        *,
        stop: threading.Event,
        show: Callable[[Deleted], None] = lambda _: None,
        size: int = BATCH,
    ) -> None:
        self.engine = engine
        self.going = going
        self.stop = stop
        self.show = show
        self.size = size
        self.deleted = Deleted()

    def commit(
        self,
        step: Callable[Concatenate[Session, Parameters], Result],
        *arguments: Parameters.args,
        **named: Parameters.kwargs,
    ) -> Result:
        """One transaction; again after a deadlock or a lock that took too long. Raises StoppedError."""
        attempt = 0
        while not self.stop.is_set():
            try:
                with transaction(self.engine) as session:
                    closing.prepare_deletes(session, self.going.user_id)
                    return step(session, *arguments, **named)
            except DBAPIError as error:
                attempt += 1
                if connection_lost(error) or not transient(error) or attempt == ATTEMPTS_MAX:
                    raise
            self.stop.wait(0.1 * 2**attempt)
        raise StoppedError

    def drain(
        self, table: str, step: Callable[..., int], *arguments: object, size_max: int | None = None
    ) -> None:
        """Call ``step(session, *arguments, limit)`` until it deletes no more rows of a table."""
        limit = min(self.size, size_max or self.size)
        while rows := self.commit(step, *arguments, limit):
            self.count(table, rows)

    def count(self, table: str, rows: int) -> None:
        """Rows of a table are gone."""
        self.deleted.rows[table] += rows
        self.show(self.deleted)

    def count_objects(self, discarded: Discarded) -> None:
        """Objects are gone. Raises StoppedError."""
        if discarded.objects:
            self.deleted.objects += discarded.objects
            self.deleted.bytes += discarded.bytes
            self.show(self.deleted)
        if self.stop.is_set():
            raise StoppedError
