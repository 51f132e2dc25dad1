"""The cursor over a stored list of URLs, one a line. Must read alike at submit and when the job is split.

Lines end with a line feed; white space around a URL is dropped. Blank lines and those that begin with ``#`` are no
candidates; anything else is one, however wrong. A list may be several files, one after another in one
object: lines are numbered from 1 in each, positions run through.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from models.outcomes import Candidate
from worker.store import DamagedObjectError, Store, StoreError

BLOCK_BYTES = 1024 * 1024
STEP_BYTES = 16 * 1024 * 1024
"""A step ends soon after so many bytes: long URLs fill no memory, and long comments take no long time."""
LINE_BYTES_MAX = 16 * 1024
CUT = " …"
"""Ends a line that was cut. The space makes it an ``invalid_url``, whatever stood before it."""
BYTES_PER_LINE = 128
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """A candidate of one file: its text, its line from 1, and the offset in bytes at which the next line begins."""

    text: str
    number: int
    end: int


class LineReader:
    """Finds the candidates of one file that arrives in blocks of any size.

    ``offset`` and ``number`` are the bytes and lines that are behind it. Keeps little of an unfinished line.
    """

    def __init__(self, offset: int = 0, number: int = 0) -> None:
        self.offset = offset
        self.number = number
        self._begun = b""
        self._begun_bytes = 0

    def feed(self, block: bytes) -> Iterator[Line]:
        """Yield the candidates whose lines end in ``block``."""
        start = 0
        while (newline := block.find(b"\n", start)) >= 0:
            self.offset += newline + 1 - start
            raw = block[start:newline]
            start = newline + 1
            text = self._end_line(raw)
            if text:
                yield Line(text, self.number, self.offset)
        self._begun += block[start : start + LINE_BYTES_MAX + 1 - len(self._begun)]
        self._begun_bytes += len(block) - start

    def finish(self) -> Iterator[Line]:
        """Yield the candidate in a last line without an end, if there is one."""
        text = self._end_line(b"") if self._begun_bytes else ""
        if text:
            yield Line(text, self.number, self.offset)

    def _end_line(self, raw: bytes) -> str:
        """Take the line that ``raw`` completes: its candidate, or nothing."""
        self.number += 1
        if self._begun_bytes:
            self.offset += self._begun_bytes
            raw = self._begun + raw
            self._begun, self._begun_bytes = b"", 0
        kept = raw[:LINE_BYTES_MAX]
        if self.number == 1:
            kept = kept.removeprefix(BYTE_ORDER_MARK)
        text = kept.decode("utf-8", "replace").strip()
        if len(raw) > LINE_BYTES_MAX:
            text = f"{text}{CUT}".lstrip()
        return "" if text.startswith("#") else text


@dataclass(frozen=True, slots=True)
class Place:
    """How far a list has been read: byte and line within the file of this number, position in the job."""

    file: int = 0
    byte: int = 0
    line: int = 0
    position: int = 0


def read_step(
    store: Store,
    source: Mapping[str, Any],
    cursor: Mapping[str, Any],
    limit: int,
    block_bytes: int | None = None,
) -> tuple[list[Candidate], dict[str, int], bool]:
    """Read up to ``limit`` candidates from ``cursor`` on; {} is the beginning.

    ``source`` is {object, files: [{name, bytes, candidates}]}. Returns the candidates, the next cursor, and
    whether the list is at its end (if not, blank lines may be all that is left). Raises StoreError, once there is
    nothing before the place that cannot be read, and DamagedObjectError when the object became shorter.
    """
    block_bytes = block_bytes or min(BLOCK_BYTES, limit * BYTES_PER_LINE + LINE_BYTES_MAX)
    files: list[Mapping[str, Any]] = source["files"]
    place = Place(**cursor)
    base = sum(file["bytes"] for file in files[: place.file])
    step_end = base + place.byte + STEP_BYTES
    candidates: list[Candidate] = []
    while place.file < len(files):
        size = files[place.file]["bytes"]
        blocks = _blocks(store, source["object"], (base + place.byte, base + size), block_bytes)
        place = _read_file(blocks, place, candidates, limit, step_end - base)
        if place.byte < size:
            break
        base += size
        place = Place(place.file + 1, position=place.position)
        if len(candidates) == limit:
            break
    return candidates, asdict(place), place.file == len(files)


def _read_file(
    blocks: Iterator[bytes], place: Place, candidates: list[Candidate], limit: int, byte_max: int
) -> Place:
    """Add the candidates of one file from ``place`` on, until there are ``limit`` or ``byte_max`` is passed.

    Returns the place behind what was read.
    """
    reader = LineReader(place.byte, place.line)
    position = place.position
    try:
        for lines in _batches(reader, blocks):
            for line in lines:
                candidates.append(Candidate(position, line.text, line.number))
                position += 1
                if len(candidates) == limit:
                    return Place(place.file, line.end, line.number, position)
            # A line longer than a whole step is read to its end all the same: each step must move on.
            if reader.offset >= byte_max and reader.offset > place.byte:
                break
    except StoreError:
        if not candidates:
            raise
    return Place(place.file, reader.offset, reader.number, position)


def _batches(reader: LineReader, blocks: Iterator[bytes]) -> Iterator[Iterator[Line]]:
    for block in blocks:
        yield reader.feed(block)
    yield reader.finish()


def _blocks(store: Store, name: str, bounds: tuple[int, int], block_bytes: int) -> Iterator[bytes]:
    """The bytes from ``bounds[0]`` up to but without ``bounds[1]``, no more of them than somebody asks for."""
    start, end = bounds
    while start < end:
        block = store.read(name, start, min(block_bytes, end - start))
        if not block:
            raise DamagedObjectError(f"{store.url(name)} is shorter than when the job was submitted")
        start += len(block)
        yield block
