"""Put beside a process as its sitecustomize: its wall clock is wrong by what a mapped file says, at every moment.

The monotonic clock stays right, as it does on a machine whose clock is set.
"""

import datetime
import mmap
import os
import struct
import time

with open(os.environ["CHAOS_CLOCK"], "rb") as file:  # noqa: PTH123 - imported by every process: as little as possible.
    offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)

right, right_ns = time.time, time.time_ns


def shift() -> float:
    """Seconds by which this process is wrong."""
    return float(struct.unpack("d", offset[:8])[0])


class Shifted(datetime.datetime):
    """A datetime whose present is wrong."""

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> "Shifted":
        """The wrong present."""
        return cls.fromtimestamp(time.time(), tz)

    @classmethod
    def utcnow(cls) -> "Shifted":
        """The wrong present, without a zone."""
        return cls.now(datetime.UTC).replace(tzinfo=None)


time.time = lambda: right() + shift()
time.time_ns = lambda: right_ns() + int(shift() * 1e9)
datetime.datetime = Shifted  # type: ignore[misc]
