"""The fetch of one candidate, request by request: redirects, attempts, the deadline. When a request may start is
for worker/politeness.py to say, and whether a body is a picture for worker/picture.py.
"""

import asyncio
import datetime
import email.utils
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx
from multidict import CIMultiDictProxy

from models.outcomes import TRANSIENT_STATUSES, Reason
from models.settings import Settings
from worker.address import ParsedURL, resolve_location
from worker.body import BodyReader
from worker.errors import AddressError, CandidateError, PictureError, TransferError
from worker.spool import SpoolFile
from worker.transport import (
    FloodedError,
    GuardedTransport,
    Received,
    RefusedError,
    ResolveError,
    TLSError,
)
from worker.visit import Visit

ACCEPT = "image/avif,image/webp,image/png,image/jpeg,image/gif;q=0.9,*/*;q=0.5"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RECEIVED = frozenset({200, 203})

# What the transport raises, and why the candidate then has no image. The nearest class counts.
REASONS: dict[type[httpx.TransportError], Reason] = {
    ResolveError: Reason.DNS,
    TLSError: Reason.TLS,
    FloodedError: Reason.TOO_LARGE,
    httpx.TimeoutException: Reason.TIMEOUT,
    httpx.NetworkError: Reason.CONNECT,
    httpx.ProxyError: Reason.CONNECT,
    httpx.RemoteProtocolError: Reason.PROTOCOL,
    httpx.LocalProtocolError: Reason.INVALID_URL,
    httpx.UnsupportedProtocol: Reason.INVALID_URL,
    httpx.TransportError: Reason.PROTOCOL,
}

Headers = CIMultiDictProxy[str]


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole body, content coding undone, or the file that it is in. ``wire_bytes`` counts body bytes as received,
    of every attempt; ``elapsed_ms`` the milliseconds of all ``attempts``, redirects included, pauses between them
    not.
    """

    url: str
    final_url: str
    http_status: int
    content_type: str
    body: bytes
    wire_bytes: int
    redirects: int
    headers: Headers
    attempts: int = 1
    elapsed_ms: int = 0
    file: SpoolFile | None = None


@dataclass(frozen=True, slots=True)
class Hooks:
    """Rules of others that a fetch obeys; each refuses by raising CandidateError.

    ``admit`` is asked before each request, and may want the host to be left alone for now: then it says False.
    ``header`` is asked before the body that a URL gives is read.
    """

    admit: Callable[[ParsedURL], Awaitable[bool]] | None = None
    header: Callable[[ParsedURL, Headers], None] | None = None


NO_HOOKS = Hooks()


async def admit(visit: Visit, hooks: Hooks) -> bool:
    """Ask whether the URL where a visit stands may be requested. False: its host is to be left alone for now.

    Raises CandidateError.
    """
    visit.latency_seconds = None
    return hooks.admit is None or await hooks.admit(visit.target)


async def step(
    transport: GuardedTransport,
    visit: Visit,
    settings: Settings,
    *,
    clock: Callable[[], float] = time.monotonic,
    hooks: Hooks = NO_HOOKS,
    accept: str = ACCEPT,
) -> Fetched | None:
    """One request where the visit stands: its body, or None when it was a redirect, which the visit has followed.

    It has the deadline ``transfer_seconds_max``. Raises CandidateError; SpoolError when a disk fails.
    """
    transfer = _Transfer(transport, settings, visit, clock, hooks, accept)
    visit.tries += visit.target is visit.start
    try:
        return await transfer.run()
    finally:
        visit.wire_bytes += transfer.body.wire_bytes
        visit.seconds += clock() - transfer.began


class _Transfer:
    """One request of a visit: from its address to the end of the body."""

    __slots__ = ("_clock", "_headers", "_hooks", "_settings", "_transport", "_visit", "began", "body")

    def __init__(
        self,
        transport: GuardedTransport,
        settings: Settings,
        visit: Visit,
        clock: Callable[[], float],
        hooks: Hooks,
        accept: str,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._visit = visit
        self._clock = clock
        self._hooks = hooks
        self._headers = {"Accept": accept}
        self.began = clock()
        self.body = BodyReader(
            bytes_max=settings.image_bytes_max,
            rate_min=settings.transfer_rate_min,
            lease=visit.lease,
            clock=clock,
        )

    async def run(self) -> Fetched | None:
        """Transfer within the deadline. Raises CandidateError or SpoolError."""
        deadline_seconds = self._settings.transfer_seconds_max
        try:
            async with asyncio.timeout(deadline_seconds) as self.body.deadline:
                return await self._request()
        except TimeoutError as error:
            raise TransferError(
                Reason.TIMEOUT, f"the transfer was not over after {deadline_seconds:g} seconds"
            ) from error
        except RefusedError as error:
            raise error.refusal from error
        except httpx.TransportError as error:
            raise _translate(error) from error

    async def _request(self) -> Fetched | None:
        """Each hop is a request of its own, checked as if it were the first. No redirect's body is read."""
        visit = self._visit
        visit.latency_seconds = None
        received = await self._transport.send("GET", visit.target.url, headers=self._headers)
        visit.latency_seconds = self._clock() - self.began
        try:
            location = received.headers.get("Location") if received.status in _REDIRECTS else None
            if location is not None:
                self._step(location, received.status)
                return None
            body = await self._receive(received)
        finally:
            received.release()
        return Fetched(
            url=visit.candidate.url,
            final_url=visit.target.url,
            http_status=received.status,
            content_type=received.headers.get("Content-Type", ""),
            body=body,
            wire_bytes=visit.wire_bytes + self.body.wire_bytes,
            redirects=visit.redirects,
            headers=received.headers,
            attempts=visit.tries,
            elapsed_ms=round(1000 * (visit.seconds + self._clock() - self.began)),
            file=visit.lease.file,
        )

    def _step(self, location: str, status: int) -> None:
        visit = self._visit
        visit.redirects += 1
        if visit.redirects > self._settings.redirects_max:
            raise TransferError(
                Reason.REDIRECTS, f"more than {self._settings.redirects_max} redirects", http_status=status
            )
        visit.target = _next_target(visit.target, location, status)
        if visit.target.url in visit.seen:
            raise TransferError(Reason.REDIRECTS, "the redirects go in a circle", http_status=status)
        visit.seen.add(visit.target.url)

    async def _receive(self, received: Received) -> bytes:
        _check_status(received)
        try:
            if self._hooks.header is not None:
                self._hooks.header(self._visit.target, received.headers)
            body = await self.body.read(received)
        except CandidateError as error:
            error.http_status = received.status
            raise
        if not body and self._visit.lease.file is None:
            raise PictureError(Reason.NOT_AN_IMAGE, "the body is empty", http_status=received.status)
        return body


