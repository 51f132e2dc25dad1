"""``pixtrawl worker``: the Celery worker of worker/app.py, in this process. Holds no logic of crawling."""

import os
import signal
import socket
import sys
import threading
import warnings
from functools import partial

import click
import structlog

from models.settings import Settings, read_settings
from scheduler.connect import await_database
from scheduler.importing import importing
from scheduler.interrupts import INTERRUPTED
from scheduler.parts import follow_command, standing


@click.command()
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    help="Chunks at once, each in a process of its own.  [default: number of processors]",
)
@click.option("--lifeline", type=int, hidden=True)
def worker(concurrency: int | None, lifeline: int | None) -> int:
    """Crawl what the scheduler hands out, until Ctrl-C or SIGTERM.

    The same program as `celery -A worker.app worker`. What is under way is handed back when the worker leaves.
    """
    # Until Celery has handlers of its own, SIGTERM is a clean exit, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if lifeline is not None:
        follow_command(lifeline)
    given = read_settings()
    say = partial(click.echo, err=True)
    with standing(given, say) as settings:
        if not given.embedded and lifeline is None:
            await_database(settings, threading.Event().wait, say)
        return run_worker(settings, concurrency or os.cpu_count() or 1)


def run_worker(settings: Settings, concurrency: int) -> int:
    """Run Celery's worker to its end and return the exit code.

    Not through Celery's command line: that obeys variables of any name that a user may have (APP, BROKER_URL)
    and puts the current folder first in the path. Everything of ours is imported before Celery could do so.
    """
    with importing():
        from celery.exceptions import SecurityWarning
        from celery.signals import worker_shutting_down

        import worker.tasks  # noqa: F401 - the tasks and what a child opens register themselves.
        from models.logs import configure_logs
        from worker.app import app

    app.settings = settings
    configure_logs(settings)
    # It warns root of pickled messages; ours are JSON, and are refused otherwise.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    os.chdir("/")
    asked_by: list[str] = []

    @worker_shutting_down.connect(weak=False)
    def remember(sig: str, **_: object) -> None:
        asked_by.append(sig)

    name = f"worker-{os.getpid()}@{socket.gethostname()}"
    process = app.Worker(
        hostname=name,
        concurrency=concurrency,
        loglevel=settings.log_level.upper(),
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        quiet=True,
        no_color=True,
    )
    structlog.get_logger().info("worker_started", worker=name, slots=concurrency)
    process.start()
    return INTERRUPTED if "SIGINT" in asked_by else int(process.exitcode or 0)
