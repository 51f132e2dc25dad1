"""The scheduler's loop: one leader works in rounds, replicas wait. Everything it knows stands in PostgreSQL."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog
from sqlalchemy.exc import DBAPIError

from models.database import deadlocked, first_line, transient
from models.discovery import ask_for_steps
from models.job_lifecycle import close_job, folder_of, refresh_task_ids, unblock_jobs
from models.leadership import finish_round
from models.reopening import reopen_cut_off_jobs
from models.seen import forget_seen
from models.settings import Settings
from models.workers import live_slots
from scheduler.averages import Averager
from scheduler.broker import Broker
from scheduler.dispatch import bring_along, dispatch
from scheduler.leader import Leader, leadership
from scheduler.refills import Refiller
from scheduler.rescue import drain_job, find_lost_messages, find_stopped, rescue_expired, server_time
from scheduler.split import Splitter
from scheduler.sweep import Sweeper
from worker.payments import Payments, open_payments
from worker.store import open_store, sweep_partial

BUSY_SECONDS = 0.02
IDLE_SECONDS = 0.2
UPKEEP_SECONDS = 1.0
RECONNECT_SECONDS = 1.0
RETRY_SECONDS = 5.0
GAP_SECONDS_MAX = 5.0
PARTIAL_SECONDS = 5.0
"""A put takes milliseconds: what is still partial after so long was left by a crash."""
RENEWAL_SECONDS = 6.0
"""So long workers have to renew leases that ran out while they could not."""

FORGET_KEYS = 10_000
"""Seen keys that are deleted in one second's upkeep: a tenth of a second's work."""

log = structlog.get_logger()
Result = TypeVar("Result")


def run_scheduler(settings: Settings, stop: threading.Event) -> None:
    """Lead, or stand by to lead, until ``stop`` is set; a lost database is waited for."""
    payments = open_payments(settings)
    broker = Broker(settings)
    away = threading.Event()
    try:
        while not stop.is_set():
            try:
                with leadership(settings, stop, away.clear) as leader:
                    if leader is not None:
                        lead(leader, broker, stop, payments)
            except DBAPIError as error:
                if not transient(error):
                    raise
                if not away.is_set():
                    log.warning("database_away", error=first_line(error))
                away.set()
                stop.wait(RECONNECT_SECONDS)
    finally:
        broker.close()
        log.info("scheduler_stopped")


class Stages:
    """Runs the stages of a round: one that fails costs the others nothing and is tried again a bit later."""

    def __init__(self, leader: Leader) -> None:
        self.leader = leader
        self.retry_at: dict[tuple[str, int | None], float] = {}

    def run(
        self, stage: str, function: Callable[[], Result], otherwise: Result, job: int | None = None
    ) -> Result:
        """What ``function`` returns, or ``otherwise`` while it fails. A lost connection is raised: it ends the
        leadership, and a second one would be made without the lock.
        """
        if time.monotonic() < self.retry_at.get((stage, job), 0.0):
            return otherwise
        self.retry_at.pop((stage, job), None)
        try:
            return function()
        except Exception as error:
            if self.leader.lost_by(error):
                raise
            which = {"stage": stage} | ({} if job is None else {"job": job})
            if deadlocked(error):  # With somebody who deletes a job, say: the next round tries again.
                log.warning("stage_deadlocked", **which)
                return otherwise
            log.exception("stage_failed", **which)
            self.retry_at[stage, job] = time.monotonic() + RETRY_SECONDS
            return otherwise


class Patience:
    """Whether leases may be judged yet: workers that could not renew them must have had time to.

    They could not while nobody led (PostgreSQL may have been away), nor while machines slept, nor in the moment in
    which PostgreSQL's own clock was set forward: its clock tells both.
    """

    def __init__(self, now: float, wall: float) -> None:
        self.now, self.wall = now, wall
        self.until = now + RENEWAL_SECONDS

    def over(self, now: float, wall: float) -> bool:
        """Ask once a second, with the monotonic clock and the server's."""
        if max(now - self.now, wall - self.wall) > GAP_SECONDS_MAX:
            self.until = now + RENEWAL_SECONDS
        self.now, self.wall = now, wall
        return now >= self.until


def lead(leader: Leader, broker: Broker, stop: threading.Event, payments: Payments | None) -> None:
    """Work in rounds until ``stop`` is set."""
    splitter = Splitter(leader, open_store(leader.settings.store))
    stages = Stages(leader)
    patience = Patience(time.monotonic(), server_time(leader).timestamp())
    refiller, averager = Refiller(leader, payments), Averager(leader)
    next_upkeep = 0.0
    with Sweeper(leader.settings):
        while not stop.is_set():
            if time.monotonic() >= next_upkeep:
                upkeep(stages, broker, patience)
                # After blocked jobs were looked at: those that still are need what a refill brings.
                stages.run("refill", refiller.refill, None)
                stages.run("average", averager.average, None)
                next_upkeep = time.monotonic() + UPKEEP_SECONDS
            busy = work(stages, broker, splitter)
            stop.wait(BUSY_SECONDS if busy else IDLE_SECONDS)


