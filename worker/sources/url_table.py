"""The cursor over a stored table: at submit, whatever it was became frames of rows, which are read back here.

A frame is its number of rows and its length in bytes, four bytes each, and so many rows as JSON, one a line,
compressed. It is read without any other, so that a step begins where the last one ended; a row goes into its
chunk as it stands, without being parsed.
"""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from models.about import METADATA_BYTES_MAX, bounded
from models.candidates import PackedCandidate, Row, encode
from worker.store import DamagedObjectError, Store, StoreError

FRAME_ROWS = 1000
FRAME_CHARACTERS = 256 * 1024
"""A frame ends soon after so many: long rows fill no memory."""
STEP_CHARACTERS = 16 * 1024 * 1024
"""So does a step."""
READ_BYTES = 256 * 1024
TEXT_BYTES_MAX = 4 * 1024
"""Of a licence, a creator, and what else has a column of its own."""
HEAD = struct.Struct(">II")
FRAME_BYTES_MAX = 256 * 1024 * 1024
"""Whatever says that it is longer is no frame: a row that a table gives is never so long."""


class FrameWriter:
    """Makes frames of rows, and remembers how many rows they had and the digest of all."""

    def __init__(self) -> None:
        self.rows = 0
        self.bytes = 0
        self.digest = hashlib.sha256()
        self._texts: list[str] = []
        self._characters = 0

    def write(self, rows: Iterable[Row]) -> Iterator[bytes]:
        """Take rows; yield the frames that are full."""
        for row in rows:
            text = encode(row)
            if (
                len(text) > METADATA_BYTES_MAX // 12
            ):  # Escaped, which is how it is measured, a character has 12 bytes.
                text = encode(shortened(row))
            self._texts.append(text)
            self._characters += len(text)
            if len(self._texts) >= FRAME_ROWS or self._characters >= FRAME_CHARACTERS:
                yield self.flush()

    def flush(self) -> bytes:
        """What is left, as a frame; nothing when there is nothing."""
        if not self._texts:
            return b""
        text = "\n".join(self._texts).encode("utf-8", "surrogatepass")
        self.digest.update(text)
        packed = zlib.compress(text, 1)
        frame = HEAD.pack(len(self._texts), len(packed)) + packed
        self.rows += len(self._texts)
        self.bytes += len(frame)
        self._texts, self._characters = [], 0
        return frame


def shortened(row: Row) -> Row:
    """A row with no more metadata than is kept."""
    if len(row) == 2:
        return row
    url, line, more = row
    kept = {
        name: value[:TEXT_BYTES_MAX] if isinstance(value, str) else bounded(value)
        for name, value in more.items()
    }
    return [url, line, kept]


def read_step(
    store: Store, source: Mapping[str, Any], cursor: Mapping[str, Any], limit: int
) -> tuple[list[PackedCandidate], dict[str, int], bool]:
    """Read up to ``limit`` candidates from ``cursor`` on; {} is the beginning.

    ``source`` is {object, bytes, …}. Returns the candidates, the next cursor, and whether the table is at its end.
    Raises StoreError, once there is nothing before the place that cannot be read, and DamagedObjectError for an
    object that is not what was written.
    """
    byte, row, position = (cursor.get(name, 0) for name in ("byte", "row", "position"))
    frames = _Frames(store, source["object"], byte, source["bytes"])
    candidates: list[PackedCandidate] = []
    characters = 0
    while byte < source["bytes"] and len(candidates) < limit and characters < STEP_CHARACTERS:
        try:
            rows, after = frames.next()
        except StoreError:
            if candidates:
                break
            raise
        taken = rows[row : row + limit - len(candidates)]
        candidates += map(PackedCandidate, range(position, position + len(taken)), taken)
        position += len(taken)
        row += len(taken)
        characters += sum(map(len, taken))
        if row >= len(rows):
            byte, row = after, 0
    return candidates, {"byte": byte, "row": row, "position": position}, byte >= source["bytes"]


class _Frames:
    """The frames of an object, from one that begins at ``byte``."""

    def __init__(self, store: Store, name: str, byte: int, size: int) -> None:
        self._store = store
        self._name = name
        self._size = size
        self._next = byte
        """Where the next frame begins; ``_read`` holds what was read from there on."""
        self._read = b""

    def next(self) -> tuple[list[str], int]:
        """(rows, the byte behind them) of the next frame."""
        number, length = HEAD.unpack(self._take(HEAD.size))
        if length > FRAME_BYTES_MAX:
            raise self._damaged("no frame begins where one should")
        try:
            text = zlib.decompress(self._take(length)).decode("utf-8", "surrogatepass")
        except (zlib.error, UnicodeDecodeError) as error:
            raise self._damaged(str(error)) from None
        rows = text.split("\n")
        if len(rows) != number:
            raise self._damaged("rows are missing")
        return rows, self._next

    def _damaged(self, why: str) -> DamagedObjectError:
        return DamagedObjectError(f"{self._store.url(self._name)} is damaged ({why})")

    def _take(self, length: int) -> bytes:
        while len(self._read) < length:
            start = self._next + len(self._read)
            wanted = min(max(READ_BYTES, length - len(self._read)), self._size - start)
            block = self._store.read(self._name, start, wanted)
            if not block:
                raise DamagedObjectError(
                    f"{self._store.url(self._name)} is shorter than when the job was submitted"
                )
            self._read += block
        taken, self._read = self._read[:length], self._read[length:]
        self._next += length
        return taken
