"""Deleting jobs, one or all of a user's: chunks, images, failures, objects, input, and then the row, by which a
later walk finds whatever is left.

In a job's own prefix of the store rows go before objects: no row ever names a missing object. In a folder of
the user's choice only the rows know which objects are theirs, so a batch of objects goes before its rows; what
the row of a job that stays names is left. Must never delete an object that such a job under way may name.
"""

import time
from collections.abc import Callable, Iterable, Sequence

from sqlalchemy.orm import Session

from models import closing, folders, frontier, seen
from models.closing import ClosingJob, NamedObject
from models.settings import Settings
from scheduler.batches import Batches
from scheduler.discard import Neighbourhood, discard_input, discard_named, discard_prefix, open_folder
from scheduler.printing import counted, place
from worker.store import Store

CHUNK_BATCH = 500
"""A chunk carries its candidates: some 20 kB."""
OBJECT_BATCH = 1000
FOLDERS_PAGE = 5000
LATE_JOBS = 1000
"""A job that got its number early may be committed late: so many are looked at again."""
WORKER_SECONDS_MAX = 60
"""A living worker lets go of a cancelled chunk within seconds; the lease of a lost one has ended by then."""
LOOK_SECONDS = 0.2


class JobCloser:
    """Deletes jobs in ``batches``; each goes at last by ``finish``, after a call of ``before_last``. ``say`` gets
    a sentence when something is waited for.

    ``shared`` says which folder a job under way that stays stores into, too: the job to be deleted is left then.
    """

    def __init__(
        self,
        batches: Batches,
        settings: Settings,
        store: Store,
        say: Callable[[str], None],
        *,
        finish: Callable[[Session, int], bool] = closing.delete_job,
        before_last: Callable[[], None] = lambda: None,
    ) -> None:
        self.batches = batches
        self.finish = finish
        self.before_last = before_last
        self.root = settings.store
        self.store = store
        self.say = say
        self.neighbourhood = Neighbourhood(settings.store)
        self.shared: str | None = None

    def delete_all(self, jobs: Callable[[], Iterable[ClosingJob]]) -> None:
        """Every one of these jobs, which are asked for twice; all are cancelled."""
        self.shared = None
        for job in jobs():
            self.neighbourhood.settle(job.id, job.store_url)
        self.neighbourhood.newest = 0
        for job in jobs():
            self.delete(job)

    def delete(self, job: ClosingJob) -> None:
        """One job with everything of it; a walk that follows finishes what came to it meanwhile."""
        prefix = f"jobs/{job.id}"
        own = job.store_url == f"{self.root}/{prefix}" and not self.neighbours(job)
        self.delete_chunks(job)
        if own:
            self.batches.drain("images", closing.delete_images, job.id)
        elif not self.delete_images_and_objects(job):
            return
        self.batches.drain("failures", closing.delete_failures, job.id)
        self.batches.drain("seen_keys", seen.delete_seen, job.id)
        self.batches.drain("pages", frontier.delete_pages, job.id)
        if own:
            for discarded in discard_prefix(self.store, prefix):
                self.batches.count_objects(discarded)
        self.batches.count_objects(discard_input(self.store, job.input))
        self.before_last()
        if self.batches.commit(self.finish, job.id):
            self.batches.count("crawl_jobs", 1)

    def delete_chunks(self, job: ClosingJob) -> None:
        """All chunks of a cancelled job; those that a worker has once it has let go, or was waited for."""
        patience_ends = time.monotonic() + WORKER_SECONDS_MAX
        told = False
        while True:
            patient = time.monotonic() < patience_ends
            self.batches.drain("job_chunks", closing.delete_chunks, job.id, patient, size_max=CHUNK_BATCH)
            left = self.batches.commit(closing.chunks_left, job.id)
            if not left:
                return
            if not told:
                self.say(f"Waiting until workers have let go of {counted(left, 'chunk')} of job {job.id}.")
                told = True
            self.batches.stop.wait(LOOK_SECONDS)

    def delete_images_and_objects(self, job: ClosingJob) -> bool:
        """Batch by batch the objects that the rows name, then the rows. False: the folder is in use."""
        store = open_folder(job.store_url)
        batch = min(self.batches.size, OBJECT_BATCH)
        while images := self.batches.commit(closing.named_objects, job.id, batch):
            if store is None:
                self.miss(job)
            elif not self.discard(job, store, images):
                return False
            self.batches.count("images", self.batches.commit(closing.delete_named, job.id, images))
        return True

    def discard(self, job: ClosingJob, store: Store, images: Sequence[NamedObject]) -> bool:
        """The objects of these rows, unless the row of a job that stays names them. False: the folder is in use."""
        near = self.neighbours(job)
        using = next((neighbour for neighbour in near if neighbour.unended), None)
        if using is not None:
            self.shared = (
                f"Job {using.id} of {using.email} stores into the same folder, {place(store.root)}, as job "
                f"{job.id} and has not ended: run the command again when it has."
            )
            return False
        kept = None
        if near:
            digests = [image.sha256 for image in images if image.sha256 is not None]
            kept = self.batches.commit(folders.stored_by, [neighbour.id for neighbour in near], digests)
        self.batches.count_objects(discard_named(store, images, kept))
        return True

    def miss(self, job: ClosingJob) -> None:
        """Say once that a folder is not here: its user may have moved it, or this may be another machine."""
        missing = self.batches.deleted.missing_folders
        if job.store_url is not None and job.store_url not in missing:
            missing.append(job.store_url)
            self.say(f"{place(job.store_url)} is not here: nothing in it is deleted.")

    def neighbours(self, job: ClosingJob) -> list[folders.Neighbour]:
        """The jobs that stay in the folder of a job, as of now."""
        last: int | None = max(0, self.neighbourhood.newest - LATE_JOBS)
        while last is not None:
            self.neighbourhood.newest = max(self.neighbourhood.newest, last)
            found, last = self.batches.commit(
                folders.folders_of_others, self.batches.going, self.root, last, FOLDERS_PAGE
            )
            self.neighbourhood.meet((other.id, other.store_url) for other in found)
        near = self.neighbourhood.of(job.store_url)
        if not near:
            return []
        return self.batches.commit(folders.neighbours, self.batches.going, near)
