"""A store that is full, read-only, gone or not synced, and commits that fail after the objects were written."""

import contextlib
import ctypes
import random
import resource
import time
from collections.abc import Iterable
from pathlib import Path

from chaos.processes import until
from chaos.registry import fault
from chaos.system import System
from chaos.traps import TRAP_SECONDS_MAX, WORKER, kill_owner

AT_FDCWD, RENAME_EXCHANGE = -100, 2
PARKED = "SELECT id FROM job_chunks WHERE status = 'pending' AND available_at IS NOT NULL"


@fault(full=10, deadline_seconds=120)
def store_replaced_by_a_file(system: System, chance: random.Random) -> None:
    """The folder of the jobs' images becomes a file, so that nothing can be written; later it is there again."""
    jobs, aside = system.store / "jobs", system.store / "jobs.aside"
    jobs.mkdir(exist_ok=True)
    aside.touch()
    exchange(jobs, aside)
    try:
        until(lambda: system.query(PARKED), "a chunk that is parked")
        time.sleep(chance.uniform(0, 2))
    finally:
        exchange(jobs, aside)
        aside.unlink()


def exchange(one: Path, other: Path) -> None:
    """Swap two names in one step: in between, a worker would make the missing folder anew."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.renameat2(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), f"cannot exchange {one} and {other}")


@fault(full=10, deadline_seconds=120)
def disk_full(system: System, chance: random.Random) -> None:
    """No worker can write a byte to a file for a while (RLIMIT_FSIZE), its own log included."""
    pids = [pid for worker in system.workers for pid in worker.members()]
    _limit_files(pids, 0)
    try:
        until(lambda: system.query(PARKED), "a chunk that is parked")
        time.sleep(chance.uniform(0, 2))
    finally:
        _limit_files([pid for worker in system.workers for pid in worker.members()], resource.RLIM_INFINITY)


def _limit_files(pids: Iterable[int], size: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


@fault(full=15)
def objects_written_and_commit_lost(system: System, _chance: random.Random) -> None:
    """SIGKILL between the write of the objects and the COMMIT of the rows that name them."""
    with system.database.trap(b"INSERT INTO images", who=WORKER, held=True, answered=True) as trap:
        trap.wait(TRAP_SECONDS_MAX)
        kill_owner(trap)


@fault(full=50)
def objects_written_and_commit_refused(system: System, _chance: random.Random) -> None:
    """The connection is cut between the write of the objects and the COMMIT of the rows that name them."""
    with system.database.trap(b"INSERT INTO images", who=WORKER, answered=True) as trap:
        trap.wait(TRAP_SECONDS_MAX)
