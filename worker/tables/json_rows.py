"""JSON Lines, and JSON with one array: of objects, or of URLs. Neither is ever in memory whole.

A line that cannot be read costs itself; an array has no lines, so it ends where it cannot be read.
"""

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from models.candidates import Row
from worker.tables.batches import batches
from worker.tables.columns import Columns, broken
from worker.tables.errors import BrokenTableError, UnfitTableError
from worker.tables.formats import TableOptions
from worker.tables.text import oddity, read_lines, read_text, shown

ELEMENT_CHARACTERS_MAX = 1024 * 1024
DEPTH_MAX = 30
"""Of what a row holds: PostgreSQL would take more, and reading it again and again is recursive."""
SPACE = " \t\r\n"
_SPACE = re.compile(f"[{SPACE}]*")
_decode = json.JSONDecoder().raw_decode


class RowMaker:
    """Rows of the elements of one table; the first object says which columns there are."""

    def __init__(self, options: TableOptions, place: str) -> None:
        self.options = options
        self.place = place
        self.columns: Columns | None = None

    def row(self, number: int, element: Any, *, brackets: int) -> Row:
        """The row of one element, in whose text there were so many ``brackets`` that open.

        Raises UnfitTableError when it is not clear which column has the URLs.
        """
        if isinstance(element, str):
            return Columns(["url"], TableOptions(), self.place).row(number, number, {"url": element})
        if not isinstance(element, dict):
            return self.broken(number, "it is neither an object nor a URL", shown(json.dumps(element)))
        if self.columns is None:
            self.columns = Columns(list(element), self.options, self.place)
        if brackets > DEPTH_MAX and _too_deep(element):
            return self.broken(number, f"it is nested more than {DEPTH_MAX} deep")
        return self.columns.row(number, number, element)

    def broken(self, number: int, problem: str, text: str = "") -> Row:
        """The row of an element that cannot be read."""
        return broken(number, self.place.format(line=number, row=number), problem, text)


def read_json_lines(blocks: Iterable[bytes], options: TableOptions) -> Iterator[list[Row]]:
    """Rows in batches, one for each line that is not blank. Raises UnfitTableError."""
    maker = RowMaker(options, "line {line}")
    number = 0
    for lines, odd in read_lines(blocks):
        batch = []
        for line in lines:
            number += 1
            text = line.strip(SPACE)
            if not text:
                continue
            problem = oddity(text) if odd else None
            element = None
            if problem is None:
                try:
                    element, end = _decode(text)
                    problem = None if end == len(text) else "something follows its JSON"
                except (ValueError, RecursionError) as error:
                    problem = f"it is not JSON ({_why(error)})"
            if problem is None:
                batch.append(maker.row(number, element, brackets=text.count("{") + text.count("[")))
            else:
                batch.append(maker.broken(number, problem, shown(text)))
        yield batch


def read_json(blocks: Iterable[bytes], options: TableOptions) -> Iterator[list[Row]]:
    """Rows in batches, of an array or of an object that holds one. What looks like JSON Lines is read as such.

    Raises UnfitTableError, BrokenTableError.
    """
    text = _Text(read_text(blocks))
    first = text.peek()
    if first == "[":
        rows = _array(text, RowMaker(options, "row {row}"))
    elif first == "{" and text.has_lines():
        yield from read_json_lines(text.rest(), options)
        return
    elif first == "{":
        rows = _array_of_object(text, RowMaker(options, "row {row}"))
    else:
        raise UnfitTableError("is not JSON: it begins with neither [ nor {")
    yield from batches(rows)


def _array(text: "_Text", maker: RowMaker) -> Iterator[Row]:
    """The rows of the array that begins here."""
    text.at += 1
    if text.peek() == "]":
        text.at += 1
        return
    for number in itertools.count(1):
        element = text.value(f"row {number}")
        problem = oddity(json.dumps(element, ensure_ascii=False)) if text.odd else None
        yield maker.broken(number, problem) if problem else maker.row(number, element, brackets=text.brackets)
        mark = text.peek()
        text.at += 1
        if mark == "]":
            return
        if mark != ",":
            what = f"{mark!r} stands where a comma should" if mark else "it is cut off"
            raise BrokenTableError(f"its array breaks off after row {number}: {what}")


