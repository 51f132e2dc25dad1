"""One candidate to its one outcome: fetch, inspect, store. Knows nothing of chunks, rows or money."""

import datetime
from typing import Protocol

import structlog

from models.outcomes import Accepted, Candidate, Outcome, Reason, Refused
from worker.child import Child
from worker.errors import CandidateError, PictureError
from worker.fetch import Fetched, fetch
from worker.picture import Picture
from worker.store import Store, StoreError
from worker.watchdog import Work

log = structlog.get_logger()


class Decoder(Protocol):
    """Looks at a body, in the decoder thread or from there in a helper; overdue after ``seconds_max``."""

    seconds_max: float

    def inspect(self, body: bytes) -> Picture:
        """Describe a picture. Raises PictureError."""


async def crawl_candidate(child: Child, store: Store, candidate: Candidate, decoder: Decoder) -> Outcome:
    """Fetch, inspect, store: one candidate's outcome. Its share of the memory lasts until it is stored.

    What nobody expected is this candidate's outcome, too: it must not cost the others theirs. Raises StoreError.
    """
    fetched = None
    try:
        with child.transport.memory.lease() as lease:
            fetched = await fetch(
                child.transport, candidate.url, child.settings, random=child.random, lease=lease
            )
            return await child.in_decoder(keep, child, store, candidate, fetched, decoder)
    except CandidateError as error:
        return refusal(candidate, error)
    except StoreError:
        raise
    except Exception as error:
        log.exception("candidate_broke_off", position=candidate.position, url=candidate.url)
        reason = Reason.PROTOCOL if fetched is None else Reason.CORRUPT
        return refusal(candidate, CandidateError(reason, f"unexpected {type(error).__name__}: {error}"))


def keep(child: Child, store: Store, candidate: Candidate, fetched: Fetched, decoder: Decoder) -> Accepted:
    """Inspect a body and store it, named by its sha256. Raises PictureError or StoreError."""
    try:
        with child.watchdog.timing(Work.DECODE, decoder.seconds_max):
            picture = decoder.inspect(fetched.body)
    except CandidateError as error:
        error.http_status, error.final_url = fetched.http_status, fetched.final_url
        error.wire_bytes = fetched.wire_bytes
        raise
    filename = f"{picture.sha256.hex()}.{picture.format.extension}"
    with child.storing():
        storage_url = store.put(filename, fetched.body)
    return Accepted(
        position=candidate.position,
        original_url=candidate.url,
        final_url=fetched.final_url,
        sha256=picture.sha256,
        perceptual_hash=picture.perceptual_hash,
        width=picture.width,
        height=picture.height,
        file_size=picture.file_size,
        format=picture.format,
        orientation=picture.orientation,
        storage_url=storage_url,
        filename=filename,
        fetched_at=datetime.datetime.now(datetime.UTC),
        wire_bytes=fetched.wire_bytes,
    )


def refusal(candidate: Candidate, error: CandidateError) -> Refused:
    """The outcome of a candidate that ended in ``error``."""
    detail = f"line {candidate.line}: {error.detail}" if error.reason is Reason.INVALID_URL else error.detail
    return Refused(
        candidate.position,
        candidate.url,
        error.reason,
        detail,
        http_status=error.http_status,
        final_url=error.final_url,
        downloaded=isinstance(error, PictureError),
        wire_bytes=error.wire_bytes,
    )
