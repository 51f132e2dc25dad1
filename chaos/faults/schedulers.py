"""Schedulers that are killed and paused."""

import random
import signal
import time

from chaos.processes import until
from chaos.registry import BrokenPromiseError, fault
from chaos.system import System, leads
from chaos.traps import SCHEDULER, TRAP_SECONDS_MAX, kill_at_a_statement, kill_owner

TAKEOVER_SECONDS_MAX = 10


@fault(full=40)
def kill_scheduler_at_a_statement(system: System, chance: random.Random) -> None:
    """SIGKILL of the scheduler exactly before or after one of its statements reached PostgreSQL."""
    kill_at_a_statement(system, chance, SCHEDULER)
    _start_again(system)


@fault(full=20)
def kill_scheduler_at_a_message(system: System, _chance: random.Random) -> None:
    """SIGKILL of the scheduler when a chunk is queued by its row, before its message is in Redis."""
    with system.broker.trap(b"LPUSH", held=True, answered=False) as trap:
        trap.wait(TRAP_SECONDS_MAX)
        kill_owner(trap)
    _start_again(system)


def _start_again(system: System) -> None:
    for scheduler in system.schedulers:
        scheduler.wait(1)
        scheduler.start()


@fault(full=5)
def pause_the_leader(system: System, _chance: random.Random) -> None:
    """SIGSTOP of the leading scheduler: the standby leads in under 10 s, the old leader's session is gone."""
    with system.second_scheduler() as standby:
        leader = next(part for part in system.schedulers if part is not standby)
        leader.signal(signal.SIGSTOP)
        began = time.monotonic()
        try:
            until(lambda: leads(standby), "another leader", 30)
            seconds = time.monotonic() - began
        finally:
            leader.signal(signal.SIGCONT)
        until(lambda: not leads(leader), "the old leader's word that its session is gone")
        if seconds > TAKEOVER_SECONDS_MAX:
            raise BrokenPromiseError(f"the takeover took {seconds:.1f} s")
