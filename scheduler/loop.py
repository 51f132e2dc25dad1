"""The scheduler's loop: one leader works in rounds, replicas wait. Everything it knows stands in PostgreSQL."""

import threading
import time

import structlog
from sqlalchemy.exc import DBAPIError

from models.database import transient
from models.job_lifecycle import close_job, refresh_task_ids, unblock_jobs
from models.settings import Settings
from scheduler.broker import Broker
from scheduler.dispatch import dispatch
from scheduler.leader import Leader, leadership
from scheduler.rescue import drain_stopped, find_lost_messages, rescue_expired
from scheduler.split import Splitter
from worker.store import open_store

BUSY_SECONDS = 0.02
IDLE_SECONDS = 0.2
UPKEEP_SECONDS = 1.0
RECONNECT_SECONDS = 1.0

log = structlog.get_logger()


def run_scheduler(settings: Settings, stop: threading.Event) -> None:
    """Lead, or stand by to lead, until ``stop`` is set; a lost database is waited for."""
    broker = Broker(settings)
    try:
        while not stop.is_set():
            try:
                with leadership(settings, stop) as leader:
                    if leader is not None:
                        lead(leader, broker, stop)
            except DBAPIError as error:
                if not transient(error):
                    raise
                log.warning("database_away", error=str(error.orig).strip().split("\n")[0])
                stop.wait(RECONNECT_SECONDS)
    finally:
        broker.close()
        log.info("scheduler_stopped")


def lead(leader: Leader, broker: Broker, stop: threading.Event) -> None:
    """Work in rounds until ``stop`` is set."""
    splitter = Splitter(leader, open_store(leader.settings.store))
    next_upkeep = 0.0
    while not stop.is_set():
        if time.monotonic() >= next_upkeep:
            upkeep(leader, broker)
            next_upkeep = time.monotonic() + UPKEEP_SECONDS
        busy = work(leader, broker, splitter)
        stop.wait(BUSY_SECONDS if busy else IDLE_SECONDS)


def work(leader: Leader, broker: Broker, splitter: Splitter) -> bool:
    """One round: split, dispatch, end sources, drain, close. Whether there was something to do."""
    split = splitter.split()
    messages = dispatch(leader) if broker.reachable else []
    broker.send(messages)
    splitter.end_sources()
    drain_stopped(leader)
    closed = close_jobs(leader)
    return bool(split or messages or closed)


def close_jobs(leader: Leader) -> int:
    """running → ended, for every job that has nothing left to do; how many."""
    closed = 0
    while True:
        with leader.transaction() as session:
            job_id = close_job(session)
        if job_id is None:
            return closed
        closed += 1
        log.info("job_closed", job=job_id)


def upkeep(leader: Leader, broker: Broker) -> None:
    """What needs doing once a second."""
    rescue_expired(leader)
    with leader.transaction() as session:
        for job_id in unblock_jobs(session):
            log.info("job_unblocked", job=job_id)
        refresh_task_ids(session)
    waiting = broker.waiting()
    if waiting is not None:
        broker.send(find_lost_messages(leader, waiting))
