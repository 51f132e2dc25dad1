"""What of a PNG its decoder gets to see: what makes pixels, frames and orientation. Nothing else can spoil it.

Viewers pass over an ancillary chunk that is broken or has a wrong checksum (PNG specification, 13.1 and 13.2);
Pillow would refuse the picture. ``worker.container`` has checked that the file is whole, and what makes pixels is.
"""

from PIL import PngImagePlugin

# Pillow keeps what a PNG says in words; so much of it, packed or not, is no bomb. The largest honest profiles and
# descriptions of edits have two or three megabytes.
PngImagePlugin.MAX_TEXT_CHUNK = 4 * 1024 * 1024
PngImagePlugin.MAX_TEXT_MEMORY = 16 * 1024 * 1024

_ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})
_SHOWN = _ANIMATION | {b"tRNS", b"eXIf"}
_WORDS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})


class PngChunks(PngImagePlugin.PngStream):
    """The chunks of one file, in their order."""

    def call(self, cid: bytes, pos: int, length: int) -> bytes:
        """Hand a chunk to its reader. Words are read only to bound them: Pillow raises ValueError."""
        if not _is_ancillary(cid) or cid in _SHOWN:
            return super().call(cid, pos, length)
        try:
            if cid in _WORDS:
                return super().call(cid, pos, length)
        except (LookupError, SyntaxError):
            pass
        if self.fp is not None:
            self.fp.seek(pos + length)
        return b""

    def crc(self, cid: bytes, data: bytes) -> None:
        """Verify a checksum where it matters."""
        if _is_ancillary(cid) and cid not in _ANIMATION:
            self.crc_skip(cid, data)
        else:
            super().crc(cid, data)


def _is_ancillary(kind: bytes) -> bool:
    return bool(kind[0] & 0x20)
