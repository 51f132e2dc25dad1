"""Deleting a user with everything that hangs on it. Must never touch what is another user's."""

import uuid
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine

from models import closing
from models.closing import ClosingJob
from models.folders import Going
from models.job_lifecycle import cancel_job
from models.refills import pending_refills
from models.settings import Settings
from scheduler.closing_jobs import JobCloser
from scheduler.deletion import Deletion, SharedFolderError, UnfinishedError

UNENDED_PAGE = 100
JOBS_PAGE = 100


class PaymentPendingError(UnfinishedError):
    """A refill may have been paid or not, and its row is all that tells."""


class Closing(Deletion):
    """Deletes one user."""

    def __init__(self, settings: Settings, engine: Engine, user_id: uuid.UUID, **options: Any) -> None:
        super().__init__(settings, engine, Going(user_id=user_id), **options)
        self.user_id = user_id

    def walk(self, jobs: JobCloser) -> None:
        """Nothing new starts (jobs cancelled, account closing); jobs; messages whose chunk has no row; projects,
        records, ledger; and in one last transaction preferences, account and profile, unless something came
        meanwhile.
        """
        self.close_account()
        jobs.delete_all(self.jobs)
        self.withdraw()
        self.check_payments()
        self.delete_records()
        if jobs.shared is not None:
            raise SharedFolderError(jobs.shared)
        self.delete_profile()

    def jobs(self) -> Iterator[ClosingJob]:
        """The user's jobs in the order of their numbers, read page by page."""
        after = 0
        while page := self.batches.commit(closing.jobs_of, self.user_id, after, JOBS_PAGE):
            yield from page
            after = page[-1].id

    def close_account(self) -> None:
        """Cancel what goes on, then close the account; anew when something was submitted in between."""
        closed = False
        while not closed:
            while unended := self.batches.commit(closing.unended_jobs, self.user_id, UNENDED_PAGE):
                for job_id in unended:
                    self.batches.commit(cancel_job, job_id)
            closed = self.batches.commit(closing.close_account, self.user_id)

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
