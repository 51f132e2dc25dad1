"""The bytes in which a chunk carries its own candidates: JSON, compressed once, never changed."""

import json
import zlib
from collections.abc import Iterable, Sequence
from json.encoder import c_make_encoder, encode_basestring  # type: ignore[attr-defined]
from typing import Any, NamedTuple

from models.about import About
from models.outcomes import Candidate

Row = list[Any]
"""[url, line], or [url, line, {what else is known}]."""
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_pieces = c_make_encoder(
    None, _ENCODER.default, encode_basestring, None, ":", ",", _ENCODER.sort_keys, _ENCODER.skipkeys, True
)


def encode(row: Row) -> str:
    """A row as JSON. ``JSONEncoder.encode`` makes an encoder for each call, which takes a third of its time."""
    return "".join(_pieces(row, 0))


class PackedCandidate(NamedTuple):
    """A candidate that nobody has to look into on its way to a chunk: its ``row`` is JSON already."""

    position: int
    row: str

    def unpacked(self) -> Candidate:
        """The candidate."""
        return candidate_of(json.loads(self.row), self.position)


def pack_candidates(candidates: Sequence[Candidate | PackedCandidate]) -> bytes:
    """Candidates at consecutive positions, as bytes. The first position is the chunk's ``image_range.start``."""
    rows = ",".join(
        candidate.row if isinstance(candidate, PackedCandidate) else encode(row_of(candidate))
        for candidate in candidates
    )
    # A lone surrogate, which a source may well have, is none of our business here.
    return zlib.compress(f"[{rows}]".encode("utf-8", "surrogatepass"), 1)


def unpack_candidates(packed: bytes, start: int) -> list[Candidate]:
    """Inverse of pack_candidates for a chunk whose first position is ``start``."""
    return [candidate_of(row, start + index) for index, row in enumerate(json.loads(zlib.decompress(packed)))]


NAMES = ("duplicate_of", "digest", "problem")
"""What a candidate may have besides its About."""


def row_of(candidate: Candidate) -> Row:
    """A candidate without its position."""
    more = {} if candidate.about is None else candidate.about.document
    more |= {name: value for name in NAMES if (value := getattr(candidate, name)) is not None}
    return [candidate.url, candidate.line, more] if more else [candidate.url, candidate.line]


def candidate_of(row: Row, position: int) -> Candidate:
    """Inverse of row_of."""
    if len(row) == 2:
        return Candidate(position, *row)
    url, line, more = row
    known = {name: more.pop(name, None) for name in NAMES}
    return Candidate(position, url, line, About(**more) if more else None, **known)


def unpacked(candidates: Iterable[Candidate | PackedCandidate]) -> list[Candidate]:
    """Candidates to look into."""
    return [
        candidate.unpacked() if isinstance(candidate, PackedCandidate) else candidate
        for candidate in candidates
    ]
