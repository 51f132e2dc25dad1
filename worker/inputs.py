"""Where an input is read from: a path, standard input, a URL of the web, an object in a bucket. In blocks of bytes.

Must never have more of an input in memory than a block or two.
"""

import asyncio
import contextlib
import errno
import sys
import urllib.parse
import zlib
from collections.abc import AsyncGenerator, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from models.settings import Settings
from worker.address import parse_url
from worker.coding import UnknownCodingError, make_decoder
from worker.errors import AddressError
from worker.sources.url_list import BLOCK_BYTES
from worker.store import OBJECT_STORE_SCHEMES, RETRY
from worker.store import translate as translate_store
from worker.transport import GuardedTransport, RefusedError

STANDARD_INPUT = "-"
STANDARD_INPUT_NAME = "standard input"
REDIRECTS = frozenset({301, 302, 303, 307, 308})
GATHERED_BYTES = 256 * 1024
WAY_OUT = {
    404: "look at the address",
    401: "it wants a login, which a URL cannot give: download it, and give the file",
    403: "it wants a login, which a URL cannot give: download it, and give the file",
}
UNREADABLE = {
    errno.ENOENT: "does not exist",
    errno.EISDIR: "is a folder: give a file of URLs, one a line",
    errno.EACCES: "may not be read by you",
    errno.EPERM: "may not be read by you",
}


class InputError(Exception):
    """An input cannot be read. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input as it was given. Each call of ``opened`` reads it anew; standard input can be read once."""

    given: str
    settings: Settings

    @property
    def name(self) -> str:
        """What it is called in messages and job names; its end says its format."""
        if self.given == STANDARD_INPUT:
            return STANDARD_INPUT_NAME
        if self.scheme in {"http", "https", *OBJECT_STORE_SCHEMES}:
            parts = urllib.parse.urlsplit(self.given)
            path = urllib.parse.unquote(parts.path).rstrip("/")
            return storable(path.rpartition("/")[2] or parts.netloc)
        path = str(self.path or self.given)
        return storable(Path(path).name or path)

    @property
    def scheme(self) -> str:
        """``http``, ``s3``, …; none of a path."""
        scheme, separator, _ = self.given.partition("://")
        return scheme.lower() if separator else ""

    @property
    def path(self) -> Path | None:
        """Where it is on this machine; None: it is not, or is standard input."""
        if self.given == STANDARD_INPUT or self.scheme in {"http", "https", *OBJECT_STORE_SCHEMES}:
            return None
        if self.scheme == "file":
            return Path(urllib.parse.unquote(urllib.parse.urlsplit(self.given).path))
        return Path(self.given)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Iterator[bytes]]:
        """Its bytes in blocks of BLOCK_BYTES at most. They raise InputError."""
        if self.scheme in {"http", "https"}:
            blocks = _from_web(self.given, self.settings)
        elif self.scheme in OBJECT_STORE_SCHEMES:
            blocks = _from_bucket(self.given)
        else:
            blocks = self._from_file()
        with contextlib.closing(blocks):
            yield blocks

    def beginning(self, size: int) -> bytes:
        """Its first bytes, if it is a file here; nothing of what can be read only once."""
        if self.path is None:
            return b""
        try:
            if not self.path.is_file():
                return b""
            with self.path.open("rb") as file:
                return file.read(size)
        except OSError:
            return b""  # Whoever reads it says why.

    def _from_file(self) -> Generator[bytes, None, None]:
        try:
            if self.path is None:
                if sys.stdin is None:
                    raise InputError("Standard input (-) is closed.")
                while block := sys.stdin.buffer.read(BLOCK_BYTES):
                    yield block
            else:
                with self.path.open("rb") as file:
                    while block := file.read(BLOCK_BYTES):
                        yield block
        except OSError as error:
            reason = UNREADABLE.get(error.errno or 0) or f"cannot be read ({error.strerror or error})"
            raise InputError(f"{self.given} {reason}.") from None


def storable(name: str) -> str:
    """A file name need not be UTF-8, and a text in the database must be."""
    return name.encode("utf-8", "replace").decode()


def _from_bucket(url: str) -> Generator[bytes, None, None]:
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    try:
        driver = from_url(f"{scheme}://{bucket}", retry_config=RETRY)  # type: ignore[call-overload]
        for block in obstore.get(driver, path).stream(min_chunk_size=BLOCK_BYTES):
            whole = memoryview(block)
            for start in range(0, len(whole), BLOCK_BYTES):
                yield bytes(whole[start : start + BLOCK_BYTES])
    except (BaseError, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{translate_store(f'{url} cannot be read', error)}.") from None


def _from_web(url: str, settings: Settings) -> Generator[bytes, None, None]:
    """Through the guarded door, on an event loop of its own that runs while a block is waited for."""
    loop = asyncio.new_event_loop()
    stream = _download(url, settings)
    try:
        while block := loop.run_until_complete(_gathered(stream)):
            yield block
    finally:
        loop.run_until_complete(stream.aclose())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def _gathered(stream: AsyncGenerator[bytes, None]) -> bytes:
    """Small pieces as one; nothing at the end."""
    pieces = []
    size = 0
    async for piece in stream:
        pieces.append(piece)
        size += len(piece)
        if size >= GATHERED_BYTES:
            break
    return b"".join(pieces)


async def _download(url: str, settings: Settings) -> AsyncGenerator[bytes, None]:
    """The body at a URL, after redirects, without a deadline for the whole. Raises InputError."""
    transport = GuardedTransport(settings)
    try:
        target = url
        for _ in range(settings.redirects_max + 1):
            received = await transport.send("GET", parse_url(target).url)
            try:
                if received.status in REDIRECTS and "Location" in received.headers:
                    target = urllib.parse.urljoin(target, received.headers["Location"])
                    continue
                if received.status != 200:
                    way_out = WAY_OUT.get(received.status, "try again later")
                    raise InputError(f"{url} cannot be read: it answers {received.status}; {way_out}.")
                decoder = make_decoder(received.headers.get("Content-Encoding", ""))
                while piece := await received.read_some():
                    for part in decoder.feed(piece) if decoder else (piece,):
                        yield part
                if decoder:
                    decoder.finish()
                return
            finally:
                received.release()
        raise InputError(f"{url} cannot be read: it is redirected more than {settings.redirects_max} times.")
    except RefusedError as error:
        raise InputError(
            f"{url} is refused: {error.refusal.detail}; name your own network in PIXTRAWL_ALLOWED_NETWORKS."
        ) from None
    except (AddressError, UnknownCodingError, httpx.TransportError, zlib.error, ValueError) as error:
        raise InputError(f"{url} cannot be read: {error or type(error).__name__}.") from None
    finally:
        await transport.aclose()
