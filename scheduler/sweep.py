"""Sweeping: objects that no row of an ended job names, copies of inputs that nobody needs any more.

A crash between a put and its commit leaves an object; most often the next attempt stores and names the same, for
names are digests, but not when it fails, or gets other bytes. Works beside the leader's rounds, in a thread with a
session of its own. Must never delete what a row names or may come to name: a job that has ended has no worker
that could commit, and nobody reopens it while its objects are deleted (``kept_ended``). Deletes in a job's own
prefix of the store only; in a folder of the user's choice nothing.
"""

import datetime
import itertools
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Self

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.database import make_engine, transient
from models.folders import Going, folders_of_others
from models.settings import Settings
from models.sweeping import (
    UnsweptJob,
    forget_inputs,
    has_ended,
    inputs_in_use,
    kept_ended,
    mark_swept,
    named_digests,
    named_urls,
    unswept_job,
)
from scheduler.discard import INPUT, place_of
from worker.store import MissingObjectError, Store, StoredObject, StoreError, open_store, sweep_partial

STRAY_SECONDS = 900.0
"""So long ago a job must have ended, and an object must have been stored, by the store's own clock. Not what makes
it safe, but late puts of workers that were given up are swept, too."""
SUBMIT_SECONDS = 86_400.0
"""A copy of an input gets its row right after it; one without a row that is so old was left by a crash."""
LOOK_SECONDS = 10.0
RETRY_SECONDS = 60.0
INPUTS_SECONDS = 3600.0
PAGE = 1000
FOLDERS_PAGE = 5000
LATE_JOBS = 1000
LEAVE_SECONDS = 5.0
IDLE_SECONDS_MAX = 60
"""Longer than a page takes to delete. A sweeper that is stopped loses its session, and with it its lock."""
OBJECT = re.compile(r"jobs/\d+/([0-9a-f]{64})\.[a-z]+")

log = structlog.get_logger()


class StoppedError(Exception):
    """``stop`` was set: the next leader goes on."""


