"""Parquet, by pyarrow: a thousand rows of one row group at a time, or fewer when they are long.

Whoever wrote the file chose how large its pages are, and a few bytes of it may stand for gigabytes: so much memory
as is said here may be taken for them, and no more. pyarrow takes long to import and 50 MB, so whoever reads no
Parquet never does.
"""

import datetime
import decimal
import itertools
import math
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from models.candidates import Row
from worker.memory import bounded_memory, data_bytes
from worker.tables.batches import BATCH_ROWS
from worker.tables.columns import Columns, distinct
from worker.tables.errors import BrokenTableError, UnfitTableError
from worker.tables.formats import TableOptions
from worker.tables.text import oddity

BUFFER_BYTES = 1024 * 1024
BYTES_MAX = 2 * 1024 * 1024 * 1024
STEP_BYTES_MAX = 768 * 1024 * 1024
"""So much more for some rows: less than the gigabyte that Arrow's allocator takes at first where it is let."""
BATCH_BYTES = 32 * 1024 * 1024
"""So much of a row group, as its own figures have it, is read at once."""
BYTES_SHOWN_MAX = 64
"""Binary values that are no text are kept as hexadecimal up to so many bytes; longer ones are pictures, say."""
DEPTH_MAX = 30
NOT_TEXT = "its URL is not UTF-8"
PANDAS_INDEX = re.compile(r"__index_level_\d+__")


def read_parquet(file: BinaryIO, options: TableOptions) -> Iterator[list[Row]]:
    """Rows in batches. Raises UnfitTableError when it is no Parquet, BrokenTableError at a damaged row group."""
    import pyarrow as arrow
    from pyarrow.parquet import ParquetFile

    failures = (arrow.ArrowException, OSError, ValueError, OverflowError)
    try:
        table = ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        every = table.schema_arrow.names
    except failures as error:
        raise UnfitTableError(f"is no Parquet file that can be read ({_why(error)})") from None
    places = [place for place, name in enumerate(every) if not PANDAS_INDEX.fullmatch(name)]
    names = distinct(every[place] for place in places)
    columns = Columns(names, options, "row {row}")
    numbers = itertools.count(1)
    done, before = 0, data_bytes()
    for group in range(table.num_row_groups):
        where = f"its row group {group + 1} of {table.num_row_groups}"
        try:
            for lists in _batches(table, group, places, before):
                rows = [_row(columns, next(numbers), names, values) for values in zip(*lists, strict=True)]
                done += len(rows)
                yield rows
        except MemoryError:  # Arrow's own is one, too.
            size = (
                f"takes too much memory behind row {done:,} (more than {STEP_BYTES_MAX // 2**20} MiB at once)"
            )
            raise BrokenTableError(f"{where} {size}: write it with smaller pages") from None
        except failures as error:
            raise BrokenTableError(f"{where} is damaged behind row {done:,} ({_why(error)})") from None


def _batches(table: Any, group: int, places: Sequence[int], before: int) -> Iterator[list[list[Any]]]:
    """Values of the columns at ``places``, by column, for some rows of a row group at a time. Raises MemoryError
    when the process, which had ``before`` bytes when it began, would take too much.
    """
    known = table.metadata.row_group(group)
    rows = BATCH_BYTES * known.num_rows // max(1, known.total_byte_size)
    batches = table.iter_batches(max(1, min(BATCH_ROWS, rows)), row_groups=[group], use_threads=False)
    while True:
        left = BYTES_MAX - (data_bytes() - before)
        if left <= 0:
            raise MemoryError
        with bounded_memory(min(left, STEP_BYTES_MAX)):
            batch = next(batches, None)
            if batch is None:
                return
            lists = [_values(batch.column(place)) for place in places]
        yield lists


def _row(columns: Columns, number: int, names: Sequence[str], values: Sequence[Any]) -> Row:
    row = columns.row(number, number, dict(zip(names, values, strict=True)))
    return row if row[0].isascii() or oddity(row[0]) is None else columns.broken(number, number, NOT_TEXT)


def _values(column: Any) -> list[Any]:
    """The values of a column, as JSON can hold them; digests may stay bytes."""
    import pyarrow as arrow

    kinds = arrow.types
    if kinds.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if kinds.is_timestamp(kind) and kind.unit == "ns":  # Python's own times have no nanoseconds.
        column = column.cast(arrow.timestamp("us", kind.tz), safe=False)
    try:
        values: list[Any] = column.to_pylist()
    except (
        ValueError,
        OverflowError,
        LookupError,
    ) as error:  # No UTF-8, or no date or zone that Python knows.
        odd = "binary" if isinstance(error, UnicodeDecodeError) else "string"
        try:
            values = column.cast(odd).to_pylist()
        except arrow.ArrowException:  # It is inside a list, say: then such values are left out.
            values = [_known(value) for value in column]
        values = [
            value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
            for value in values
        ]
    if (
        kinds.is_integer(kind)
        or kinds.is_boolean(kind)
        or kinds.is_string(kind)
        or kinds.is_large_string(kind)
    ):
        return values
    return [plain(value) for value in values]


def _known(value: Any) -> Any:
    try:
        return value.as_py()
    except (ValueError, OverflowError, LookupError):
        return None


def plain(value: Any, depth: int = 0) -> Any:  # noqa: PLR0911 - one for each kind of value
    """A value as JSON can hold it: no NaN, no exact number that would be rounded, times as ISO 8601."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth == DEPTH_MAX:
        return str(value)[:200]
    if isinstance(value, dict):
        return {str(name): plain(part, depth + 1) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part, depth + 1) for part in value]
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bytes):
        return _text_of(value)
    return str(value) if isinstance(value, decimal.Decimal | uuid.UUID) else repr(value)[:200]


def _text_of(value: bytes) -> str | None:
    """Bytes that are text, as it is; others as hexadecimal, if they are few."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.hex() if len(value) <= BYTES_SHOWN_MAX else None


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
