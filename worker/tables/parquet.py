"""Parquet, by pyarrow: a thousand rows of one row group at a time. docs/sources.md says what has no bound here.

pyarrow takes long to import and 50 MB, so whoever reads no Parquet never does.
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
from worker.tables.batches import BATCH_ROWS
from worker.tables.columns import Columns, distinct
from worker.tables.errors import BrokenTableError, UnfitTableError
from worker.tables.formats import TableOptions
from worker.tables.text import oddity

BUFFER_BYTES = 1024 * 1024
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
    done = 0
    for group in range(table.num_row_groups):
        try:
            batches = table.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False)
            for batch in batches:
                lists = [_values(batch.column(place)) for place in places]
                done += batch.num_rows
                yield [_row(columns, next(numbers), names, values) for values in zip(*lists, strict=True)]
        except failures as error:
            where = f"its row group {group + 1} of {table.num_row_groups} is damaged behind row {done:,}"
            raise BrokenTableError(f"{where} ({_why(error)})") from None


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
