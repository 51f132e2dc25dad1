"""The whole system for as long as one command needs it: services, a scheduler and a worker, for one job.

Decides nothing about the job; whatever ends the command, what is under way is handed back first.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from models.database import make_engine, transaction
from models.jobs import BlockedReason
from models.refills import refill_coming
from models.settings import Settings
from scheduler.broker import ping_broker
from scheduler.connect import connected
from scheduler.interrupts import Interrupts
from scheduler.parts import Parts
from scheduler.progress import ENDED, find_job, follow

STOPPING = "Stopping: what was collected is kept, the rest is handed back. Once more: now."
DEATHS_MAX = 3


class PartError(Exception):
    """The scheduler or the worker does not stay alive. The message is one sentence."""


class InterruptedJobError(Exception):
    """Ctrl-C or SIGTERM came before the job had ended; ``job`` is its report once all parts have stopped."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(f"Job {job['id']} was interrupted")
        self.job = job


class BlockedJobError(Exception):
    """The account cannot pay for the rest of the job; ``job`` is its report."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        super().__init__(f"Job {job['id']} is blocked")
        self.job = job


def stuck(job: Mapping[str, Any]) -> bool:
    """Whether a job is blocked and nothing of it is under way any more."""
    return job["blocked_reason"] is not None and not job["active_chunks"] and not job["credits"]["held"]


@dataclass(slots=True)
class System:
    """What a command can do while the system runs. ``settings`` have both URLs."""

    settings: Settings
    engine: Engine
    interrupts: Interrupts
    parts: Parts

    def follow(self, job_id: int) -> dict[str, Any]:
        """Show the job's progress until it has ended, and return its report.

        Raises PartError, BlockedJobError when the account cannot pay for the rest, or InterruptedJobError when
        a signal came first.
        """
        self.interrupts.gentle = True
        job = follow(
            self.engine, job_id, stop=lambda job: self.interrupts.stop.is_set() or self.hopeless(job)
        )
        if job["status"] in ENDED:
            return job
        if not self.interrupts.stop.is_set():
            raise BlockedJobError(job)
        self.parts.stop()
        if not self.interrupts.interrupted and self.parts.failure is not None:
            raise PartError(self.parts.failure)
        raise InterruptedJobError(find_job(self.engine, job_id))

    def hopeless(self, job: Mapping[str, Any]) -> bool:
        """Whether a job is stuck, and no refill will pay for the rest."""
        if not stuck(job) or job["blocked_reason"] != BlockedReason.OUT_OF_CREDITS:
            return stuck(job)
        if not (self.settings.payment_url or self.settings.payment_provider):
            return True
        with transaction(self.engine) as session:
            return not refill_coming(session, job["user"], self.settings.refills_per_day_max)


@contextmanager
def running(settings: Settings, concurrency: int | None, say: Callable[[str], None]) -> Iterator[System]:
    """Services, a scheduler and a worker, started here and stopped at the end of the context.

    Raises what ``connected`` raises.
    """
    with connected(settings) as joined, Interrupts(STOPPING, say) as interrupts:
        ping_broker(joined)
        parts = Parts(
            joined,
            say,
            home=settings.home if settings.embedded else None,
            deaths_max=DEATHS_MAX,
            on_failure=interrupts.stop.set,
        )
        interrupts.hurry = parts.hurry
        with parts:
            # First, because it takes longest until it works; both start while the job is submitted.
            parts.start("worker", "worker", *(["--concurrency", str(concurrency)] if concurrency else []))
            parts.start("scheduler", "scheduler")
            engine = make_engine(joined.sqlalchemy_url)
            try:
                yield System(joined, engine, interrupts, parts)
            finally:
                engine.dispose()
                interrupts.gentle = True
