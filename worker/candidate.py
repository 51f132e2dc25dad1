"""One candidate to its one outcome: fetch, inspect, store. Knows nothing of chunks, rows or money."""

import datetime
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from models.opt_outs import OptOut
from models.outcomes import Accepted, Candidate, Outcome, Reason, Refused
from models.settings import Settings
from worker.child import Child
from worker.errors import AddressError, CandidateError, PictureError, TransferError
from worker.fetch import Fetched, admit, step
from worker.helper import HelperError
from worker.host import Host, Turn
from worker.opt_outs import Heed, OptOuts
from worker.picture import Picture
from worker.spool import SpoolError
from worker.store import Store, StoreError
from worker.transport import GuardedTransport
from worker.visit import Visit

SERVICE_UNAVAILABLE = 503
HOST_FAILURES = frozenset({Reason.DNS, Reason.CONNECT, Reason.TLS, Reason.TIMEOUT, Reason.PROTOCOL})
"""Reasons that are the host's, when nothing at all came back."""

log = structlog.get_logger()
Found = TypeVar("Found", Picture, Picture | None)


class Decoder(Protocol):
    """Looks at a body, in the decoder thread or from there in a helper; tells the watchdog."""

    def inspect(self, body: bytes) -> Picture:
        """Describe a picture. Raises PictureError or HelperError."""

    def inspect_at_once(self, body: bytes) -> Picture | None:
        """The same in the event loop, for pictures that stop it for a moment only: None for others."""


class Fetcher(Protocol):
    """Asks owners and hosts, in this process or in a helper."""

    async def admit(self, visit: Visit, heed: Heed) -> bool:
        """Ask the owner; ``heed`` is told how many seconds are wanted between two requests. False: not now.

        Raises CandidateError.
        """

    async def step(self, visit: Visit) -> Fetched | None:
        """Make one request: a body, or None when it was a redirect. Raises CandidateError."""

    def close(self) -> None:
        """End what it has started."""


@dataclass(frozen=True, slots=True)
class PlainFetcher:
    """No helper: what kills this process by a request kills every other transfer with it."""

    transport: GuardedTransport
    settings: Settings
    opt_outs: OptOuts
    obeyed: frozenset[OptOut]

    async def admit(self, visit: Visit, heed: Heed) -> bool:
        """Ask the owner. Raises CandidateError."""
        return await admit(visit, self.opt_outs.hooks(self.obeyed, heed))

    async def step(self, visit: Visit) -> Fetched | None:
        """Make one request. Raises CandidateError."""
        return await step(self.transport, visit, self.settings, hooks=self.opt_outs.hooks(self.obeyed))

    def close(self) -> None:
        """Nothing to end."""


def begin_visit(child: Child, candidate: Candidate) -> Visit | Refused:
    """A candidate's way begins, or ends already because of its URL."""
    if candidate.duplicate_of is not None:
        detail = f"the same URL as candidate {candidate.duplicate_of}"
        return Refused(candidate.position, candidate.url, Reason.DUPLICATE, detail)
    if candidate.problem is not None:
        return Refused(candidate.position, candidate.url, Reason.INVALID_URL, candidate.problem)
    try:
        return Visit(candidate, child.transport.memory.lease(child.spool))
    except AddressError as error:
        return refusal(candidate, error)


async def crawl_visit(
    child: Child, store: Store, visit: Visit, turn: Turn, decoder: Decoder, fetcher: Fetcher
) -> Outcome | float:
    """Use one turn of a visit: fetch, and inspect and store what came. Its outcome, or in how many seconds it wants
    another turn. Its share of the memory lasts until it is stored.

    What nobody expected is this candidate's outcome, too: it must not cost the others theirs. Raises StoreError,
    and HelperError: without a helper nothing was asked.
    """
    fetched = None
    try:
        fetched = await take_turn(fetcher, visit, turn, child.settings.host_patience_seconds)
        if fetched is None:
            return 0.0
        if fetched.file is not None:
            await visit.lease.load()
        candidate, body = visit.candidate, fetched.body
        picture = None if fetched.file else describe(candidate, fetched, body, decoder.inspect_at_once)
        return await child.in_decoder(keep, child, store, candidate, fetched, decoder, picture)
    except CandidateError as error:
        # Its traceback leads to the body, and by the decoder's future back to itself: only the garbage collector
        # would free the two, some time, and in the books they are free.
        error.__traceback__ = None
        seconds = visit.again_in(error, child.settings, child.random) if fetched is None else None
        return refusal(visit.candidate, error) if seconds is None else seconds
    except (StoreError, HelperError):
        raise
    except SpoolError as error:
        raise StoreError(str(error), transient=True) from error
    except Exception as error:
        candidate = visit.candidate
        log.exception("candidate_broke_off", position=candidate.position, url=candidate.url)
        error.__traceback__ = None
        reason = Reason.PROTOCOL if fetched is None else Reason.CORRUPT
        return refusal(candidate, CandidateError(reason, f"unexpected {type(error).__name__}: {error}"))
    finally:
        visit.lease.release()