def _array_of_object(text: "_Text", maker: RowMaker) -> Iterator[Row]:
    """The rows of the only array in the object that begins here; whatever else the object says is left."""
    arrays: list[str] = []
    mark = "{"
    while mark in {"{", ","}:
        text.at += 1
        if text.peek() == "}":
            break
        name = str(text.value("a name"))
        if text.peek() != ":":
            raise BrokenTableError(f"it breaks off after {name[:60]!r}")
        text.at += 1
        if text.peek() != "[":
            text.value(f"{name[:60]!r} (rows are to be in an array: orient='records' in pandas)")
        else:
            arrays.append(name)
            if len(arrays) > 1:
                raise UnfitTableError(
                    f"holds several arrays ({', '.join(arrays)}): save the one with the rows"
                )
            yield from _array(text, maker)
        mark = text.peek()
    if not arrays:
        raise UnfitTableError("holds no array of rows (in pandas: orient='records')")
    if mark not in {",", "}"}:
        raise BrokenTableError("its object is cut off")


class _Text:
    """JSON that arrives in pieces. ``at`` is where the next character stands, ``odd`` that some may be no text;
    ``brackets`` counts those that open in the last value.
    """

    def __init__(self, pieces: Iterator[tuple[str, bool]]) -> None:
        self.at = 0
        self.odd = False
        self.brackets = 0
        self._pieces = pieces
        self._text = ""

    def peek(self) -> str:
        """The next character that is no space; none at the end."""
        while True:
            self.at = _SPACE.match(self._text, self.at).end()  # type: ignore[union-attr]
            if self.at < len(self._text):
                return self._text[self.at]
            if not self._more():
                return ""

    def value(self, what: str) -> Any:
        """The value that begins here. Raises BrokenTableError when it does not end, or not soon enough."""
        self.peek()
        while True:
            try:
                value, end = _decode(self._text, self.at)
            except RecursionError:
                raise BrokenTableError(f"it breaks off at {what}: it is nested too deep") from None
            except ValueError as error:
                if len(self._text) - self.at > ELEMENT_CHARACTERS_MAX:
                    limit = f"{ELEMENT_CHARACTERS_MAX:,} characters"
                    raise BrokenTableError(f"it breaks off at {what}: no JSON in {limit}") from None
                if not self._more():
                    raise BrokenTableError(f"it breaks off at {what}: {_why(error)}") from None
            else:
                if end < len(self._text) or not self._more():  # Else a number may go on.
                    self.brackets = self._text.count("{", self.at, end) + self._text.count("[", self.at, end)
                    self.at = end
                    return value

    def has_lines(self) -> bool:
        """Whether the first line is an object by itself, and another follows."""
        while "\n" not in self._text and len(self._text) <= ELEMENT_CHARACTERS_MAX and self._more():
            pass
        line, _, rest = self._text[self.at :].partition("\n")
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return False
        return rest.lstrip(SPACE)[:1] == "{" or (not rest.strip() and self._more() and self.has_lines())

    def rest(self) -> Iterator[bytes]:
        """Everything from here on, as it came."""
        yield self._text[self.at :].encode("utf-8", "surrogateescape")
        for text, _ in self._pieces:
            yield text.encode("utf-8", "surrogateescape")

    def _more(self) -> bool:
        text, odd = next(self._pieces, ("", False))
        if text:
            self.odd = self.odd or odd
            self._text = self._text[self.at :] + text
            self.at = 0
        return bool(text)


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def _too_deep(element: dict[str, Any]) -> bool:
    """Whether there is anything more than DEPTH_MAX deep; looked at level by level, without recursion."""
    level: list[Any] = [element]
    for _ in range(DEPTH_MAX):
        parts = (part for value in level for part in (value.values() if isinstance(value, dict) else value))
        level = [part for part in parts if _nested(part)]
        if not level:
            return False
    return True


def _why(error: Exception) -> str:
    return "nested too deep" if isinstance(error, RecursionError) else str(error)
