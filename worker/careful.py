"""Decoding in a helper process with limits of its own, for a chunk whose worker was lost: the picture that kills
the decoder costs one candidate then, and not the chunk. Holds the helper and is its program.

The helper never sees a URL, the database or the store, and what it answers is parsed as data only.
"""

import json
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
from worker.picture import Picture, inspect

BURY_SECONDS_MAX = 10


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
    """One helper process, started when it is needed and replaced when a picture has killed it. For one thread."""

    def __init__(self, settings: Settings, verification: Verification = Verification.FULL) -> None:
        self.settings = settings
        self.verification = verification
        # The helper's own end comes first: to be started, to get a body, to answer.
        self.seconds_max = careful_seconds_max(settings)
        self._helper: Helper | None = None

    def inspect(self, body: bytes) -> Picture:
        """Inspect ``body`` as ``worker.picture.inspect`` does, in the helper.

        Raises PictureError: what the helper found, or WORKER_LOST when it died of the picture or was not done
        after ``decode_seconds_max``. Raises HelperError when none can be started.
        """
        helper = self._helper if self._helper and self._helper.running else self._start()
        try:
            send(helper.connection, body, self.settings.decode_seconds_max)
            answer = json.loads(receive(helper.connection, self.settings.decode_seconds_max))
        except (OSError, ValueError):
            raise PictureError(Reason.WORKER_LOST, f"decoding it {self._bury(helper)}") from None
        if "reason" in answer:
            raise PictureError(Reason(answer["reason"]), str(answer["detail"]))
        answer |= {"format": ImageFormat(answer["format"]), "sha256": bytes.fromhex(answer["sha256"])}
        return Picture(**answer)

    def close(self) -> None:
        """End the helper."""
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.end()

    def _start(self) -> Helper:
        limits = {
            name: str(getattr(self.settings, name))
            for name in ("image_pixels_max", "image_frames_max", "decode_bytes_max", "decode_seconds_max")
        }
        self.close()
        self._helper = helper = Helper("decoder", "worker.careful", json.dumps(limits), self.verification)
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
    """The helper: a picture in, a description or a reason out, until the connection is closed."""
    settings, verification = read_settings(**json.loads(sys.argv[1])), Verification(sys.argv[2])
    connection = enter(OWN_BYTES + 2 * settings.decode_bytes_max)
    while True:
        try:
            body = receive(connection, None)
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
