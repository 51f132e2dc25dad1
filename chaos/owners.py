"""Who has which chunk: asked of the database, of /proc, and of what workers say. Changes nothing."""

import re
from collections.abc import Sequence
from typing import Any

from chaos.system import System

CHUNKS_OF = """
SELECT id, attempt FROM job_chunks WHERE status = 'processing' AND substring(worker FROM '[0-9]+$') = ANY(:pids)
"""
TAKEN_OVER = """
SELECT FROM job_chunks WHERE id = :id AND attempt > :attempt AND status IN ('processing', 'completed', 'failed')
"""
ENDED = (
    "SELECT id FROM job_chunks WHERE id = :id AND attempt = :attempt AND status IN ('completed', 'failed')"
)
STILL = "SELECT id FROM job_chunks WHERE id = :id AND attempt = :attempt AND status = 'processing'"


def children(system: System) -> list[int]:
    """Every child of every worker's pool."""
    return [pid for worker in system.workers for pid in worker.children()]


def chunks_of(system: System, pids: Sequence[int]) -> Sequence[Any]:
    """Chunks in the hands of these children, each with its attempt."""
    return system.query(CHUNKS_OF, pids=[str(pid) for pid in pids])


def still(system: System, chunk: Any) -> bool:
    """Whether a chunk is still in the hands of the worker that had this attempt of it."""
    return bool(system.query(STILL, id=chunk.id, attempt=chunk.attempt))


def ended(system: System, chunk: Any) -> bool:
    """Whether a chunk has ended by this very attempt."""
    return bool(system.query(ENDED, id=chunk.id, attempt=chunk.attempt))


def taken_over(system: System, chunk: Any) -> bool:
    """Whether somebody has made a later attempt at a chunk, and is at it or done with it."""
    return bool(system.query(TAKEN_OVER, id=chunk.id, attempt=chunk.attempt))


def last_words(system: System, chunk: Any) -> list[str]:
    """How a worker's attempt at a chunk ended, by its own word.

    ``chunk_not_wanted``: it was cut off before it read that it had the chunk.
    """
    logs = [worker.log.read_text("utf-8") for worker in system.workers]
    words = "chunk_lost|chunk_not_wanted|chunk_settled|chunk_handed_back"
    return re.findall(rf"\] ({words}) attempt={chunk.attempt} chunk={chunk.id}\b", "".join(logs))