def reason_of(error: httpx.TransportError) -> Reason:
    """Why a candidate has no image that this error ends."""
    return next(REASONS[base] for base in type(error).__mro__ if base in REASONS)


def _translate(error: httpx.TransportError) -> TransferError:
    transient = error.temporary if isinstance(error, ResolveError) else None
    return TransferError(reason_of(error), str(error) or type(error).__name__, transient=transient)


def _next_target(base: ParsedURL, location: str, status: int) -> ParsedURL:
    """Check where a redirect leads. Private stays ``blocked_address``; what is no URL is a bad redirect."""
    try:
        return resolve_location(base, location)
    except AddressError as error:
        if error.reason is Reason.BLOCKED_ADDRESS:
            error.http_status = status
            raise
        detail = f"redirected to what cannot be fetched: {error.detail}"
        raise TransferError(Reason.REDIRECTS, detail, http_status=status) from error


def _check_status(received: Received) -> None:
    """Let a received body pass; name the reason for every other status (RFC 9110, section 15)."""
    status = received.status
    if status in _RECEIVED:
        return
    wait_seconds = read_retry_after(received.headers)
    if status == 429 or (status == 503 and wait_seconds is not None):
        raise TransferError(
            Reason.RATE_LIMITED,
            f"the server answered {status}",
            http_status=status,
            retry_after_seconds=wait_seconds,
        )
    raise TransferError(
        Reason.HTTP_STATUS,
        f"the server answered {status}",
        transient=status in TRANSIENT_STATUSES,
        http_status=status,
    )


def read_retry_after(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After as seconds from now, in both its forms (RFC 9110, section 10.2.3)."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        until = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=datetime.UTC)
    return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
