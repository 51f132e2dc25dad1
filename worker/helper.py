"""A helper process of a pool child: how it starts, what bounds it, how it ends, and the messages between the two.

A message is its length and its bytes, over a socket pair: when the owner is gone, however it ended, so is the
helper. Knows nothing of what helpers are for.
"""

import asyncio
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping

OWN_BYTES = 512 * 1024 * 1024
"""Address space of the interpreter and its libraries."""
START_SECONDS_MAX = 60
OUTLIVED_SECONDS = 1.0
"""A helper's death tells something once its owner has outlived it by so long: who kills all of a worker's processes
is over with it by then.
"""
READY = b"ready"
"""A helper's first message."""

_LENGTH = struct.Struct("!I")
_PART_BYTES = 1024 * 1024


class HelperError(Exception):
    """No helper can be started: that tells nothing of any candidate."""


class Helper:
    """One running helper, ``python -m MODULE ARGUMENTS``; ``name`` is what messages call it."""

    def __init__(
        self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it; its first message is still to be read. Raises HelperError."""
        self.name = name
        self.connection, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", module, *arguments]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=environment
                )
            except OSError as error:
                self.connection.close()
                raise HelperError(f"the {name} cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def end(self) -> str | None:
        """Kill it if it runs: None; else how it had ended, as the end of a sentence."""
        self.connection.close()
        ended = not self.running
        self._process.kill()
        code = self._process.wait()
        if not ended:
            return None
        name = next((known.name for known in signal.Signals if known == -code), f"signal {-code}")
        return f"ended the {self.name} with {name if code < 0 else f'exit code {code}'}"


def send(connection: socket.socket, message: bytes, seconds: float) -> None:
    """One message. Raises OSError when the other side is gone, or busy for so long."""
    connection.settimeout(seconds)
    connection.sendall(_LENGTH.pack(len(message)))
    connection.sendall(message)


def receive(connection: socket.socket, seconds: float | None) -> bytes:
    """One message. Raises TimeoutError after ``seconds`` in all, ConnectionError when the other side is gone."""
    deadline = None if seconds is None else time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size, deadline))
    return _read(connection, length, deadline)


def _read(connection: socket.socket, length: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        connection.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
        _add(parts, connection.recv(min(length - len(parts), _PART_BYTES)))
    return bytes(parts)


def _add(parts: bytearray, part: bytes) -> None:
    if not part:
        raise ConnectionError("the other side is gone")
    parts += part


async def tell(connection: socket.socket, message: bytes) -> None:
    """One message, on the running loop. The connection does not block."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(connection, _LENGTH.pack(len(message)))
    await loop.sock_sendall(connection, message)


async def hear(connection: socket.socket, bytes_max: int) -> bytes:
    """One message, on the running loop. Raises ConnectionError when the other side is gone, ValueError when the
    message is longer than it may be.
    """
    (length,) = _LENGTH.unpack(await _hear(connection, _LENGTH.size))
    if length > bytes_max:
        raise ValueError(f"a message has {length} bytes")
    return await _hear(connection, length)


async def _hear(connection: socket.socket, length: int) -> bytes:
    loop, parts = asyncio.get_running_loop(), bytearray()
    while len(parts) < length:
        _add(parts, await loop.sock_recv(connection, min(length - len(parts), _PART_BYTES)))
    return bytes(parts)


def enter(memory_bytes: int) -> socket.socket:
    """Begin a helper's life, within its bounds, and say so: its end of the connection.

    Signals to whole groups of processes (Ctrl-C, a container that stops) are for its owner to heed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    leave_with_parent()
    connection = socket.socket(fileno=sys.stdin.fileno())
    send(connection, READY, START_SECONDS_MAX)
    return connection


def limit_processor_time(seconds: float) -> None:
    """So much more from now on: the end of a helper that nobody is there any more to end."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def leave_with_parent() -> None:
    """End this process when its parent is gone: nothing of a worker outlives one that was killed by SIGKILL."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
