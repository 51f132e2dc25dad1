"""Workers that are killed, stopped, cut off, replaced and scaled."""

import random
import signal
import time
from functools import partial
from typing import Any

from sqlalchemy import text

from chaos.owners import children, chunks_of, ended, last_words, still, taken_over
from chaos.processes import Part, owner_of_port, send, until
from chaos.proxy import Proxy
from chaos.registry import BrokenPromiseError, fault
from chaos.system import System
from chaos.traps import TRAP_SECONDS_MAX, WORKER, kill_at_a_statement

HAND_BACK_SECONDS_MAX = 5
LEAVE_SECONDS_MAX = 15
BLOCKED_SECONDS_MAX = 11
"""PostgreSQL ends a transaction that is idle for 10 s, and looks when the timer tells it to."""

OPEN_JOBS = "SELECT id FROM crawl_jobs WHERE completed_at IS NULL"
LOCK_JOB = text("SELECT FROM crawl_jobs WHERE id = :id FOR UPDATE")
CONVICTED = "SELECT FROM failures WHERE reason = 'worker_lost' LIMIT 1"


@fault(full=200, gap_seconds=2)
def kill_pool_child(system: System, chance: random.Random) -> None:
    """SIGKILL of a worker's pool child at a random moment, one about every second, whichever was hit before."""
    pid = until(lambda: chance.choice(children(system) or [None]), "a child")
    send(pid, signal.SIGKILL)


@fault(full=20)
def kill_pool_child_at_a_statement(system: System, chance: random.Random) -> None:
    """SIGKILL of a pool child exactly before or after one of its statements reached PostgreSQL."""
    kill_at_a_statement(system, chance, WORKER)


@fault(full=20)
def kill_worker(system: System, chance: random.Random) -> None:
    """SIGKILL of a whole worker, which is started again."""
    worker = chance.choice(system.workers)
    worker.kill()
    worker.start()


@fault(full=10, gap_seconds=1)
def stop_past_the_lease(system: System, chance: random.Random) -> None:
    """SIGSTOP of a pool child until its chunk has another owner, then SIGCONT: the zombie writes nothing."""
    pid, chunk = until(lambda: _stop_a_busy_child(system, chance), "a child with a chunk")
    try:
        until(lambda: not still(system, chunk), "the rescue", 20)
        if ended(system, chunk):
            return  # It was stopped when its last COMMIT was on the way.
        until(lambda: taken_over(system, chunk), "another owner", 30)
    finally:
        send(pid, signal.SIGCONT)
    said = until(lambda: last_words(system, chunk), f"what the zombie says of chunk {chunk.id}")
    if said != ["chunk_lost"]:
        raise BrokenPromiseError(f"a zombie says {said} of chunk {chunk.id}, attempt {chunk.attempt}")


def _stop_a_busy_child(system: System, chance: random.Random) -> tuple[int, Any] | None:
    """SIGSTOP of a child at random: its number and its chunk, or None when it had none."""
    pid = chance.choice(children(system))
    send(pid, signal.SIGSTOP)
    chunks = chunks_of(system, [pid])
    if not chunks:
        send(pid, signal.SIGCONT)
        return None
    return pid, chunks[0]


@fault(full=5, deadline_seconds=120)
def stop_a_worker(system: System, chance: random.Random) -> None:
    """SIGSTOP of a whole worker, as on a machine that sleeps, then SIGCONT: it finds that others went on."""
    worker = chance.choice(system.workers)
    worker.signal_all(signal.SIGSTOP)
    time.sleep(chance.uniform(5, 25) if system.full else 5)
    worker.signal_all(signal.SIGCONT)


