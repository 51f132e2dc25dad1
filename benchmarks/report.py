"""The machine that figures were measured on, in words."""

import os
import platform
from pathlib import Path


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