def work(stages: Stages, broker: Broker, splitter: Splitter) -> bool:
    """One round: split, ask, prioritize, dispatch, end sources, drain, close. Whether there was something to do."""
    leader = stages.leader
    split = stages.run("split", splitter.split, otherwise=False)
    asked = stages.run("discover", partial(ask_workers, leader, broker), 0)
    brought = stages.run("bring_along", partial(bring_along, leader), otherwise=False)
    sent = stages.run("dispatch", partial(dispatch_chunks, leader, broker), 0)
    stages.run("end_sources", splitter.end_sources, None)
    drained = drain_stopped(stages)
    closed = stages.run("close", partial(close_jobs, leader), 0)
    return bool(split or asked or brought or sent or drained or closed)


def ask_workers(leader: Leader, broker: Broker) -> int:
    """Ring for the next steps of sources that ask the web, if anybody is there to hear it; how many."""
    if not broker.reachable:
        return 0
    with leader.transaction() as session:
        steps = ask_for_steps(session) if live_slots(session) else []
    broker.ask(steps)
    return len(steps)


def dispatch_chunks(leader: Leader, broker: Broker) -> int:
    """Queue the next chunks and ring for them; how many."""
    messages = dispatch(leader) if broker.reachable else []
    broker.send(messages)
    return len(messages)


def drain_stopped(stages: Stages) -> int:
    """A batch of every job that was cancelled or paused; how many chunks."""
    leader = stages.leader
    nobody: list[tuple[int, bool]] = []
    return sum(
        stages.run("drain", partial(drain_job, leader, job_id, cancelled=cancelled), 0, job_id)
        for job_id, cancelled in stages.run("find_stopped", partial(find_stopped, leader), nobody)
    )


def close_jobs(leader: Leader) -> int:
    """running → ended, for every job that has nothing left to do; how many."""
    closed = 0
    while True:
        with leader.transaction() as session:
            job_id = close_job(session)
            folder = None if job_id is None else folder_of(session, job_id)
        if job_id is None:
            return closed
        closed += 1
        log.info("job_closed", job=job_id)
        if folder is not None:
            leader.meanwhile(sweep_partial, folder, PARTIAL_SECONDS)


def upkeep(stages: Stages, broker: Broker, patience: Patience) -> None:
    """What needs doing once a second."""
    leader = stages.leader
    stages.run("rescue", partial(judge_leases, leader, patience), None)
    stages.run("reopen_cut_off", partial(reopen_cut_off, leader), None)
    stages.run("unblock", partial(unblock, leader), None)
    stages.run("refresh_task_ids", partial(write_task_ids, leader), None)
    stages.run("publish_again", partial(ring_again, leader, broker), None)
    stages.run("forget_seen", partial(forget_keys, leader), None)
    stages.run("finish_round", partial(write_round, leader), None)


def judge_leases(leader: Leader, patience: Patience) -> None:
    """Take back what expired, unless its worker may just not have had the time to renew it."""
    now = server_time(leader)
    if patience.over(time.monotonic(), now.timestamp()):
        rescue_expired(leader, now)


def reopen_cut_off(leader: Leader) -> None:
    """Take it as a cancellation when another service ended a job whose chunks had not."""
    with leader.transaction() as session:
        reopened = reopen_cut_off_jobs(session)
    for job_id in reopened:
        log.warning("job_cut_off", job=job_id)


def unblock(leader: Leader) -> None:
    """blocked → running, for jobs that can be paid for again."""
    with leader.transaction() as session:
        unblocked = unblock_jobs(session)
    for job_id in unblocked:
        log.info("job_unblocked", job=job_id)


def write_task_ids(leader: Leader) -> None:
    """Bring the Celery ids that jobs show up to date."""
    with leader.transaction() as session:
        refresh_task_ids(session)


def forget_keys(leader: Leader) -> None:
    """Let go of what jobs had seen whose sources have ended, some at a time."""
    with leader.transaction() as session:
        forget_seen(session, FORGET_KEYS)


def write_round(leader: Leader) -> None:
    """Show that there is a leader, and that it works."""
    with leader.transaction() as session:
        finish_round(session, leader.name)


def ring_again(leader: Leader, broker: Broker) -> None:
    """Send messages that were lost again."""
    waiting = broker.waiting()
    if waiting is not None:
        broker.send(find_lost_messages(leader, waiting))