@fault(full=5, deadline_seconds=120)
def partition_a_worker(system: System, _chance: random.Random) -> None:
    """A worker is cut off from PostgreSQL and Redis until others have its chunks; it finds that, and works on."""
    with Proxy(system.postgres.socket) as database, Proxy(system.valkey.socket) as broker:
        worker = system.add_worker(system.settings_behind(database, broker))
        try:
            worker.start()
            pids = until(worker.children, "the pool of a worker")
            chunks = until(lambda: chunks_of(system, pids), "its chunks")
            with database.black_hole(), broker.black_hole():
                until(
                    lambda: not any(still(system, chunk) for chunk in chunks), "the rescue of its chunks", 30
                )
            # Of some its last COMMIT may have gone through before.
            chunks = [chunk for chunk in chunks if not ended(system, chunk)]
            until(lambda: all(last_words(system, chunk) for chunk in chunks), "its word about them", 40)
            said = {word for chunk in chunks for word in last_words(system, chunk)}
            until(lambda: chunks_of(system, pids), "its next chunk")
        finally:
            worker.stop()
            system.workers.remove(worker)
    if not said <= {"chunk_lost", "chunk_not_wanted"}:
        raise BrokenPromiseError(f"a worker that was cut off says {sorted(said)} of chunks that others had")


@fault(full=5)
def stop_in_a_transaction(system: System, _chance: random.Random) -> None:
    """SIGSTOP of a pool child that has locked its job and account: others wait for 10 s at most."""
    with system.database.trap(b"UPDATE crawl_jobs", who=WORKER, held=True, answered=True) as trap:
        trap.wait(TRAP_SECONDS_MAX)
        pid = owner_of_port(trap.port)
        send(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        for row in system.query(OPEN_JOBS):
            with system.engine.begin() as connection:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{2 * BLOCKED_SECONDS_MAX}s'")
                connection.execute(LOCK_JOB, {"id": row.id})
        waited = time.monotonic() - began
    finally:
        send(pid, signal.SIGCONT)
    if waited > BLOCKED_SECONDS_MAX:
        raise BrokenPromiseError(f"a stopped worker blocked others for {waited:.1f} s")


@fault(full=5)
def restart_workers_in_turn(system: System, _chance: random.Random) -> None:
    """SIGTERM of every worker in turn: each hands back within 5 s, and no lease is lost."""
    rescued = _rescued(system)
    for worker in system.workers:
        _leave(system, worker)
        worker.start()
        until(partial(system.seen, worker), "the heartbeat of the new worker")
    if _rescued(system) != rescued:
        raise BrokenPromiseError("a worker that was asked to leave lost its lease")


@fault(full=2, deadline_seconds=120)
def scale_workers(system: System, _chance: random.Random) -> None:
    """One worker, then eight (short: three), then one again, under load."""
    first, *others = system.workers
    for worker in others:
        _leave(system, worker)
    added = [system.add_worker() for _ in range(7 - len(others) if system.full else 1)]
    try:
        for worker in (*others, *added):
            worker.start()
        until(lambda: all(system.seen(worker) for worker in system.workers), "the heartbeat of all workers")
        for worker in (*others, *added):
            _leave(system, worker)
    finally:
        for worker in added:
            worker.stop()
            system.workers.remove(worker)
    if not first.running:
        raise BrokenPromiseError("the worker that was to stay is gone")


def _leave(system: System, worker: Part) -> None:
    """SIGTERM, the measured time until it has no chunk any more, and its end."""
    pids = worker.children()
    began = time.monotonic()
    worker.ask()
    until(lambda: not chunks_of(system, pids), "the hand-back of all chunks")
    seconds = time.monotonic() - began
    code = worker.wait(LEAVE_SECONDS_MAX)
    if code != 0 or seconds > HAND_BACK_SECONDS_MAX:
        raise BrokenPromiseError(
            f"the {worker.name} had chunks for {seconds:.1f} s, and its exit code is {code}"
        )


def _rescued(system: System) -> int:
    return sum(scheduler.log.read_text("utf-8").count("chunk_rescued") for scheduler in system.schedulers)


@fault(full=5, deadline_seconds=120)
def kill_everything(system: System, chance: random.Random) -> None:
    """SIGKILL of every worker and scheduler, of PostgreSQL and Valkey at once; all are started again."""
    victims = [*system.parts]
    chance.shuffle(victims)
    for part in victims:
        part.signal(signal.SIGKILL)
    for server in (system.postgres, system.valkey):
        send(server.pid, signal.SIGKILL)
    for part in victims:
        part.wait()
    system.mend()


@fault(full=3, deadline_seconds=150, poison=1)
def poison_image(system: System, _chance: random.Random) -> None:
    """A picture that no decoder ends: it alone is worker_lost."""
    until(lambda: system.query(CONVICTED), "a picture that was given up")
