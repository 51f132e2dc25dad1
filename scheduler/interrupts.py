"""Ctrl-C and SIGTERM while a command has parts: once is a clean stop, twice is now. Decides nothing else."""

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)

INTERRUPTED = 130
"""Exit code of a command that was interrupted, as shells have it (128 + SIGINT)."""


class Interrupts:
    """A context manager for the main thread. ``stop`` is set by the first signal, or by a part that failed.

    Until the command sets ``gentle``, the first signal raises KeyboardInterrupt: there is nothing to hand back.
    After that the first calls ``say`` with ``message``, the second ``hurry``, and a third raises
    KeyboardInterrupt wherever the command is.
    """

    def __init__(self, message: str, say: Callable[[str], None]) -> None:
        self.message = message
        self.say = say
        self.hurry: Callable[[], None] = lambda: None
        self.gentle = False
        self.stop = threading.Event()
        self.count = 0
        self._former: dict[signal.Signals, Any] = {}

    @property
    def interrupted(self) -> bool:
        """Whether a signal came."""
        return self.count > 0

    def __enter__(self) -> Self:
        self._former = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.stop.set()
        if not self.gentle:
            self.gentle = True
            raise KeyboardInterrupt
        if self.count == 1:
            self.say(self.message)
        elif self.count == 2:
            self.hurry()
        else:
            raise KeyboardInterrupt
