"""Workers and schedulers that are killed, stopped, paused, replaced and scaled."""

import random
import re
import signal
import time
from functools import partial
from typing import Any

from chaos.processes import Part, owner_of_port, send, until
from chaos.proxy import Proxy, Trap
from chaos.registry import BrokenPromiseError, fault
from chaos.system import System, leads

WORKER, SCHEDULER = b"pixtrawl worker", b"pixtrawl scheduler"
TRAP_SECONDS_MAX = 40
TAKEOVER_SECONDS_MAX = 10
HAND_BACK_SECONDS_MAX = 5
LEAVE_SECONDS_MAX = 15
BLOCKED_SECONDS_MAX = 11
"""PostgreSQL ends a transaction that is idle for 10 s, and looks when the timer tells it to."""
STATEMENTS = 30
"""Statements of one process of which one at random is the last."""

CHUNK_OF = "SELECT id, attempt FROM job_chunks WHERE status = 'processing' AND worker LIKE '%/' || :pid"
LOCK_JOBS = "SELECT FROM crawl_jobs WHERE completed_at IS NULL ORDER BY id FOR UPDATE"
TAKEN = """
SELECT id, substring(worker FROM '[0-9]+$') AS pid, retry_count FROM job_chunks
WHERE status IN ('pending', 'processing') AND (worker IS NOT NULL OR retry_count > 0)
"""
STUCK = "SELECT FROM job_chunks WHERE retry_count > 0 LIMIT 1"
CHUNKS_OF = """
SELECT id, attempt FROM job_chunks WHERE status = 'processing' AND substring(worker FROM '[0-9]+$') = ANY(:pids)
"""
TAKEN_OVER = """
SELECT FROM job_chunks WHERE id = :id AND attempt > :attempt AND status IN ('processing', 'completed', 'failed')
"""
STILL = "SELECT id FROM job_chunks WHERE id = :id AND attempt = :attempt AND status = 'processing'"


@fault(full=200, short=2, gap_seconds=2)
def kill_pool_child(system: System, chance: random.Random) -> None:
    """SIGKILL of a worker's pool child at a random moment."""
    pid = until(lambda: _victim(system, chance), "a child whose chunk was not lost before")
    send(pid, signal.SIGKILL)


def _victim(system: System, chance: random.Random) -> int | None:
    """A child at random, but none whose chunk has just lost another: that is what a poisonous picture does."""
    spared = {int(row.pid) for row in system.query(TAKEN) if row.pid and row.retry_count}
    pids = [pid for pid in _children(system) if pid not in spared]
    return chance.choice(pids) if pids else None


def _children(system: System) -> list[int]:
    return [pid for worker in system.workers for pid in worker.children()]


def wait_for_innocence(system: System) -> None:
    """Wait until no chunk has just lost its worker, so that the next loss is its first in a row."""
    until(lambda: not _suspects(system), "the end of all suspicion")


def _suspects(system: System) -> list[Any]:
    """Chunks that lost their last worker, or are in the hands of one that is no more."""
    taken = system.query(TAKEN)
    alive = set(_children(system))
    return [row for row in taken if row.retry_count or (row.pid and int(row.pid) not in alive)]


@fault(full=20)
def kill_pool_child_at_a_statement(system: System, chance: random.Random) -> None:
    """SIGKILL of a pool child exactly before or after one of its statements reached PostgreSQL."""
    wait_for_innocence(system)
    _kill_at_a_statement(system, chance, WORKER)


@fault(full=20)
def kill_worker(system: System, chance: random.Random) -> None:
    """SIGKILL of a whole worker, which is started again."""
    wait_for_innocence(system)
    worker = chance.choice(system.workers)
    worker.kill()
    worker.start()


@fault(full=40)
def kill_scheduler_at_a_statement(system: System, chance: random.Random) -> None:
    """SIGKILL of the scheduler exactly before or after one of its statements reached PostgreSQL."""
    _kill_at_a_statement(system, chance, SCHEDULER)
    for scheduler in system.schedulers:
        scheduler.wait(1)
        scheduler.start()


