"""The bytes in which a chunk carries its own candidates: JSON, compressed once, never changed."""

import json
import zlib
from collections.abc import Sequence

from models.outcomes import Candidate


def pack_candidates(candidates: Sequence[Candidate]) -> bytes:
    """Candidates at consecutive positions, as bytes. The first position is the chunk's ``image_range.start``."""
    rows = [[candidate.url, candidate.line] for candidate in candidates]
    return zlib.compress(json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode(), 1)


def unpack_candidates(packed: bytes, start: int) -> list[Candidate]:
    """Inverse of pack_candidates for a chunk whose first position is ``start``."""
    rows = json.loads(zlib.decompress(packed))
    return [Candidate(start + index, url, line) for index, (url, line) in enumerate(rows)]
