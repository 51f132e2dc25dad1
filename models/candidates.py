"""The bytes in which a chunk carries its own candidates: JSON, compressed once, never changed."""

import json
import zlib
from collections.abc import Sequence
from typing import Any

from models.about import About
from models.outcomes import Candidate

Row = list[Any]
"""[url, line], or [url, line, {what else is known}]."""


def pack_candidates(candidates: Sequence[Candidate]) -> bytes:
    """Candidates at consecutive positions, as bytes. The first position is the chunk's ``image_range.start``."""
    return pack_rows([row_of(candidate) for candidate in candidates])


def unpack_candidates(packed: bytes, start: int) -> list[Candidate]:
    """Inverse of pack_candidates for a chunk whose first position is ``start``."""
    return [candidate_of(row, start + index) for index, row in enumerate(json.loads(zlib.decompress(packed)))]


def pack_rows(rows: Sequence[Row]) -> bytes:
    """Rows as bytes. A lone surrogate, which a source may well have, is none of our business here."""
    document = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    return zlib.compress(document.encode("utf-8", "surrogatepass"), 1)


def row_of(candidate: Candidate) -> Row:
    """A candidate without its position."""
    if candidate.about is None and candidate.duplicate_of is None and candidate.digest is None:
        return [candidate.url, candidate.line]
    more = {} if candidate.about is None else candidate.about.document
    if candidate.duplicate_of is not None:
        more["duplicate_of"] = candidate.duplicate_of
    if candidate.digest is not None:
        more["digest"] = candidate.digest
    return [candidate.url, candidate.line, more]


def candidate_of(row: Row, position: int) -> Candidate:
    """Inverse of row_of."""
    if len(row) == 2:
        return Candidate(position, *row)
    url, line, more = row
    duplicate_of, digest = more.pop("duplicate_of", None), more.pop("digest", None)
    return Candidate(position, url, line, About(**more) if more else None, duplicate_of, digest)
