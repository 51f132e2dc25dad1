"""What people do at the wrong moment: cancel, pause, delete a user, while their work is under way."""

import random
import time
from pathlib import Path

from chaos.crowd import submit
from chaos.faults.workers import kill_pool_child
from chaos.processes import ChaosError, until
from chaos.registry import BrokenPromiseError, fault
from chaos.site import ACCEPTED, Line
from chaos.system import Job, System
from models import job_lifecycle as arrows
from models.database import transaction
from models.prioritizing import change_priority

CANCEL_SECONDS_MAX = 6
"""Two seconds for the transfers in flight and their settlement, and the scheduler's round that closes the job."""
LINES = 120

ENDED = "SELECT status FROM crawl_jobs WHERE id = :id AND completed_at IS NOT NULL"
OPEN_JOBS = "SELECT id FROM crawl_jobs WHERE completed_at IS NULL ORDER BY id"
ACTIVE = "SELECT FROM crawl_jobs WHERE id = :id AND active_chunks > 0"


def _good_lines(system: System, chance: random.Random, kind: str = "good") -> list[Line]:
    first = chance.randrange(1 << 24, 1 << 25)
    return [Line(f"{system.site.url}/{kind}/{first + place}", ACCEPTED) for place in range(LINES)]


def _own_job(system: System, chance: random.Random, user: str) -> Job:
    """A job of a fault's own, under way; the common check is not asked about it, since it does not complete."""
    job = submit(system, system.engine, user, _good_lines(system, chance, "slow"))
    system.acknowledged.remove(job)
    until(lambda: system.query(ACTIVE, id=job.id), "the first chunk of a job")
    return job


def _cancel(system: System, job: Job) -> None:
    """Cancel a job and measure until it has ended."""
    with transaction(system.engine) as session:
        if not arrows.cancel_job(session, job.id):
            raise ChaosError(f"job {job.id} has ended before it could be cancelled")
    began = time.monotonic()
    [(status,)] = until(lambda: system.query(ENDED, id=job.id), "the end of a cancelled job")
    seconds = time.monotonic() - began
    if seconds > CANCEL_SECONDS_MAX or status != "cancelled":
        raise BrokenPromiseError(f"a cancelled job is {status} after {seconds:.1f} s")


def _run(system: System, *arguments: str) -> None:
    """Run a command that must succeed."""
    finished = system.command(*arguments)
    if finished.returncode != 0:
        words = finished.stderr.strip()
        raise BrokenPromiseError(f"pixtrawl {' '.join(arguments)} ended with {finished.returncode}: {words}")


def _objects(system: System, job: Job) -> list[Path]:
    """What the store has of a job."""
    return [path for path in (system.store / "jobs" / str(job.id)).glob("*.*") if "#" not in path.name]


@fault(full=10)
def cancel_job(system: System, chance: random.Random) -> None:
    """A job is cancelled while its chunks are in flight: it ends within seconds, all that is stored is paid for."""
    job = _own_job(system, chance, chance.choice(system.users))
    time.sleep(chance.uniform(0, 1))
    _cancel(system, job)


@fault(full=10, deadline_seconds=120)
def retry_under_kills(system: System, chance: random.Random) -> None:
    """A cancelled job is tried again and a child killed: at its end every candidate is accepted, paid for once."""
    job = _own_job(system, chance, chance.choice(system.users))
    _cancel(system, job)
    kill_pool_child(system, chance)
    _run(system, "retry", str(job.id), "--all-failed")
    system.acknowledged.append(job)


@fault(full=10)
def change_priorities(system: System, chance: random.Random) -> None:
    """Every job that has not ended gets another priority."""
    for row in system.query(OPEN_JOBS):
        with transaction(system.engine) as session:
            change_priority(session, row.id, chance.randrange(11))


@fault(full=10)
def pause_and_resume(system: System, chance: random.Random) -> None:
    """Every job is paused for a moment and resumed."""
    ids = [row.id for row in system.query(OPEN_JOBS)]
    with transaction(system.engine) as session:
        paused = [job_id for job_id in ids if arrows.pause_job(session, job_id)]
    time.sleep(chance.uniform(0, 2))
    with transaction(system.engine) as session:
        for job_id in paused:
            arrows.resume_job(session, job_id)


@fault(full=5, deadline_seconds=120)
def delete_job(system: System, chance: random.Random) -> None:
    """``pixtrawl delete`` of a job whose chunks are in flight: nothing is left of it but what it was charged."""
    job = _own_job(system, chance, chance.choice(system.users))
    _run(system, "delete", str(job.id), "--yes")
    left = system.query("SELECT FROM images WHERE crawl_job_id = :id", id=job.id)
    objects = _objects(system, job)
    if left or objects:
        raise BrokenPromiseError(f"a deleted job left {len(left)} images and {len(objects)} objects")


@fault(full=5, deadline_seconds=120)
def delete_user(system: System, chance: random.Random) -> None:
    """``pixtrawl users delete`` while the user's chunks are in flight: nothing is left, others work on."""
    email = f"leaving-{chance.randrange(1 << 60)}@example.invalid"
    user_id = system.create_user(email)
    job = _own_job(system, chance, email)
    _run(system, "users", "delete", email, "--yes")
    until(
        lambda: not system.query("SELECT FROM job_chunks WHERE job_id = :id", id=job.id), "its last chunk", 10
    )
    left = system.query("SELECT FROM credit_transactions WHERE user_id = :id", id=user_id)
    objects = _objects(system, job)
    if left or objects:
        raise BrokenPromiseError(f"a deleted user left {len(left)} transactions and {len(objects)} objects")
