"""The system's own PostgreSQL and Valkey: the embedded programs, stopped and started at will."""

import ctypes
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from chaos.processes import ChaosError
from scheduler.embedded_postgres import Postgres, find_postgres
from scheduler.embedded_valkey import Valkey, find_valkey
from scheduler.privileges import Identity, choose_identity
from scheduler.servers import Server, give, last_words

ANSWER_SECONDS_MAX = 60
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Mortal(Identity):
    """The kernel ends a server of this identity when the harness is killed."""

    def become(self) -> None:
        """Turn this process into the user, and tie it to its parent."""
        Identity.become(self)
        if sys.platform == "linux":
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT, 0, 0, 0)


def open_postgres(folder: Path) -> Postgres:
    """PostgreSQL below ``folder``, not started yet. Raises ChaosError."""
    program = find_postgres()
    data = folder / "pgdata"
    return Postgres(program, folder / "pg", folder / "postgres.log", _identity(program, folder), data=data)


def open_valkey(folder: Path) -> Valkey:
    """Valkey below ``folder``, not started yet. Raises ChaosError."""
    program = find_valkey()
    return Valkey(program, folder / "mq", folder / "redis.log", _identity(program, folder))


def start(server: Server) -> None:
    """Start a server and wait until it answers. Raises ChaosError."""
    server.start()
    if not server.wait_until_it_answers(time.monotonic() + ANSWER_SECONDS_MAX):
        raise ChaosError(f"{server.name} does not answer: {last_words(server.log)}")


def _identity(program: Path, folder: Path) -> Identity:
    found = choose_identity([program], [], None)
    if found is None:
        raise ChaosError(f"no user on this machine can run {program}")
    identity = Mortal(found.way, found.uid, found.gid)
    give(folder, identity)
    return identity
