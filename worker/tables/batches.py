"""Rows a thousand at a time, and what is there of the last thousand when a table breaks off."""

from collections.abc import Iterable, Iterator

from models.candidates import Row
from worker.tables.errors import BrokenTableError

BATCH_ROWS = 1000


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """The rows in lists. What breaks off is raised behind the last of them."""
    batch: list[Row] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == BATCH_ROWS:
                yield batch
                batch = []
    except BrokenTableError:
        yield batch
        raise
    yield batch
