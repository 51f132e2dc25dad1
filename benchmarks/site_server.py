"""A web of many hosts in one process: a listening socket for each, all of them on loopback, with the faults of a
real web. It knows no more of HTTP than the benchmark needs. Run as a program; it imports nothing of the project.

Linux answers on every address of 127.0.0.0/8, so ``127.1.7.9`` is a host of its own without any name server or
set-up. A socket on 0.0.0.0 would do for all of them; it would also listen to the world.

    /p/NAME    a file of the folder      /t/N    a picture of 100 bytes that no other number has
    /h/…       never an answer           other   404
"""

import asyncio
import json
import signal
import socket
import ssl
import struct
import sys
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BACKLOG = 256
BURST_SECONDS = 0.5
"""A limited site lets so much of its rate through at once."""
RETRY_AFTER = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
FOUND = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"


@dataclass(slots=True)
class Site:
    """What all hosts share. ``rate`` is in requests per second; None: no limit."""

    folder: Path
    rate: float | None = None
    tokens: float = 0.0
    filled_at: float = 0.0
    counts: dict[str, int] = field(
        default_factory=lambda: {"requests": 0, "served": 0, "refused": 0, "open": 0, "open_max": 0}
    )
    first_at: float = 0.0
    last_at: float = 0.0

    def answer(self, path: str) -> bytes | None:
        """The whole response; None: there will be none."""
        now = time.monotonic()
        self.counts["requests"] += 1
        self.first_at = self.first_at or now
        if self.rate is not None and not self._admit(now):
            self.counts["refused"] += 1
            return RETRY_AFTER
        kind, _, name = path[1:].partition("/")
        if kind == "h":
            return None
        try:
            body = (self.folder / name).read_bytes() if kind == "p" else tiny(int(name))
        except (OSError, ValueError):
            return NOT_FOUND
        self.counts["served"] += 1
        self.last_at = now
        return FOUND % len(body) + body

    def _admit(self, now: float) -> bool:
        """Take a token of the bucket, if there is one."""
        assert self.rate is not None
        self.tokens = min(
            max(1.0, self.rate * BURST_SECONDS), self.tokens + (now - self.filled_at) * self.rate
        )
        self.filled_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def report(self) -> dict[str, float]:
        """What came to pass."""
        return self.counts | {"seconds": self.last_at - self.first_at}


def tiny(number: int) -> bytes:
    """A PNG of one pixel and a comment."""
    chunks = (
        (b"IHDR", b"\0\0\0\1\0\0\0\1\x08\0\0\0\0"),
        (b"tEXt", b"Comment\0%d" % number),
        (b"IDAT", zlib.compress(b"\0\7")),
        (b"IEND", b""),
    )
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


class Connection(asyncio.Protocol):
    """One client at one host, which answers each request after its own latency."""

    def __init__(self, site: Site, latency_seconds: float) -> None:
        self.site, self.latency_seconds = site, latency_seconds
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count it."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        counts = self.site.counts
        counts["open"] += 1
        counts["open_max"] = max(counts["open_max"], counts["open"])

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Count it."""
        self.site.counts["open"] -= 1

    def data_received(self, data: bytes) -> None:
        """Answer each request that is whole."""
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            path = self.received[:end].split(b" ", 2)[1].decode("ascii", "replace")
            self.received = self.received[end + 4 :]
            if (response := self.site.answer(path)) is not None:
                if self.latency_seconds:
                    asyncio.get_running_loop().call_later(self.latency_seconds, self.write, response)
                else:
                    self.write(response)

    def write(self, response: bytes) -> None:
        """Send a response, if somebody still waits for it."""
        if not self.transport.is_closing():
            self.transport.write(response)


def listen(address: str, port: int) -> socket.socket:
    """A listening socket; an address outside loopback is refused."""
    if not address.startswith("127."):
        raise SystemExit(f"{address} is not loopback")
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((address, port))
    opened.listen(BACKLOG)
    return opened


async def serve(given: dict[str, Any]) -> None:
    """Open every host, print ``ready``, serve until SIGTERM, print the report."""
    loop = asyncio.get_running_loop()
    site = Site(Path(given["folder"]), given["rate"])
    contexts: list[ssl.SSLContext] = []
    for certificate in given["certificates"]:
        contexts.append(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
        contexts[-1].load_cert_chain(certificate)
    servers = []
    for number, (address, latency_seconds) in enumerate(given["hosts"]):
        servers.append(
            await loop.create_server(
                lambda latency_seconds=latency_seconds: Connection(site, latency_seconds),
                sock=listen(address, given["port"]),
                ssl=contexts[number * len(contexts) // len(given["hosts"])] if contexts else None,
            )
        )
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    for server in servers:
        server.close()
    print(json.dumps(site.report()), flush=True)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text("utf-8"))))
