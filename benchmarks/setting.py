"""What every part of the benchmark is given, and what it gives back."""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.settings import Settings

ORDER_SEED = 7


@dataclass(frozen=True, slots=True)
class Bench:
    """``settings`` name a home in which services run, for commands that find them there; ``services`` name their
    URLs. ``scratch`` is gone afterwards. ``others`` says that img2dataset and Scrapy are installed.
    """

    options: argparse.Namespace
    scratch: Path
    pictures: Path
    settings: Settings
    services: Settings
    others: bool

    def names(self) -> list[str]:
        """The pictures' file names in an order that is the same in every run. Each is read once, so that who serves
        them reads from memory, in the first run, too.
        """
        names = sorted(path.name for path in self.pictures.iterdir())
        for name in names:
            (self.pictures / name).read_bytes()
        random.Random(ORDER_SEED).shuffle(names)
        return names

    def mean_kilobytes(self, names: Sequence[str]) -> float:
        """Mean size of the pictures."""
        return sum((self.pictures / name).stat().st_size for name in names) / len(names) / 1000


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page in Markdown, and the drawing that belongs to it, as SVG."""

    text: str
    drawing: str | None = None


def listed(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return lines + [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
