"""From an input to rows, whatever its format and compression."""

import contextlib
import itertools
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from models.candidates import Row
from worker.inputs import Input
from worker.sources.url_list import LineReader
from worker.tables.compression import decompressed, peeked
from worker.tables.errors import UnfitTableError
from worker.tables.foreign import BEGINNING_BYTES, check_beginning
from worker.tables.formats import Format, TableOptions, format_of
from worker.tables.json_rows import read_json, read_json_lines
from worker.tables.parquet import read_parquet
from worker.tables.separated import read_separated
from worker.tables.text import check_text

PARQUET = b"PAR1"
BYTES_MAX = 1 << 40
"""A terabyte, once decompressed: so much of a bomb is read, never more than a piece of it at a time."""
SPOOLED_BYTES_MAX = 1 << 36
"""64 GB of disk: Parquet is read from its end, so one that comes as a stream is kept in a file meanwhile."""


def read_rows(table: Input, options: TableOptions) -> Iterator[list[Row]]:
    """The rows of one input in batches. Raises UnfitTableError, BrokenTableError, InputError."""
    kind = options.format or format_of(table.name)
    with table.opened() as blocks:
        plain = _bounded(decompressed(blocks), BYTES_MAX)
        beginning, plain = peeked(plain, BEGINNING_BYTES)
        if not beginning:
            raise UnfitTableError("is empty")
        check_beginning(beginning)
        if kind is Format.PARQUET or beginning.startswith(PARQUET):
            with _file(table, plain) as file:
                yield from read_parquet(file, options)
        elif kind is Format.JSON:
            yield from read_json(plain, options)
        elif kind is Format.JSONL:
            yield from read_json_lines(plain, options)
        elif kind is Format.TXT:
            yield from _read_list(plain)
        else:
            yield from read_separated(plain, kind, options)


def _read_list(blocks: Iterable[bytes]) -> Iterator[list[Row]]:
    """The URLs of a list, one a line, exactly as worker/sources/url_list.py has them."""
    reader = LineReader()
    for first, block in zip(itertools.chain([True], itertools.repeat(False)), blocks, strict=False):
        check_text(block, first=first)
        yield [[line.text, line.number] for line in reader.feed(block)]
    yield [[line.text, line.number] for line in reader.finish()]


@contextlib.contextmanager
def _file(table: Input, blocks: Iterator[bytes]) -> Iterator[BinaryIO]:
    """A file with the bytes of ``blocks`` that can be read from its end: the input itself, or a copy."""
    if table.path is not None:
        head, blocks = peeked(blocks)
        with table.path.open("rb") as file:
            if file.read(len(PARQUET)) == head:  # Not compressed.
                yield file
                return
    with tempfile.TemporaryFile() as copy:
        try:
            for block in _bounded(blocks, SPOOLED_BYTES_MAX):
                copy.write(block)
        except OSError as error:
            where = f"{tempfile.gettempdir()}: {error.strerror or error}"
            raise UnfitTableError(f"cannot be kept while it is read (in {where})") from None
        yield copy


def _bounded(blocks: Iterable[bytes], bytes_max: int) -> Iterator[bytes]:
    size = 0
    for block in blocks:
        size += len(block)
        if size > bytes_max:
            raise UnfitTableError(f"is larger than {bytes_max:,} bytes")
        yield block
