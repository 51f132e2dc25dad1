"""Killing a process exactly at one of its statements: the proxy holds its connection there meanwhile."""

import random
import signal

from chaos.processes import owner_of_port, send
from chaos.proxy import Trap
from chaos.system import System

WORKER, SCHEDULER = b"pixtrawl worker", b"pixtrawl scheduler"
"""How sessions introduce themselves to PostgreSQL."""
TRAP_SECONDS_MAX = 40
STATEMENTS = 30
"""Statements of one process of which one at random is chosen."""


def kill_at_a_statement(system: System, chance: random.Random, who: bytes) -> None:
    """SIGKILL of whoever sends any one of the next statements of ``who``, before or after the server has it."""
    answered, skip = chance.random() < 0.5, chance.randrange(STATEMENTS)
    with system.database.trap(b"", who=who, answered=answered, held=True, skip=skip) as trap:
        trap.wait(TRAP_SECONDS_MAX)
        kill_owner(trap)


def kill_owner(trap: Trap) -> None:
    """SIGKILL of the process whose connection a trap holds."""
    send(owner_of_port(trap.port), signal.SIGKILL)
