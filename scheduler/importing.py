"""Importing at the start of a process, while Python's collector rests: it would look through all modules often."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Modules are kept for good: looking for garbage among them took a ninth of the start of a scheduler."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
