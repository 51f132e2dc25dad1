"""What deletions have in common, and that of one job: batch after batch, while others work.

Whatever dies between two batches, the same walk again finishes.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from models import closing, deleting
from models.folders import Going
from models.settings import Settings
from scheduler.batches import BATCH, Batches, Deleted
from scheduler.broker import ping_broker, withdraw_messages
from scheduler.closing_jobs import JobCloser
from worker.store import Store, open_store


class UnfinishedError(Exception):
    """A walk stopped before its end, and the same again may finish. The message is one sentence."""


class SharedFolderError(UnfinishedError):
    """A job was left: another job, under way, stores into its folder."""


class Deletion(ABC):
    """One walk. ``say`` gets a sentence now and then, ``show`` the figures after each batch of ``batch`` rows at
    most. ``begun`` tells whether anything may have changed, ``deleted`` what is gone.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        going: Going,
        *,
        stop: threading.Event,
        say: Callable[[str], None],
        show: Callable[[Deleted], None] = lambda _: None,
        batch: int = BATCH,
    ) -> None:
        self.settings = settings
        self.say = say
        self.batches = Batches(engine, going, stop=stop, show=show, size=batch)
        self.begun = False

    @property
    def deleted(self) -> Deleted:
        """What this walk has deleted so far."""
        return self.batches.deleted

    def run(self) -> None:
        """Walk to the end. Redis and the store are asked first: without them nothing begins.

        Raises StoppedError, UnfinishedError, StoreError, kombu's OperationalError, RedisError or DBAPIError.
        """
        ping_broker(self.settings)
        jobs = self.job_closer(open_store(self.settings.store))
        self.begun = True
        while not self.deleted.complete:
            self.walk(jobs)

    def job_closer(self, store: Store) -> JobCloser:
        """What deletes jobs."""
        return JobCloser(self.batches, self.settings, store, self.say)

    @abstractmethod
    def walk(self, jobs: JobCloser) -> None:
        """Everything once; ``deleted.complete`` when nothing came meanwhile."""

    def withdraw(self) -> None:
        """Messages go when their chunks have: which those are needs no memory, and a row sends none any more."""
        self.deleted.messages += withdraw_messages(
            self.settings, lambda ids: self.batches.commit(closing.existing_chunks, ids)
        )


class JobDeletion(Deletion):
    """Deletes one job. What its images cost stays charged; what is held for the others is given back."""

    def __init__(self, settings: Settings, engine: Engine, job_id: int, **options: Any) -> None:
        super().__init__(settings, engine, Going(job_id=job_id), **options)
        self.job_id = job_id

    def job_closer(self, store: Store) -> JobCloser:
        """Its messages go before its row, by which the next walk would find them."""
        return JobCloser(
            self.batches,
            self.settings,
            store,
            self.say,
            finish=deleting.finish_deletion,
            before_last=self.withdraw,
        )

    def walk(self, jobs: JobCloser) -> None:
        """Nothing new starts; then chunks, images, failures, objects, input, messages, and at last the row go."""
        job = self.batches.commit(deleting.begin_deletion, self.job_id)
        if job is not None:
            jobs.delete_all(lambda: [job])
            if jobs.shared is not None:
                raise SharedFolderError(jobs.shared)
        self.deleted.complete = job is None or self.deleted.rows["crawl_jobs"] > 0