async def take_turn(fetcher: Fetcher, visit: Visit, turn: Turn, patience_seconds: float) -> Fetched | None:
    """Ask the owner and make one request, and tell what it says of the host. None: the visit wants another turn.

    Raises CandidateError.
    """
    try:
        if not await fetcher.admit(visit, lambda _, seconds: turn.heed_delay(min(seconds, patience_seconds))):
            return None
        fetched = await fetcher.step(visit)
    except CandidateError as error:
        tell(turn, visit, error, patience_seconds)
        raise
    if visit.latency_seconds is not None:
        turn.answered(visit.latency_seconds)
    return fetched


def tell(turn: Turn, visit: Visit, error: CandidateError, patience_seconds: float) -> None:
    """What a request that failed says of its host."""
    if error.reason is Reason.RATE_LIMITED:
        seconds = error.retry_after_seconds
        turn.refused(None if seconds is None else min(seconds, patience_seconds + 1), error.detail)
    elif visit.latency_seconds is not None:
        turn.answered(visit.latency_seconds, struggling=error.http_status == SERVICE_UNAVAILABLE)
    elif error.reason in HOST_FAILURES:
        turn.failed(error.reason, error.detail)


def closed_host(visit: Visit, host: Host) -> Outcome:
    """The outcome of a candidate whose host nobody asks at present."""
    error = TransferError(Reason(host.why), f"{host.name} is not asked for a while: {host.detail}")
    error.wire_bytes, error.final_url = visit.wire_bytes, visit.target.url
    return refusal(visit.candidate, error)


def describe(candidate: Candidate, fetched: Fetched, body: bytes, inspect: Callable[[bytes], Found]) -> Found:
    """Hold a body to what its source says of it, and inspect it. Raises PictureError, which knows its transfer, and
    what ``inspect`` raises.
    """
    try:
        if candidate.digest is not None:
            verify(body, candidate.digest)
        return inspect(body)
    except CandidateError as error:
        error.http_status, error.final_url = fetched.http_status, fetched.final_url
        error.wire_bytes, error.attempts, error.elapsed_ms = (
            fetched.wire_bytes,
            fetched.attempts,
            fetched.elapsed_ms,
        )
        raise


def keep(
    child: Child,
    store: Store,
    candidate: Candidate,
    fetched: Fetched,
    decoder: Decoder,
    picture: Picture | None = None,
) -> Accepted:
    """Inspect a body, unless its ``picture`` is known, and store it, named by its sha256.

    Raises PictureError; Helper-, Store- or SpoolError.
    """
    body = fetched.body
    if fetched.file is not None:
        with child.storing():
            body = fetched.file.read()
    if picture is None:
        picture = describe(candidate, fetched, body, decoder.inspect)
    filename = f"{picture.sha256.hex()}.{picture.format.extension}"
    with child.storing():
        storage_url = store.put(filename, body)
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
        http_status=fetched.http_status,
        attempts=fetched.attempts,
        elapsed_ms=fetched.elapsed_ms,
        about=candidate.about,
    )


def verify(body: bytes, digest: str) -> None:
    """Hold a body to the digest that its source gives, ``algorithm:hexadecimal``. Raises PictureError."""
    algorithm, _, expected = digest.partition(":")
    found = hashlib.new(algorithm, body, usedforsecurity=False).hexdigest()
    if found != expected:
        raise PictureError(Reason.MISMATCH, f"its {algorithm} is {found}, not {expected}")


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
        evidence=error.evidence,
        attempts=error.attempts,
        elapsed_ms=error.elapsed_ms,
    )
