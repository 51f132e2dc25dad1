"""What this process keeps of the memory that it frees, and what one call may take: on Linux only."""

import contextlib
import ctypes
import resource
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

LARGE_BYTES = 4 * 1024 * 1024

KEPT_BYTES = 16 * 1024 * 1024

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_STATM = Path("/proc/self/statm")
_one_at_a_time = threading.Lock()


def give_large_blocks_back() -> None:
    """Let blocks of four megabytes and more go back to the system as soon as they are freed.

    glibc raises its own limit for that to 32 MB with the first large pictures, and then keeps what lies between
    others: a child that had decoded six pictures of 16 to 50 megapixels held 550 MB at its peak, and 355 with this.

    Of smaller ones 16 megabytes are kept. Once the other limit is set, glibc's own is 128 KiB: the memory of each
    picture went back and was asked for again, page by page: a third of the time that Pillow takes for a WebP.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # Another C library needs no telling.
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)
            library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def data_bytes() -> int:
    """What this process has taken of memory for data so far; 0 where nobody tells."""
    if sys.platform != "linux":
        return 0
    return int(_STATM.read_text().split()[5]) * resource.getpagesize()


@contextlib.contextmanager
def bounded_memory(size: int) -> Iterator[None]:
    """Let this process grow by ``size`` bytes at most inside the block; what asks for more is refused.

    One block at a time, in all threads. The other threads share what is left, so ``size`` must leave them room.
    """
    if sys.platform != "linux":
        yield
        return
    with _one_at_a_time:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limit = data_bytes() + size
        if soft != resource.RLIM_INFINITY:
            limit = min(limit, soft)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
