"""CSV and TSV: records of cells. A record that cannot be read costs itself and no other.

A quotation mark that is never closed would take everything behind it for one cell. So no record is longer than
RECORD_CHARACTERS_MAX, and where one does not end well, its first line is read by itself and reading goes on behind
that line.
"""

import csv
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from models.candidates import Row
from worker.tables.batches import batches
from worker.tables.columns import Columns, distinct, headless
from worker.tables.errors import UnfitTableError
from worker.tables.formats import Format, TableOptions
from worker.tables.text import Lines, oddity, read_lines, shown

DELIMITERS = ",;\t"
RECORD_CHARACTERS_MAX = 1024 * 1024


def read_separated(blocks: Iterable[bytes], kind: Format, options: TableOptions) -> Iterator[list[Row]]:
    """Rows in batches. Raises UnfitTableError."""
    feed = _Feed(read_lines(blocks))
    delimiter = "\t" if kind is Format.TSV else _delimiter(feed.peek())
    records = _records(feed, delimiter)
    header, problem = next(records, ([], None))
    if problem is not None:
        raise UnfitTableError(f"has no header: {problem}")
    unnamed = headless(header)
    names = unnamed or distinct(header)
    if not names:
        return
    columns = Columns(names, options, "line {line}, row {row}")
    if unnamed:
        records = itertools.chain([(header, None)], records)
    yield from batches(_rows(records, names, columns, feed))


def _rows(
    records: Iterator[tuple[list[str], str | None]], names: list[str], columns: Columns, feed: "_Feed"
) -> Iterator[Row]:
    size = len(names)
    for number, (cells, problem) in enumerate(records, 1):
        if problem is None and len(cells) == size:
            record: dict[str, Any] = dict(zip(names, cells, strict=True))
            yield columns.row(feed.first, number, record)
        else:
            what = problem or f"it has {len(cells)} cells, and the header has {size}"
            yield columns.broken(feed.first, number, what, shown(feed.taken[0].strip()))


def _records(feed: "_Feed", delimiter: str) -> Iterator[tuple[list[str], str | None]]:
    """(cells, what is wrong with them), while ``feed`` knows the lines of the record; blank lines are none."""
    csv.field_size_limit(2 * RECORD_CHARACTERS_MAX)
    reader = csv.reader(feed, delimiter=delimiter, strict=True)
    while True:
        feed.begin()
        problem = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, _TooLongError):
            cells = feed.give_back(delimiter)
        if feed.odd:
            problem = oddity("".join(feed.taken))
        if cells:
            yield cells, problem


class _TooLongError(Exception):
    """A record has more lines than it may have."""


class _Feed:
    """Lines for csv's reader, which remembers those of the present record and can take some back.

    ``first`` is the number of the record's first line; ``odd`` that one of those read with it may be no text.
    """

    def __init__(self, blocks: Iterator[Lines]) -> None:
        self.taken: list[str] = []
        self.first = 1
        self.odd = False
        self._blocks = blocks
        self._lines: Iterator[str] = iter(())
        self._characters = 0

    def peek(self) -> str:
        """The first line."""
        first = next(self, "")
        self._lines = itertools.chain([first] if first else [], self._lines)
        self.taken = []
        return first

    def begin(self) -> None:
        """The next line begins a record."""
        self.first += len(self.taken)
        self.taken = []
        self._characters = 0

    def give_back(self, delimiter: str) -> list[str]:
        """Take all lines of the record but its first one back, and read that by itself, as well as it can be."""
        self._lines = itertools.chain(self.taken[1:], self._lines)
        del self.taken[1:]
        try:
            return next(csv.reader([self.taken[0].rstrip("\r\n")], delimiter=delimiter), [])
        except csv.Error:
            return [self.taken[0]]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        while line is None:
            block = next(self._blocks)
            self.odd = block.odd or (self.odd and bool(self.taken))
            self._lines = iter(block.lines)
            line = next(self._lines, None)
        self.taken.append(line)
        self._characters += len(line)
        if self._characters > RECORD_CHARACTERS_MAX and len(self.taken) > 1:
            raise _TooLongError
        return line


def _delimiter(header: str) -> str:
    """What separates the columns of a ``.csv``: whichever its header has most of."""
    return max(DELIMITERS, key=header.count)
