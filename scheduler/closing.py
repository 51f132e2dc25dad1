"""Deleting a user with everything that hangs on it, batch after batch, while others work.

Whatever dies between two batches, the same walk again finishes. Must never touch what is another user's.
"""

import threading
import uuid
from collections.abc import Callable

from sqlalchemy import Engine

from models import closing
from models.job_lifecycle import cancel_job
from models.refills import pending_refills
from models.settings import Settings
from scheduler.batches import BATCH, Batches, Deleted
from scheduler.broker import ping_broker, withdraw_messages
from scheduler.closing_jobs import JobCloser
from worker.store import open_store

UNENDED_PAGE = 100


class SharedFolderError(Exception):
    """A job was left: somebody else's job under way stores into its folder. The message is one sentence."""


class PaymentPendingError(Exception):
    """A refill may have been paid or not, and its row is all that tells. The message is one sentence."""


class Closing:
    """One walk. ``say`` gets a sentence now and then, ``show`` the figures after each batch of ``batch`` rows at
    most. ``begun`` tells whether anything may have changed, ``deleted`` what is gone.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        user_id: uuid.UUID,
        *,
        stop: threading.Event,
        say: Callable[[str], None],
        show: Callable[[Deleted], None] = lambda _: None,
        batch: int = BATCH,
    ) -> None:
        self.settings = settings
        self.say = say
        self.batches = Batches(engine, user_id, stop=stop, show=show, size=batch)
        self.user_id = user_id
        self.begun = False

    @property
    def deleted(self) -> Deleted:
        """What this walk has deleted so far."""
        return self.batches.deleted

    def run(self) -> None:
        """Walk to the end.

        Redis and the store are asked first: without them nothing begins. Then nothing new starts (jobs
        cancelled, account closing); jobs; messages whose chunk has no row; projects, records, ledger; and in
        one last transaction preferences, account and profile, unless something came meanwhile.

        Raises StoppedError, SharedFolderError, PaymentPendingError, StoreError, kombu's OperationalError,
        RedisError or DBAPIError.
        """
        ping_broker(self.settings)
        store = open_store(self.settings.store)
        jobs = JobCloser(self.batches, self.settings, store, self.say)
        self.begun = True
        while not self.deleted.complete:
            self.close_account()
            jobs.delete_all()
            self.withdraw()
            self.check_payments()
            self.delete_records()
            if jobs.shared is not None:
                raise SharedFolderError(jobs.shared)
            self.delete_profile()

    def close_account(self) -> None:
        """Cancel what goes on, then close the account; anew when something was submitted in between."""
        closed = False
        while not closed:
            while unended := self.batches.commit(closing.unended_jobs, self.user_id, UNENDED_PAGE):
                for job_id in unended:
                    self.batches.commit(cancel_job, job_id)
            closed = self.batches.commit(closing.close_account, self.user_id)

    def withdraw(self) -> None:
        """Messages go when their chunks have: which those are needs no memory, and a row sends none any more."""
        self.deleted.messages += withdraw_messages(
            self.settings, lambda ids: self.batches.commit(closing.existing_chunks, ids)
        )

    def check_payments(self) -> None:
        """Nothing opens a refill of a closing account any more; one that is open is the scheduler's to end.

        Raises PaymentPendingError.
        """
        for refill in self.batches.commit(pending_refills, self.user_id):
            raise PaymentPendingError(
                f"A refill of {refill.credits:,} credits is being paid: once a scheduler has its answer, the same "
                f"command goes on; or look at the payment service and say `pixtrawl credits answer {refill.id}`."
            )

    def delete_records(self) -> None:
        """What hangs on the profile itself: projects without jobs, logs, notifications, keys, metrics, ledger."""
        self.batches.drain("projects", closing.delete_projects, self.user_id)
        for table in closing.RECORDS:
            self.batches.drain(table, closing.delete_records, table, self.user_id)
        self.batches.drain("credit_transactions", closing.delete_ledger, self.user_id)

    def delete_profile(self) -> None:
        """The last rows."""
        last = self.batches.commit(closing.delete_profile, self.user_id)
        if last is None:
            return
        self.deleted.complete = True
        for table, rows in last.items():
            self.batches.count(table, rows)
