"""Undoing gzip and zstd, told by the first bytes and not by a name, a bounded piece at a time."""

import itertools
import re
import sys
import zlib
from collections.abc import Iterable, Iterator

from worker.tables.errors import BrokenTableError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 1024 * 1024
SLICE_BYTES = 16 * 1024
"""So much is decompressed at once: of data that is damaged no more than that is lost before the damage."""
GZIP = b"\x1f\x8b"
ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
"""A frame, or one that is to be skipped, with which pzstd begins (RFC 8878, section 3.1.2)."""
MAGIC_BYTES = 4
ZSTD_WINDOW_LOG_MAX = 26
"""64 MiB, as much as ``zstd --ultra -22`` wants for a file of any size less than that; ``--long`` asks for more."""


def decompressed(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of ``blocks``, or what they decompress to, none of them empty. Raises BrokenTableError."""
    head, blocks = peeked(blocks)
    if head.startswith(GZIP):
        return _members(blocks, _Gzip, "gzip")
    if ZSTD.match(head):
        return _members(blocks, _Zstd, "zstd")
    return blocks


def peeked(blocks: Iterable[bytes], size: int = MAGIC_BYTES) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, and all of them again."""
    rest = (block for block in blocks if block)
    head = b""
    for block in rest:
        head += block
        if len(head) >= size:
            break
    return head[:size], itertools.chain([head] if head else [], rest)


def _slices(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for block in blocks:
        for start in range(0, len(block), SLICE_BYTES):
            yield block[start : start + SLICE_BYTES]


class _Gzip:
    """One member."""

    def __init__(self) -> None:
        self._inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._full = False

    def feed(self, data: bytes) -> bytes:
        piece = self._inflater.decompress(self._inflater.unconsumed_tail + data, PIECE_BYTES)
        self._full = len(piece) == PIECE_BYTES
        return piece

    @property
    def waiting(self) -> bool:
        # Of a full piece more may be left inside, though no input is.
        return bool(self._inflater.unconsumed_tail) or self._full

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def left(self) -> bytes:
        return self._inflater.unused_data


class _Zstd:
    """One frame."""

    def __init__(self) -> None:
        options = {int(zstd.DecompressionParameter.window_log_max): ZSTD_WINDOW_LOG_MAX}
        self._inflater = zstd.ZstdDecompressor(options=options)

    def feed(self, data: bytes) -> bytes:
        return self._inflater.decompress(data, PIECE_BYTES)

    @property
    def waiting(self) -> bool:
        return not self._inflater.needs_input and not self._inflater.eof

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def left(self) -> bytes:
        return self._inflater.unused_data


def _members(blocks: Iterator[bytes], begin: type[_Gzip | _Zstd], coding: str) -> Iterator[bytes]:
    """One member after another; what is cut or damaged breaks off after what it still yields."""
    member: _Gzip | _Zstd | None = None
    try:
        for part in _slices(blocks):
            data = part
            while data or (member and member.waiting):
                # Zeros behind the last member are what tapes leave, and gzip itself passes over them.
                if member is None and not data.strip(b"\0"):
                    break
                member = member or begin()
                piece = member.feed(data)
                data = b""
                if piece:
                    yield piece
                if member.eof:
                    data, member = member.left, None
    except (zlib.error, zstd.ZstdError) as error:
        raise BrokenTableError(f"its {coding} data is damaged ({error})") from None
    if member is not None:
        raise BrokenTableError(f"its {coding} data is cut off")
