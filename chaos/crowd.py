"""Users at work: they submit list after list while faults happen, and remember what was acknowledged.

They go through the proxies as everybody does; a submission that fails was never acknowledged, and is forgotten.
"""

import random
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from chaos.processes import ChaosError, until
from chaos.site import Line
from chaos.system import USERS, Job, System
from models.database import make_engine
from scheduler.copying import RequestError
from scheduler.enqueue import submit as enqueue
from worker.store import StoreError

BACKLOG = 120
"""Candidates without an outcome that the crowd sees to."""
SIZES = (10, 50)
PAUSE_SECONDS = 0.1
LEAVE_SECONDS_MAX = 60

BACKLOG_OF_ALL = """
SELECT coalesce(sum(total_images - valid_images - failed_images), 0) FROM crawl_jobs WHERE completed_at IS NULL
"""
IN_FLIGHT = """
SELECT id FROM job_chunks WHERE status = 'processing' OR (status = 'pending' AND queued_at IS NOT NULL)
"""


def submit(system: System, engine: Engine, user: str, lines: Sequence[Line]) -> Job:
    """Submit a list as a user would; the job is remembered once that was acknowledged."""
    path = system.folder / f"urls-{threading.get_ident()}.txt"
    path.write_text("\n".join(line.url for line in lines), "utf-8")
    job = Job(enqueue(system.settings, engine, [str(path)], user=user).job_id, user, lines)
    system.acknowledged.append(job)
    return job


class Crowd:
    """A context manager around a thread that submits. The first list kills ``poison`` decoders."""

    def __init__(self, system: System, chance: random.Random, *, poison: int = 0) -> None:
        self.system = system
        self.chance = chance
        self._poison = poison
        self.refused = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._submit_until_stopped, name="crowd", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(LEAVE_SECONDS_MAX)

    def wait_until_at_work(self) -> list[int]:
        """Wait until chunks are in flight; which."""
        return until(lambda: [row.id for row in self.system.query(IN_FLIGHT)], "a chunk in flight")

    def stop(self) -> None:
        """Submit nothing more. Raises ChaosError when the last submission hangs."""
        self._stop.set()
        self._thread.join(LEAVE_SECONDS_MAX)
        if self._thread.is_alive():
            raise ChaosError(f"a submission hangs for more than {LEAVE_SECONDS_MAX} s")

    def _submit_until_stopped(self) -> None:
        engine = make_engine(
            self.system.settings.sqlalchemy_url, pooled=False, application_name="chaos crowd"
        )
        poison = self._poison
        while not self._stop.is_set():
            try:
                if self.system.query(BACKLOG_OF_ALL)[0][0] < BACKLOG:
                    user = self.chance.choice(USERS)
                    lines = self.system.site.make_list(self.chance, self.chance.randint(*SIZES), poison)
                    poison = 0
                    submit(self.system, engine, user, lines)
                    continue
            except (SQLAlchemyError, StoreError, RequestError):
                self.refused += 1
            self._stop.wait(PAUSE_SECONDS)
        engine.dispose()
