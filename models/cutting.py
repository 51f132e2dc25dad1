"""How candidates are cut into chunks. Pure: it reads and writes nothing."""

import itertools
from collections.abc import Iterator, Sequence

from models.candidates import PackedCandidate
from models.outcomes import Candidate
from models.splitting import NewChunk

FIRST_CHUNK_SIZE = 50
CHUNKS_PER_SIZE = 4


def cut(
    candidates: Sequence[Candidate | PackedCandidate], first_index: int, size_max: int, ending: int = 0
) -> Iterator[NewChunk]:
    """Chunks of consecutive candidates, numbered from ``first_index``.

    The first chunks of a job are small and they grow, so that a short list is spread over the workers and a
    long one is not cut into too many pieces. Where nothing follows they shrink again: with ``ending`` slots (0: it
    does not end here) none is larger than what each of them has left to do, so that all are done at one time.
    """
    start = 0
    for index in itertools.count(first_index):
        if start >= len(candidates):
            return
        size = min(size_max, FIRST_CHUNK_SIZE << min(index // CHUNKS_PER_SIZE, 16))
        if ending:
            size = min(size, max(FIRST_CHUNK_SIZE, (len(candidates) - start) // ending))
        chunk = candidates[start : start + size]
        yield NewChunk(index, chunk[0].position, chunk)
        start += size
