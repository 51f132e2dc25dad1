"""Lines of text that arrives in blocks: UTF-8, with or without a byte order mark. A line has a bound."""

import codecs
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from worker.tables.errors import UnfitTableError

LINE_BYTES_MAX = 1024 * 1024
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
WIDE_BYTE_ORDER_MARKS = (b"\xff\xfe", b"\xfe\xff")
UNREADABLE_SHARE_MAX = 0.25
"""A text in another encoding has some characters that are not UTF-8; an image or an archive has many."""
OVERLONG = "\ud800"
"""Ends the kept part of a line that was longer. No text in UTF-8 has it, nor does it stand for an error of one."""
ODD = re.compile("[\ud800\udc80-\udcff]")


class Lines(NamedTuple):
    """Whole lines with their ends. ``odd`` says that one of them may be overlong or not UTF-8: see ``oddity``."""

    lines: list[str]
    odd: bool


def read_lines(blocks: Iterable[bytes]) -> Iterator[Lines]:
    """The lines of a text, as many at once as a block has. Raises UnfitTableError when it is none."""
    begun, skipped = b"", False
    for block in _checked(blocks):
        end = block.rfind(b"\n") + 1
        if end:
            if skipped:
                cut, skipped = begun.decode("utf-8", "surrogateescape") + OVERLONG + "\n", False
                first = block.index(b"\n") + 1
                yield Lines([cut], odd=True)
                yield _decoded(block[first:end])
            else:
                yield _decoded(begun + block[:end])
            begun = b""
        begun += block[end:]
        if len(begun) > LINE_BYTES_MAX:
            begun, skipped = begun[:LINE_BYTES_MAX], True
    if skipped:
        yield Lines([begun.decode("utf-8", "surrogateescape") + OVERLONG], odd=True)
    elif begun:
        yield _decoded(begun)


def read_text(blocks: Iterable[bytes]) -> Iterator[tuple[str, bool]]:
    """A text in pieces, each with whether it may be no UTF-8. Raises UnfitTableError when it is no text."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    for block in itertools.chain(_checked(blocks), [b""]):
        text = decoder.decode(block, final=not block)
        if text:
            yield text, bool(ODD.search(text))


def oddity(text: str) -> str | None:
    """What is wrong with a text that was read; None: nothing."""
    if not ODD.search(text):
        return None
    return f"it is longer than {LINE_BYTES_MAX:,} bytes" if OVERLONG in text else "it is not UTF-8"


def shown(text: str, characters: int = 200) -> str:
    """The beginning of a text that cannot be read, for people."""
    return (
        text[:characters]
        .encode("utf-8", "surrogateescape" if OVERLONG not in text else "replace")
        .decode("utf-8", "replace")
    )


def check_text(block: bytes, *, first: bool) -> None:
    """Refuse what is not text in UTF-8, as soon as it shows. Raises UnfitTableError."""
    if first and block.startswith(WIDE_BYTE_ORDER_MARKS):
        raise UnfitTableError("is UTF-16 text: save it as UTF-8")
    if b"\0" in block:
        raise UnfitTableError("is not text: give a file of URLs, one a line")
    if first:
        characters = block.decode("utf-8", "replace")
        if characters.count("\ufffd") > UNREADABLE_SHARE_MAX * len(characters):
            raise UnfitTableError("is not text in UTF-8: save it as UTF-8, one URL a line")


def _checked(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The blocks without a byte order mark; lines that end as on an old Macintosh end like all others."""
    first, returns = True, False
    for block in blocks:
        text = block
        if first:
            check_text(text, first=True)
            text = text.removeprefix(BYTE_ORDER_MARK)
            # The last byte may be half of an end of line.
            returns = b"\n" not in text and b"\r" in text[:-1]
            first = False
        yield text.replace(b"\r", b"\n") if returns else text


def _decoded(text: bytes) -> Lines:
    try:
        whole, odd = text.decode(), False
    except UnicodeDecodeError:
        whole, odd = text.decode("utf-8", "surrogateescape"), True
    # Unlike splitlines, which knows ten more characters that end a line.
    return Lines(list(io.StringIO(whole, newline="\n")), odd)
