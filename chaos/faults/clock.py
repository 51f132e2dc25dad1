"""Machines whose wall clocks are wrong, and clocks that jump: PostgreSQL's is the only one that decides."""

import os
import random
import shutil
import struct
import time
from pathlib import Path

from chaos.processes import until
from chaos.registry import fault
from chaos.system import System

SHIM = Path(__file__).parent.parent / "shifted_clock.py"
HOUR = 3600.0


@fault(full=5, deadline_seconds=120)
def clock_jumps(system: System, chance: random.Random) -> None:
    """The wall clocks of a worker and of the scheduler jump by up to a day, back and forth, while they work."""
    folder = system.folder / "clock"
    folder.mkdir(exist_ok=True)
    shutil.copyfile(SHIM, folder / "sitecustomize.py")
    offset = folder / "offset"
    offset.touch()
    _shift(offset, 0)
    victims = [system.workers[0], system.schedulers[0]]
    for part in victims:
        if "CHAOS_CLOCK" not in part.environment:
            part.stop()
            path = f"{folder}{os.pathsep}{part.environment.get('PYTHONPATH', '')}".rstrip(os.pathsep)
            part.environment |= {"PYTHONPATH": path, "CHAOS_CLOCK": str(offset)}
            part.start()
    until(lambda: system.seen(system.workers[0]), "a worker with another clock")
    for hours in (*[chance.uniform(-24, 24) for _ in range(4)], 0):
        _shift(offset, hours * HOUR)
        time.sleep(chance.uniform(1, 5) if system.full else 0.7)


def _shift(offset: Path, seconds: float) -> None:
    """Written in place: the parts have the file mapped."""
    with offset.open("r+b") as file:
        file.write(struct.pack("d", seconds))
