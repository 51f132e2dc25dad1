"""Whether the worker of this host and the leading scheduler make progress: what a container engine asks.

A service that is away is nobody's ill health here: whoever waits for it recovers by itself, and starting it again
would only take longer.
"""

import socket
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from models.database import connection_lost, first_line, transaction
from models.leadership import last_round
from models.queueing import oldest_queued_seconds
from models.settings import Settings
from models.workers import LIVE_SECONDS, LiveWorker, live_workers_of

QUIET_SECONDS_MAX = 30
"""A worker with a free slot that took nothing for so long, while a message waited for as long, consumes nothing."""
ROUND_SECONDS_MAX = 60
"""A round takes milliseconds; reading a step of a source from a slow store may take this long."""


@dataclass(frozen=True, slots=True)
class Health:
    """What was found, in one sentence."""

    part: str
    healthy: bool
    reason: str


def check_worker(settings: Settings, engine: Engine, host: str | None = None) -> Health:
    """Whether this host's worker is alive, and takes what waits for it."""
    host = host or socket.gethostname()
    try:
        with transaction(engine) as session:
            workers, queued_seconds = live_workers_of(session, host), oldest_queued_seconds(session)
    except DBAPIError as error:
        return _database_away("worker", error)
    if not workers:
        return Health("worker", False, f"No worker of {host} has been seen for {LIVE_SECONDS} seconds.")
    free = [worker for worker in workers if worker.free > 0]
    idle = max(free, key=lambda worker: worker.quiet_seconds, default=None)
    names = ", ".join(worker.name for worker in workers)
    if idle is None or min(idle.quiet_seconds, queued_seconds) <= QUIET_SECONDS_MAX:
        return Health("worker", True, f"{names} works, or has nothing to do.")
    return _check_queue(settings, idle)


def _check_queue(settings: Settings, idle: LiveWorker) -> Health:
    """A chunk waits and a slot is free: the worker is ill if its message is there to be taken."""
    from scheduler.broker import AWAY, count_waiting

    try:
        waiting = count_waiting(settings)
    except AWAY:
        return Health("worker", True, f"Redis does not answer; {idle.name} waits for it.")
    if not waiting:
        return Health("worker", True, f"{idle.name} has nothing to take: messages were lost and come again.")
    return Health(
        "worker",
        False,
        f"{idle.name} has a free slot and took nothing for {idle.quiet_seconds:.0f} seconds, "
        f"though messages wait ({waiting}): start it again.",
    )


def check_scheduler(engine: Engine) -> Health:
    """Whether a scheduler leads and finishes its rounds, here or elsewhere."""
    try:
        with transaction(engine) as session:
            found = last_round(session)
    except DBAPIError as error:
        return _database_away("scheduler", error)
    if found is None:
        return Health(
            "scheduler", False, "No scheduler has ever finished a round: start `pixtrawl scheduler`."
        )
    name, seconds = found
    if seconds > ROUND_SECONDS_MAX:
        return Health(
            "scheduler",
            False,
            f"No scheduler has finished a round for {seconds:.0f} seconds; {name} was the last.",
        )
    return Health("scheduler", True, f"{name} leads; its last round was {max(0.0, seconds):.0f} seconds ago.")


def _database_away(part: str, error: DBAPIError) -> Health:
    if connection_lost(error):
        return Health(
            part, True, f"PostgreSQL does not answer; the {part} waits for it: {first_line(error)}."
        )
    return Health(part, False, f"The database refuses the look: {first_line(error)}.")
