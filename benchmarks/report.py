"""The benchmark's figures in words: the machine, the table, the ratios. It measures nothing itself."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from string import Template

from benchmarks.contenders import PROCESSES, THREADS, Timing

TEMPLATE = Path(__file__).with_name("performance.template.md")
OURS, FLOOR, SHRUNK_FLOOR, IMG2DATASET = "pixtrawl", "floor", "floor-shrunk", "img2dataset"
NAMES = {
    OURS: "Pixtrawl: `pixtrawl run`",
    FLOOR: "the floor, JPEGs decoded in full",
    SHRUNK_FLOOR: "the floor, JPEGs decoded as Pixtrawl does",
    IMG2DATASET: "img2dataset 1.47, its defaults",
}


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the figures depend on beside the contenders."""

    images: int
    mean_bytes: float
    server: str
    date: str


def machine() -> str:
    """Processor, cores and kernel in one sentence."""
    cores = f"{os.cpu_count()} logical processors{siblings()}"
    system = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    return f"{processor()}, {cores}, {system}"


def processor() -> str:
    """Name of the processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n")
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine()
    )


def siblings() -> str:
    """Say so when the first processor shares its core with others."""
    try:
        shared = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list").read_text("utf-8").strip()
    except OSError:
        return ""
    return f" (number {shared} on one core)" if shared != "0" else ""


def table(rounds: Sequence[Mapping[str, Timing]], images: int) -> list[str]:
    """Median images per second of each contender over the rounds, at work and by the wall clock."""
    lines = [
        "| contender | images/s at work | least to most | images/s by the wall clock |",
        "|---|---|---|---|",
    ]
    for name in rounds[0]:
        work = [images / timings[name].work_seconds for timings in rounds]
        wall = [images / timings[name].wall_seconds for timings in rounds]
        spread = f"{min(work):.0f} to {max(work):.0f}"
        lines.append(f"| {NAMES[name]} | {median(work):.0f} | {spread} | {median(wall):.0f} |")
    return lines


def ratios(rounds: Sequence[Mapping[str, Timing]]) -> list[str]:
    """How Pixtrawl's rate stands to each other one's: the median of the rounds' own ratios."""
    lines = ["| Pixtrawl against | at work | least to most | by the wall clock |", "|---|---|---|---|"]
    for name in rounds[0]:
        if name == OURS:
            continue
        work = [timings[name].work_seconds / timings[OURS].work_seconds for timings in rounds]
        wall = [timings[name].wall_seconds / timings[OURS].wall_seconds for timings in rounds]
        spread = f"{min(work):.2f} to {max(work):.2f}"
        lines.append(f"| {NAMES[name]} | {median(work):.2f} | {spread} | {median(wall):.2f} |")
    return lines


def page(rounds: Sequence[Mapping[str, Timing]], circumstances: Circumstances) -> str:
    """docs/performance.md, from the template beside this file."""
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        machine=machine(),
        date=circumstances.date,
        images=f"{circumstances.images:,}",
        kilobytes=f"{circumstances.mean_bytes / 1000:.0f}",
        server=circumstances.server,
        processes=PROCESSES,
        threads=THREADS,
        rounds=len(rounds),
        rates="\n".join(table(rounds, circumstances.images)),
        ratios="\n".join(ratios(rounds)),
    )
