"""Decoding in a helper process with limits of its own: of large pictures, for which a child has no memory, and of
all those of a chunk whose worker was lost, so that what kills the decoder costs one candidate and not the chunk.
Holds the helper and is its program.

The helper never sees a URL, the database or the store, and what it answers is parsed as data only.
"""

import contextlib
import json
import math
import sys
import time
from dataclasses import asdict
from typing import Any

from models.outcomes import ImageFormat, Reason, Verification
from models.settings import Settings, read_settings
from worker.errors import PictureError
from worker.helper import (
    OUTLIVED_SECONDS,
    OWN_BYTES,
    START_SECONDS_MAX,
    Helper,
    HelperError,
    enter,
    limit_processor_time,
    receive,
    send,
)
from worker.memory import give_large_blocks_back
from worker.picture import ElsewhereError, Picture, decoding_bytes, inspect
from worker.room import ROOM
from worker.watchdog import Watchdog, Work

HERE_BYTES_MAX = 32 * 1024 * 1024
"""What decoding one picture may take in a child itself: one of two megapixels in AVIF, of six in PNG or lossless
WebP, of ten in a progressive JPEG, of fifty in any other.
"""
AT_ONCE_BYTES_MAX = 8 * 1024 * 1024
"""The same in its event loop, beside what the decoder thread is at."""
BURY_SECONDS_MAX = 10
IDLE_SECONDS = 60.0
"""A helper that has had nothing to do for so long ends: it has 64 MB by itself."""


class PlainDecoder:
    """Pictures are decoded in this process, which ends when a decoder hangs; large ones by ``large``, which lives
    as long as its child.
    """

    def __init__(
        self,
        settings: Settings,
        verification: Verification,
        watchdog: Watchdog,
        large: "CarefulDecoder",
    ) -> None:
        self.settings = settings
        self.verification = verification
        self._watchdog = watchdog
        self._large = large

    def inspect(self, body: bytes) -> Picture:
        """Inspect ``body``. Raises PictureError; HelperError when a large picture has no helper."""
        try:
            with self._watchdog.timing(Work.DECODE, self.settings.decode_seconds_max):
                return inspect(body, self.settings, self.verification, here_bytes_max=HERE_BYTES_MAX)
        except ElsewhereError as error:
            return self._large.inspect_large(body, error.decoding_bytes)

    def inspect_at_once(self, body: bytes) -> Picture | None:
        """Inspect ``body`` in the event loop if that takes no longer than the way to a thread and back is worth.

        None: it is for ``inspect``. Raises PictureError.
        """
        with contextlib.suppress(ElsewhereError):
            return inspect(
                body, self.settings, self.verification, here_bytes_max=AT_ONCE_BYTES_MAX, quickly=True
            )
        return None

    def close(self) -> None:
        """Nothing to end."""


class CarefulDecoder:
    """One helper process, started when it is needed, replaced when a picture has killed it, and gone when it had
    nothing to do for a while. For one thread.
    """

    def __init__(
        self,
        settings: Settings,
        verification: Verification = Verification.FULL,
        watchdog: Watchdog | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.settings = settings
        self.verification = verification
        self._watchdog = watchdog or Watchdog()
        self._idle_seconds = idle_seconds
        self._helper: Helper | None = None
        self._used_at = 0.0

    def inspect(self, body: bytes) -> Picture:
        """Inspect ``body`` as ``worker.picture.inspect`` does, in the helper.

        Raises PictureError: what the helper found, or WORKER_LOST when it died of the picture or was not done
        after ``decode_seconds_max``. Raises HelperError when none can be started.
        """
        needed_bytes = decoding_bytes(body, self.verification)
        if needed_bytes > HERE_BYTES_MAX:
            return self.inspect_large(body, needed_bytes)
        return self._inspect(body)

    def inspect_at_once(self, body: bytes) -> None:
        """None: nothing is decoded in this process."""

    def inspect_large(self, body: bytes, needed_bytes: int) -> Picture:
        """Inspect a picture of which is known what it takes, when there is room. Raises what ``inspect`` does."""
        # Others may take as long as they are allowed to: waiting for them is never overdue.
        waiting = self._watchdog.timing(Work.DECODE, math.inf)
        with waiting, ROOM.taken(needed_bytes, self.settings.decode_bytes_max):
            return self._inspect(body)

    def _inspect(self, body: bytes) -> Picture:
        # The helper's own end comes first: to be started, to get a body, to answer.
        with self._watchdog.timing(Work.DECODE, careful_seconds_max(self.settings)):
            helper = self._ready()
            try:
                send(helper.connection, body, self.settings.decode_seconds_max)
                answer = json.loads(receive(helper.connection, self.settings.decode_seconds_max))
            except (OSError, ValueError):
                raise PictureError(Reason.WORKER_LOST, f"decoding it {self._bury(helper)}") from None
        self._used_at = time.monotonic()
        if "reason" in answer:
            raise PictureError(Reason(answer["reason"]), str(answer["detail"]))
        answer |= {"format": ImageFormat(answer["format"]), "sha256": bytes.fromhex(answer["sha256"])}
        return Picture(**answer)

    def close(self) -> None:
        """End the helper."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.end()

    def _ready(self) -> Helper:
        """The helper, or a new one instead of one that may be about to leave."""
        helper, idle_seconds = self._helper, time.monotonic() - self._used_at
        if helper and helper.running and idle_seconds < self._idle_seconds / 2:
            return helper
        return self._start()

    def _start(self) -> Helper:
        limits = {
            name: str(getattr(self.settings, name))
            for name in ("image_pixels_max", "image_frames_max", "decode_bytes_max", "decode_seconds_max")
        }
        self.close()
        arguments = (json.dumps(limits), self.verification, str(self._idle_seconds))
        self._helper = helper = Helper("decoder", "worker.careful", *arguments)
        try:
            receive(helper.connection, START_SECONDS_MAX)
        except OSError:
            raise HelperError(f"starting it {self._bury(helper)}") from None
        return helper

    def _bury(self, helper: Helper) -> str:
        """End the helper if it still runs; how it ended, as the end of a sentence."""
        self._helper = None
        time.sleep(OUTLIVED_SECONDS)
        return helper.end() or f"took longer than {self.settings.decode_seconds_max:g} seconds"


def careful_seconds_max(settings: Settings) -> float:
    """The longest that one picture may occupy the helper and its owner."""
    return START_SECONDS_MAX + 2 * settings.decode_seconds_max + BURY_SECONDS_MAX


def main() -> None:
    """The helper: a picture in, a description or a reason out, until the connection is closed or nothing comes."""
    give_large_blocks_back()
    settings, verification = read_settings(**json.loads(sys.argv[1])), Verification(sys.argv[2])
    connection = enter(OWN_BYTES + 2 * settings.decode_bytes_max)
    while True:
        try:
            body = receive(connection, float(sys.argv[3]))
        except OSError:
            return
        limit_processor_time(settings.decode_seconds_max)
        send(connection, json.dumps(_describe(body, settings, verification)).encode(), START_SECONDS_MAX)


def _describe(body: bytes, settings: Settings, verification: Verification) -> dict[str, Any]:
    try:
        picture = inspect(body, settings, verification)
    except PictureError as error:
        return {"reason": error.reason.value, "detail": error.detail}
    return asdict(picture) | {"format": picture.format.value, "sha256": picture.sha256.hex()}


if __name__ == "__main__":
    main()
