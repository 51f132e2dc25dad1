"""What a fault is, and the list of all: a function in chaos/faults/ with the decorator of this module is one."""

import importlib
import pkgutil
import random
from collections.abc import Callable
from dataclasses import dataclass

from chaos.system import System

NOUNS = ("workers", "schedulers", "broker", "database", "storage", "money", "clock", "people", "storms")
Inject = Callable[[System, random.Random], None]


class BrokenPromiseError(Exception):
    """A fault saw what must not happen. The message is one sentence."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break things. ``inject`` does it once and undoes what does not heal by itself.

    It is injected ``full`` times by ``make chaos`` and once by ``make test``, at random moments while
    work goes on, at most ``gap_seconds`` apart. ``poison`` candidates that no decoder survives are in the first
    list. All must have ended ``deadline_seconds`` after the last injection.
    """

    name: str
    noun: str
    sentence: str
    inject: Inject
    full: int
    gap_seconds: float
    poison: int
    deadline_seconds: float


FAULTS: dict[str, Fault] = {}


def fault(
    *, full: int, gap_seconds: float = 0.5, poison: int = 0, deadline_seconds: float = 90
) -> Callable[[Inject], Inject]:
    """Register a function as a fault: its name and its docstring's first line are those of the fault."""

    def register(inject: Inject) -> Inject:
        name = inject.__name__
        noun = inject.__module__.rpartition(".")[2]
        sentence = (inject.__doc__ or "").strip().partition("\n")[0]
        FAULTS[name] = Fault(name, noun, sentence, inject, full, gap_seconds, poison, deadline_seconds)
        return inject

    return register


def load() -> dict[str, Fault]:
    """Every fault there is, by noun and then as they stand in their files."""
    import chaos.faults

    for module in pkgutil.iter_modules(chaos.faults.__path__):
        importlib.import_module(f"chaos.faults.{module.name}")
    order = {noun: place for place, noun in enumerate(NOUNS)}
    return dict(sorted(FAULTS.items(), key=lambda item: order.get(item[1].noun, len(order))))
