"""Decoding in a helper process with limits of its own, for a chunk whose worker was lost: the picture that kills
the decoder costs one candidate then, and not the chunk. Holds the helper and is its program.

The helper never sees a URL, the database or the store, and what it answers is parsed as data only.
"""

import contextlib
import json
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import asdict
from typing import Any

from models.outcomes import ImageFormat, Reason, Verification
from models.settings import Settings, read_settings
from worker.errors import PictureError
from worker.picture import Picture, inspect

OWN_BYTES = 512 * 1024 * 1024
"""Address space of the interpreter and its libraries."""
START_SECONDS_MAX = 60
BURY_SECONDS_MAX = 10
READY: dict[str, Any] = {}

_LENGTH = struct.Struct("!I")


class PlainDecoder:
    """No helper: pictures are decoded in this process, which ends when a decoder hangs."""

    def __init__(self, settings: Settings, verification: Verification = Verification.FULL) -> None:
        self.settings = settings
        self.verification = verification
        self.seconds_max = settings.decode_seconds_max

    def inspect(self, body: bytes) -> Picture:
        """Inspect ``body``. Raises PictureError."""
        return inspect(body, self.settings, self.verification)

    def close(self) -> None:
        """Nothing to end."""


class CarefulDecoder:
    """One helper process, started when it is needed and replaced when a picture has killed it.

    For one thread. The helper ends with its owner: its end of the connection is closed then.
    """

    def __init__(self, settings: Settings, verification: Verification = Verification.FULL) -> None:
        self.settings = settings
        self.verification = verification
        # The helper's own end comes first: to be started, to get a body, to answer.
        self.seconds_max = START_SECONDS_MAX + 2 * settings.decode_seconds_max + BURY_SECONDS_MAX
        self._helper: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def inspect(self, body: bytes) -> Picture:
        """Inspect ``body`` as ``worker.picture.inspect`` does, in the helper.

        Raises PictureError: what the helper found, or WORKER_LOST when it died of the picture or was not done
        after ``decode_seconds_max``. Raises RuntimeError when no helper can be started.
        """
        connection = self._connection or self._start()
        try:
            _send(connection, body, self.settings.decode_seconds_max)
            answer = json.loads(_receive(connection, self.settings.decode_seconds_max))
        except (OSError, ValueError):
            raise PictureError(Reason.WORKER_LOST, f"decoding it {self._bury()}") from None
        if "reason" in answer:
            raise PictureError(Reason(answer["reason"]), str(answer["detail"]))
        answer |= {"format": ImageFormat(answer["format"]), "sha256": bytes.fromhex(answer["sha256"])}
        return Picture(**answer)

    def close(self) -> None:
        """End the helper."""
        if self._helper is not None:
            self._bury()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        limits = {
            name: str(getattr(self.settings, name))
            for name in ("image_pixels_max", "image_frames_max", "decode_bytes_max", "decode_seconds_max")
        }
        with theirs:
            self._helper = subprocess.Popen(
                [sys.executable, "-P", "-m", "worker.careful", json.dumps(limits), self.verification],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self._connection = ours
        try:
            json.loads(_receive(ours, START_SECONDS_MAX))
        except (OSError, ValueError):
            raise RuntimeError(f"the helper that decodes {self._bury()} before it was ready") from None
        return ours

    def _bury(self) -> str:
        """End the helper if it still lives; how it ended, as the end of a sentence."""
        helper, connection = self._helper, self._connection
        self._helper = self._connection = None
        if helper is None or connection is None:
            return "was given up"
        connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            helper.wait(0.5)  # A dying process may still be writing its memory back.
        overdue = helper.poll() is None
        helper.kill()
        helper.wait()
        if overdue:
            return f"took longer than {self.settings.decode_seconds_max:g} seconds"
        if helper.returncode < 0:
            return f"ended the decoder with {signal.Signals(-helper.returncode).name}"
        return f"ended the decoder with exit code {helper.returncode}"


def _send(connection: socket.socket, message: bytes, seconds: float) -> None:
    connection.settimeout(seconds)
    connection.sendall(_LENGTH.pack(len(message)) + message)


def _receive(connection: socket.socket, seconds: float | None) -> bytes:
    """One message. Raises TimeoutError after ``seconds`` in all, ConnectionError when the other side is gone."""
    deadline = None if seconds is None else time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_read(connection, _LENGTH.size, deadline))
    return _read(connection, length, deadline)


def _read(connection: socket.socket, length: int, deadline: float | None) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        connection.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
        part = connection.recv(min(length - len(parts), 1024 * 1024))
        if not part:
            raise ConnectionError("the other side is gone")
        parts += part
    return bytes(parts)


def main() -> None:
    """The helper: a picture in, a description or a reason out, until the connection is closed."""
    settings, verification = read_settings(**json.loads(sys.argv[1])), Verification(sys.argv[2])
    memory = OWN_BYTES + 2 * settings.decode_bytes_max
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection = socket.socket(fileno=sys.stdin.fileno())
    _send(connection, json.dumps(READY).encode(), START_SECONDS_MAX)
    while True:
        try:
            body = _receive(connection, None)
        except OSError:
            return
        _limit_processor_time(settings.decode_seconds_max)
        _send(connection, json.dumps(_describe(body, settings, verification)).encode(), START_SECONDS_MAX)


def _limit_processor_time(seconds: float) -> None:
    """So much more for the next picture: the helper's end if nobody is there any more to end it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def _describe(body: bytes, settings: Settings, verification: Verification) -> dict[str, Any]:
    try:
        picture = inspect(body, settings, verification)
    except PictureError as error:
        return {"reason": error.reason.value, "detail": error.detail}
    return asdict(picture) | {"format": picture.format.value, "sha256": picture.sha256.hex()}


if __name__ == "__main__":
    main()