class Sweeper:
    """A context manager: sweeps in a thread of its own until its end. What is done stands in the database."""

    def __init__(self, settings: Settings, *, stray_seconds: float = STRAY_SECONDS) -> None:
        self.settings = settings
        self.stray_seconds = stray_seconds
        self.stop = threading.Event()
        self.engine = make_engine(
            settings.sqlalchemy_url,
            pooled=False,
            application_name="pixtrawl sweep",
            idle_session_timeout=f"{IDLE_SECONDS_MAX}s",
        )
        self.retry_at: dict[int, float] = {}
        self.inputs_at = 0.0
        self.occupied = Occupied(settings.store)
        self.thread = threading.Thread(target=self.run, name="sweeper", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(LEAVE_SECONDS)

    def run(self) -> None:
        """Look every few seconds what is due, whatever failed before."""
        while not self.stop.wait(LOOK_SECONDS):
            try:
                self.sweep()
            except StoppedError:
                return
            except DBAPIError as error:
                if not transient(error):
                    log.exception("sweep_failed")
                self.stop.wait(RETRY_SECONDS)
            except Exception:
                log.exception("sweep_failed")
                self.stop.wait(RETRY_SECONDS)

    def sweep(self) -> None:
        """Everything that is due now. Raises StoppedError or DBAPIError."""
        with self.engine.connect() as connection:
            while job := self.next_job(connection):
                try:
                    self.sweep_job(connection, job)
                except StoreError as error:
                    log.warning("sweep_put_off", job=job.id, error=str(error))
                    self.retry_at[job.id] = time.monotonic() + RETRY_SECONDS
            if time.monotonic() >= self.inputs_at:
                self.inputs_at = time.monotonic() + INPUTS_SECONDS
                try:
                    self.sweep_inputs(connection)
                except StoreError as error:
                    log.warning("sweep_put_off", error=str(error))

    def next_job(self, connection: Connection) -> UnsweptJob | None:
        """The next job to be swept. Raises StoppedError."""
        if self.stop.is_set():
            raise StoppedError
        now = time.monotonic()
        self.retry_at = {job_id: at for job_id, at in self.retry_at.items() if at > now}
        with Session(connection) as session, session.begin():
            return unswept_job(session, self.stray_seconds, skip=self.retry_at)

    def sweep_job(self, connection: Connection, job: UnsweptJob) -> None:
        """ended → swept. Its own prefix is listed until nothing in it is to be deleted."""
        swept, young = 0, False
        self.occupied.look(connection)
        own = f"{self.settings.store}/jobs/{job.id}"
        if job.store_url == own and job.id not in self.occupied.jobs:
            store = open_store(self.settings.store)
            page_swept = 1
            while page_swept:
                page_swept = 0
                for page in self.pages(store.list(f"jobs/{job.id}"), OBJECT):
                    deleted, younger = self.sweep_page(connection, store, job, page)
                    page_swept += deleted
                    young = young or younger
                swept += page_swept
            swept += sweep_partial(own, self.stray_seconds)
        if young:
            self.retry_at[job.id] = time.monotonic() + self.stray_seconds
            return
        with Session(connection) as session, session.begin():
            mark_swept(session, job)
        if swept:
            log.info("job_swept", job=job.id, objects=swept)

    def pages(self, listed: Iterable[StoredObject], pattern: re.Pattern[str]) -> Iterator[list[StoredObject]]:
        """Pages of those objects whose name is one of ours. Raises StoppedError."""
        ours = (stored for stored in listed if pattern.fullmatch(stored.name))
        while page := list(itertools.islice(ours, PAGE)):
            if self.stop.is_set():
                raise StoppedError
            yield page

    def sweep_page(
        self, connection: Connection, store: Store, job: UnsweptJob, page: list[StoredObject]
    ) -> tuple[int, bool]:
        """(objects deleted, whether one that no row names is left because it is young)."""
        if not strays(connection, store, job.id, page):
            return 0, False
        moment = store_clock(store) - datetime.timedelta(seconds=self.stray_seconds)
        with kept_ended(connection, job.id):
            # What was asked before may have changed until now; from here on it does not.
            found = strays(connection, store, job.id, page)
            old = [stored.name for stored in found if stored.modified_at < moment]
            store.delete(old)
        return len(old), len(old) < len(found)

    def sweep_inputs(self, connection: Connection) -> None:
        """Copies of the inputs of jobs that ended ``input_days`` ago, and those that no job names."""
        store = open_store(self.settings.store)
        moment: datetime.datetime | None = None
        swept = 0
        for page in self.pages(store.list("inputs"), INPUT):
            names = [stored.name for stored in page]
            with Session(connection) as session, session.begin():
                forgotten = forget_inputs(session, names, self.settings.input_days * 86_400)
            with Session(connection) as session, session.begin():
                unused = set(names) - inputs_in_use(session, names)
            if unused and moment is None:
                moment = store_clock(store) - datetime.timedelta(seconds=SUBMIT_SECONDS)
            going = [
                stored.name
                for stored in page
                if stored.name in unused
                and (stored.name in forgotten or (moment is not None and stored.modified_at < moment))
            ]
            store.delete(going)
            swept += len(going)
        if swept:
            log.info("inputs_swept", objects=swept)


def strays(
    connection: Connection, store: Store, job_id: int, page: Iterable[StoredObject]
) -> list[StoredObject]:
    """Those of the objects that no row of a job names; none while it has not ended."""
    digests = {stored: found[1] for stored in page if (found := OBJECT.fullmatch(stored.name))}
    with Session(connection) as session, session.begin():
        if not has_ended(session, job_id):
            return []
        named = named_digests(session, job_id, digests.values())
        left = [stored for stored, digest in digests.items() if digest not in named]
        urls = named_urls(session, job_id, [store.url(stored.name) for stored in left]) if left else set()
    return [stored for stored in left if store.url(stored.name) not in urls]


def store_clock(store: Store) -> datetime.datetime:
    """What time it is where objects get theirs. The probe is named like the copy of an input: if this process
    dies over it, it is swept as one.
    """
    name = f"inputs/{uuid.uuid4()}.txt"
    store.put(name, b"What time is it?\n")
    try:
        return store.modified_at(name)
    except MissingObjectError:
        raise StoreError(f"the store {store.root} loses objects that were just written") from None
    finally:
        store.delete([name])


class Occupied:
    """The jobs into whose own prefix another job stores, by somebody's choice: those are not swept."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.jobs: set[int] = set()
        self.newest = 0

    def look(self, connection: Connection) -> None:
        """Look at the jobs that came since the last call, and again at the latest of before."""
        prefix = f"{place_of(self.root)}/jobs/"
        last: int | None = max(0, self.newest - LATE_JOBS)
        while last is not None:
            self.newest = max(self.newest, last)
            with Session(connection) as session, session.begin():
                found, last = folders_of_others(session, Going(), self.root, last, FOLDERS_PAGE)
            for job in found:
                with suppress(ValueError):  # Another service may have written anything there.
                    place = place_of(job.store_url)
                    if place.startswith(prefix):
                        self.jobs.add(int(place.removeprefix(prefix).partition("/")[0]))
