"""Undoing the content coding of a body, piece by piece, so that a bomb stays small. Pure."""

import zlib
from collections.abc import Iterator

PIECE_BYTES = 64 * 1024
# Members of a gzip body. One is the rule; each costs a decompressor, and an empty one takes 20 bytes.
MEMBERS_MAX = 1000

# Labels that servers send although they name no compression.
_UNCODED = frozenset({"", "identity", "none", "binary", "utf-8", "aws-chunked"})
_CODINGS = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


class UnknownCodingError(ValueError):
    """The Content-Encoding is none that we decode."""


class ContentDecoder:
    """Undoes gzip or deflate (RFC 9110, section 8.4.1), at most PIECE_BYTES at once: a bomb stays small."""

    __slots__ = ("_coding", "_ended", "_head", "_inflater", "_members")

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflater: zlib._Decompress | None = None
        self._head = b""
        self._members = 0
        self._ended = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what ``data`` decodes to. Raises zlib.error."""
        data = self._head + data
        self._head = b""
        while not self._ended:
            if self._inflater is None:
                if len(data) < 2:
                    self._head = data
                    return
                self._inflater = self._next_member(data)
                continue
            piece = self._inflater.decompress(data, PIECE_BYTES)
            if piece:
                yield piece
            if self._inflater.eof:
                data = self._inflater.unused_data
                self._inflater = None
                self._ended = self._coding != "gzip"
                continue
            data = self._inflater.unconsumed_tail
            if not data and len(piece) < PIECE_BYTES:
                return

    def finish(self) -> None:
        """Raise zlib.error when the coded body was cut."""
        unread = not self._members and (self._coding != "gzip" or self._head)
        if not self._ended and (self._inflater is not None or unread):
            raise zlib.error("the coded body ends early")

    def _next_member(self, head: bytes) -> "zlib._Decompress | None":
        """Begin, or go on: gzip may have several members, and anything else behind one of them is padding."""
        self._ended = self._members > 0 and not head.startswith(b"\x1f\x8b")
        self._members += 1
        if self._members > MEMBERS_MAX:
            raise zlib.error(f"more than {MEMBERS_MAX} members")
        return None if self._ended else zlib.decompressobj(self._window_bits(head))

    def _window_bits(self, head: bytes) -> int:
        """Deflate means the zlib format, but some servers send the bare stream: look at its two bytes."""
        if self._coding == "gzip":
            return 16 + zlib.MAX_WBITS
        is_zlib = head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0
        return zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS


def make_decoder(content_encoding: str) -> ContentDecoder | None:
    """Find the decoder for a Content-Encoding header, None when there is nothing to undo.

    Raises UnknownCodingError.
    """
    label = content_encoding.strip().lower()
    if label in _UNCODED:
        return None
    if label not in _CODINGS:
        raise UnknownCodingError(f"Content-Encoding {label[:60]} is not understood")
    return ContentDecoder(_CODINGS[label])
