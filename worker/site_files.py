"""Fetching the files that a site keeps for crawlers, robots.txt and tdmrep.json: a few redirects, bounded in time
and bytes. It never judges what a file says.
"""

import asyncio
import datetime
import zlib
from dataclasses import dataclass

import httpx

from models.settings import Settings
from worker.address import ParsedURL, parse_url, resolve_location
from worker.body_memory import FREE_BYTES, Lease
from worker.coding import UnknownCodingError, make_decoder
from worker.errors import AddressError
from worker.robots import FILE_BYTES_MAX
from worker.transport import GuardedTransport, Received, RefusedError

REDIRECTS_MAX = 5
SECONDS_MAX = 30.0
"""For one file, all attempts and redirects together."""
ATTEMPTS = 2
PAUSE_SECONDS = 1.0
ACCEPT = "text/plain,*/*;q=0.5"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class SiteFile:
    """One answer: the URL that gave it, and the file, empty if there is none, up to FILE_BYTES_MAX bytes."""

    url: str
    body: bytes
    at: datetime.datetime


class UnreachableError(Exception):
    """The host answers, but the file could not be read; maybe not for long. The message says why."""


async def fetch_file(transport: GuardedTransport, url: ParsedURL, settings: Settings) -> SiteFile:
    """Ask for a file, once more after a pause if there was no usable answer.

    Raises UnreachableError; or httpx.TransportError when the host of ``url`` gave no answer at all.
    """
    seconds_max = min(SECONDS_MAX, settings.transfer_seconds_max)
    question = _Question(transport, url)
    try:
        async with asyncio.timeout(seconds_max):
            for _ in range(1, ATTEMPTS):
                try:
                    return await question.follow()
                except (RefusedError, httpx.TimeoutException):
                    raise
                except (UnreachableError, httpx.TransportError):
                    await asyncio.sleep(PAUSE_SECONDS)
            return await question.follow()
    except TimeoutError:
        message = f"there was no answer within {seconds_max:g} seconds"
        raise (UnreachableError if question.answered else httpx.ReadTimeout)(message) from None


class _Question:
    """One file that is asked for; ``answered`` once its host has said anything."""

    def __init__(self, transport: GuardedTransport, url: ParsedURL) -> None:
        self._transport = transport
        self._url = url
        self.answered = False

    async def follow(self) -> SiteFile:
        """Go from hop to hop; after REDIRECTS_MAX redirects there is no file (RFC 9309, section 2.3.1.2)."""
        target = self._url
        for hop in range(REDIRECTS_MAX + 1):
            try:
                received = await self._transport.send("GET", target.url, headers={"Accept": ACCEPT})
            except httpx.TransportError as error:
                if hop == 0:
                    raise
                raise UnreachableError(f"it is redirected to {target.host}: {error}") from error
            self.answered = True
            try:
                location = received.headers.get("Location") if received.status in _REDIRECTS else None
                if location is None:
                    return await _receive(self._transport, received, target)
            finally:
                received.release()
            try:
                target = resolve_location(target, location)
            except AddressError as error:
                message = f"it is redirected to what cannot be fetched: {error.detail}"
                raise UnreachableError(message) from error
        return SiteFile(target.url, b"", _now())


async def _receive(transport: GuardedTransport, received: Received, target: ParsedURL) -> SiteFile:
    status = received.status
    if status < 200 or status == 429 or status >= 500:
        raise UnreachableError(f"the server answered {status}")
    if not 200 <= status < 300:
        return SiteFile(target.url, b"", _now())
    try:
        with transport.memory.lease() as lease:
            return SiteFile(target.url, await _read(received, lease), _now())
    except httpx.TransportError as error:
        raise UnreachableError(f"it broke off: {error}") from error
    except (UnknownCodingError, zlib.error) as error:
        raise UnreachableError(f"its content coding cannot be undone: {error}") from error


async def _read(received: Received, lease: Lease) -> bytes:
    """The body, content coding undone, as far as it is read. What is large takes its share of the memory."""
    decoder = make_decoder(received.headers.get("Content-Encoding", ""))
    body = bytearray()
    while chunk := await received.read_some():
        for piece in decoder.feed(chunk) if decoder else (chunk,):
            body += piece
            if len(body) >= FILE_BYTES_MAX:
                return bytes(body[:FILE_BYTES_MAX])
        if len(body) > FREE_BYTES and not lease.held_bytes:
            await lease.reserve(FILE_BYTES_MAX)
    if decoder:
        decoder.finish()
    return bytes(body)


def file_of(origin: str, path: str) -> ParsedURL:
    """Where an origin keeps a file."""
    return parse_url(f"{origin}{path}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
