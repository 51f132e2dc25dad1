"""The fetch of one candidate: redirects, attempts and the deadline. It never judges whether a body is a picture."""

import asyncio
import datetime
import email.utils
import random as randomness
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx
from multidict import CIMultiDictProxy

from models.outcomes import TRANSIENT_STATUSES, Reason
from models.settings import Settings
from worker.address import ParsedURL, parse_url, resolve_location
from worker.body import BodyReader, Lease
from worker.errors import AddressError, CandidateError, PictureError, TransferError
from worker.transport import GuardedTransport, Received, RefusedError, ResolveError, TLSError

ACCEPT = "image/avif,image/webp,image/png,image/jpeg,image/gif;q=0.9,*/*;q=0.5"
BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 5.0
# A server that asks to wait for longer is not waited for: the candidate ends as rate_limited.
RETRY_AFTER_SECONDS_MAX = 10.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RECEIVED = frozenset({200, 203})

# What the transport raises, and why the candidate then has no image. The nearest class counts.
REASONS: dict[type[httpx.TransportError], Reason] = {
    ResolveError: Reason.DNS,
    TLSError: Reason.TLS,
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
    """A whole body, content coding undone. ``wire_bytes`` counts body bytes as received, of every attempt."""

    url: str
    final_url: str
    http_status: int
    content_type: str
    body: bytes
    wire_bytes: int
    redirects: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class Hooks:
    """Rules of others that a fetch obeys; each refuses by raising CandidateError.

    ``admit`` is asked before a redirect is followed, ``header`` before the body is read.
    """

    admit: Callable[[ParsedURL], Awaitable[None]] | None = None
    header: Callable[[Headers], None] | None = None


NO_HOOKS = Hooks()


async def fetch(
    transport: GuardedTransport,
    url: str,
    settings: Settings,
    *,
    random: randomness.Random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
    lease: Lease | None = None,
    hooks: Hooks = NO_HOOKS,
    accept: str = ACCEPT,
) -> Fetched:
    """Fetch one URL, with as many attempts as the settings allow while the reason is transient.

    Each attempt has the deadline ``transfer_seconds_max``, redirects included. A ``lease`` of the caller keeps
    a large body's memory reserved until the caller releases it; without one the reservation ends here.
    Raises CandidateError, with ``final_url`` and ``wire_bytes`` filled in.
    """
    target = parse_url(url)
    held = lease or transport.memory.lease()
    wire_bytes = 0
    attempt = 0
    try:
        while True:
            attempt += 1
            held.release()
            transfer = _Transfer(transport, settings, target, held, clock, hooks, accept)
            try:
                return await transfer.run(url, wire_bytes)
            except CandidateError as error:
                wire_bytes += transfer.body.wire_bytes
                error.wire_bytes = wire_bytes
                error.final_url = error.final_url or transfer.target.url
                held.release()
                delay_seconds = _delay(error, attempt, settings, random)
                if delay_seconds is None:
                    raise
            await sleep(delay_seconds)
    finally:
        if held is not lease:
            held.release()


class _Transfer:
    """One attempt: from the first request to the end of the body. ``target`` is the hop it stands at."""

    __slots__ = ("_clock", "_headers", "_hooks", "_settings", "_transport", "body", "redirects", "target")

    def __init__(
        self,
        transport: GuardedTransport,
        settings: Settings,
        target: ParsedURL,
        lease: Lease,
        clock: Callable[[], float],
        hooks: Hooks,
        accept: str,
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._hooks = hooks
        self._headers = {"Accept": accept}
        self.target = target
        self.redirects = 0
        self.body = BodyReader(
            bytes_max=settings.image_bytes_max, rate_min=settings.transfer_rate_min, lease=lease, clock=clock
        )

    async def run(self, url: str, wire_bytes_before: int) -> Fetched:
        """Transfer within the deadline. Raises CandidateError only."""
        deadline_seconds = self._settings.transfer_seconds_max
        try:
            async with asyncio.timeout(deadline_seconds) as self.body.deadline:
                received, body = await self._follow()
        except TimeoutError as error:
            raise TransferError(
                Reason.TIMEOUT, f"the transfer was not over after {deadline_seconds:g} seconds"
            ) from error
        except RefusedError as error:
            raise error.refusal from error
        except httpx.TransportError as error:
            raise _translate(error) from error
        return Fetched(
            url=url,
            final_url=self.target.url,
            http_status=received.status,
            content_type=received.headers.get("Content-Type", ""),
            body=body,
            wire_bytes=wire_bytes_before + self.body.wire_bytes,
            redirects=self.redirects,
            headers=received.headers,
        )

    async def _follow(self) -> tuple[Received, bytes]:
        """Go from hop to hop by hand: each is checked as if it were the first. No redirect's body is read."""
        seen = {self.target.url}
        while True:
            received = await self._transport.send("GET", self.target.url, headers=self._headers)
            try:
                location = received.headers.get("Location") if received.status in _REDIRECTS else None
                if location is None:
                    return received, await self._receive(received)
            finally:
                received.release()
            await self._step(location, received.status)
            if self.target.url in seen:
                raise TransferError(
                    Reason.REDIRECTS, "the redirects go in a circle", http_status=received.status
                )
            seen.add(self.target.url)

    async def _step(self, location: str, status: int) -> None:
        self.redirects += 1
        if self.redirects > self._settings.redirects_max:
            raise TransferError(
                Reason.REDIRECTS, f"more than {self._settings.redirects_max} redirects", http_status=status
            )
        self.target = _next_target(self.target, location, status)
        if self._hooks.admit is not None:
            await self._hooks.admit(self.target)

    async def _receive(self, received: Received) -> bytes:
        _check_status(received)
        if self._hooks.header is not None:
            self._hooks.header(received.headers)
        try:
            body = await self.body.read(received)
        except CandidateError as error:
            error.http_status = received.status
            raise
        if not body:
            raise PictureError(Reason.NOT_AN_IMAGE, "the body is empty", http_status=received.status)
        return body


def _translate(error: httpx.TransportError) -> TransferError:
    reason = next(REASONS[base] for base in type(error).__mro__ if base in REASONS)
    transient = error.temporary if isinstance(error, ResolveError) else None
    return TransferError(reason, str(error) or type(error).__name__, transient=transient)


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
    wait_seconds = _retry_after(received.headers)
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


def _retry_after(headers: Mapping[str, str]) -> float | None:
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


def _delay(
    error: CandidateError, attempt: int, settings: Settings, random: randomness.Random
) -> float | None:
    """Say how long to wait before the next attempt; None ends the candidate."""
    if not error.transient or attempt >= settings.transfer_attempts:
        return None
    asked_seconds = error.retry_after_seconds or 0.0
    if asked_seconds > RETRY_AFTER_SECONDS_MAX:
        return None
    cap_seconds = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2.0 ** (attempt - 1))
    return max(asked_seconds, cap_seconds * random.uniform(0.5, 1.0))
