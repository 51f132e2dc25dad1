"""Processor time and memory of a system's processes by kind, looked up in /proc while it runs."""

import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

LOOK_SECONDS = 0.1
TICKS = os.sysconf("SC_CLK_TCK")
PAGE_MEGABYTES = os.sysconf("SC_PAGE_SIZE") / 1_000_000
SERVERS = (("postgres", "PostgreSQL"), ("valkey", "Valkey"), ("redis", "Valkey"), ("nginx", "web server"))
COMMANDS = ("worker", "scheduler", "run")
CHILD = "worker's children"


@dataclass(slots=True)
class Usage:
    """Sums by kind of process. What a process did in its last tenth of a second is not seen."""

    kinds: dict[int, str] = field(default_factory=dict)
    before: dict[int, float] = field(default_factory=dict)
    after: dict[int, float] = field(default_factory=dict)
    peaks: dict[int, float] = field(default_factory=dict)

    def seconds(self) -> dict[str, float]:
        """Seconds of processor time by kind."""
        sums: dict[str, float] = defaultdict(float)
        for pid, seconds in self.after.items():
            sums[self.kinds[pid]] += seconds - self.before.get(pid, 0)
        return dict(sums)

    def megabytes(self) -> dict[str, float]:
        """The most memory (resident, shared pages included) of one process of each kind."""
        peaks: dict[str, float] = defaultdict(float)
        for pid, megabytes in self.peaks.items():
            peaks[self.kinds[pid]] = max(peaks[self.kinds[pid]], megabytes)
        return dict(peaks)

    def look(self, mark: str) -> None:
        """Look at every process that names ``mark`` in its command line or environment, and at their children."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    self._look_at(int(entry.name), mark)
                except (OSError, ValueError, IndexError):
                    continue  # It has ended meanwhile.

    def _look_at(self, pid: int, mark: str) -> None:
        folder = Path("/proc") / str(pid)
        fields = (folder / "stat").read_text("utf-8", "replace").rpartition(") ")[2].split()
        parent = int(fields[1])
        if pid not in self.kinds:
            kind = _kind(folder, self.kinds.get(parent, ""), mark)
            if not kind:
                return
            self.kinds[pid] = kind
        self.after[pid] = (int(fields[11]) + int(fields[12])) / TICKS
        self.peaks[pid] = max(self.peaks.get(pid, 0), int(fields[21]) * PAGE_MEGABYTES)


def _kind(folder: Path, of_parent: str, mark: str) -> str:
    words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    for name, kind in SERVERS:
        if name in words[0] and (of_parent == kind or mark in "\0".join(words)):
            return kind
    if mark not in (folder / "environ").read_bytes().decode("utf-8", "replace"):
        return ""
    if of_parent in {"worker", CHILD}:
        return CHILD
    return next((command for command in COMMANDS if command in words), "others")


@contextmanager
def watching(mark: str | Path) -> Iterator[Usage]:
    """Watch until the context is left."""
    usage = Usage()
    usage.look(str(mark))
    usage.before = dict(usage.after)
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(LOOK_SECONDS):
            usage.look(str(mark))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()