@fault(full=20)
def kill_scheduler_at_a_message(system: System, _chance: random.Random) -> None:
    """SIGKILL of the scheduler when a chunk is queued by its row, before its message is in Redis."""
    with system.broker.trap(b"LPUSH", held=True, answered=False) as trap:
        trap.wait(TRAP_SECONDS_MAX)
        kill_owner(trap)
    for scheduler in system.schedulers:
        scheduler.wait(1)
        scheduler.start()


def _kill_at_a_statement(system: System, chance: random.Random, who: bytes) -> None:
    answered, skip = chance.random() < 0.5, chance.randrange(STATEMENTS)
    with system.database.trap(b"", who=who, answered=answered, held=True, skip=skip) as trap:
        trap.wait(TRAP_SECONDS_MAX)
        kill_owner(trap)


def kill_owner(trap: Trap) -> None:
    """SIGKILL of the process whose connection a trap holds."""
    send(owner_of_port(trap.port), signal.SIGKILL)


@fault(full=10, gap_seconds=1)
def stop_past_the_lease(system: System, chance: random.Random) -> None:
    """SIGSTOP of a pool child until its chunk has another owner, then SIGCONT: the zombie writes nothing."""
    wait_for_innocence(system)
    pid, chunk = until(lambda: _busy_child(system, chance, _children(system)), "a child with a chunk")
    send(pid, signal.SIGSTOP)
    try:
        until(lambda: system.query(TAKEN_OVER, id=chunk.id, attempt=chunk.attempt), "another owner", 30)
    finally:
        send(pid, signal.SIGCONT)
    said = until(lambda: _last_words(system, chunk), f"what the zombie says of chunk {chunk.id}")
    if said != ["chunk_lost"]:
        raise BrokenPromiseError(f"a zombie says {said} of chunk {chunk.id}, attempt {chunk.attempt}")


def _still(system: System, chunk: Any) -> bool:
    """Whether a chunk is still in the hands of the worker that had this attempt of it."""
    return bool(system.query(STILL, id=chunk.id, attempt=chunk.attempt))


def _last_words(system: System, chunk: Any) -> list[str]:
    """How a worker's attempt at a chunk ended, by its own word."""
    logs = [worker.log.read_text("utf-8") for worker in system.workers]
    attempt = rf"attempt={chunk.attempt} chunk={chunk.id} "
    return re.findall(rf"\] (chunk_lost|chunk_settled|chunk_handed_back) {attempt}", "".join(logs))


def _busy_child(system: System, chance: random.Random, pids: list[int]) -> tuple[int, Any] | None:
    pid = chance.choice(pids)
    found = system.query(CHUNK_OF, pid=str(pid))
    return (pid, found[0]) if found else None


@fault(full=5, deadline_seconds=120)
def stop_a_worker(system: System, chance: random.Random) -> None:
    """SIGSTOP of a whole worker, as on a machine that sleeps, then SIGCONT: it finds that others went on."""
    wait_for_innocence(system)
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
            chunks = until(lambda: system.query(CHUNKS_OF, pids=[str(pid) for pid in pids]), "its chunks")
            with database.black_hole(), broker.black_hole():
                until(
                    lambda: not any(_still(system, chunk) for chunk in chunks), "the rescue of its chunks", 30
                )
            until(lambda: all(_last_words(system, chunk) for chunk in chunks), "its word about them", 40)
            said = {word for chunk in chunks for word in _last_words(system, chunk)}
            until(lambda: system.query(CHUNKS_OF, pids=[str(pid) for pid in pids]), "its next chunk")
        finally:
            worker.stop()
            system.workers.remove(worker)
    if said != {"chunk_lost"}:
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
        with system.engine.begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{2 * BLOCKED_SECONDS_MAX}s'")
            connection.exec_driver_sql(LOCK_JOBS)
        waited = time.monotonic() - began
    finally:
        send(pid, signal.SIGCONT)
    if waited > BLOCKED_SECONDS_MAX:
        raise BrokenPromiseError(f"a stopped worker blocked others for {waited:.1f} s")


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
    pids = [str(pid) for pid in worker.children()]
    began = time.monotonic()
    worker.ask()
    until(lambda: not system.query(CHUNKS_OF, pids=pids), "the hand-back of all chunks")
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
    wait_for_innocence(system)
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
    until(lambda: system.query(STUCK), "a chunk whose decoder was given up")
