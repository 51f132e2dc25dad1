"""``pixtrawl scheduler``: the loop of scheduler/loop.py until a signal comes. Holds no logic of scheduling."""

import signal
import threading
from functools import partial

import click

from models.settings import read_settings
from scheduler.connect import await_database
from scheduler.importing import importing
from scheduler.interrupts import INTERRUPTED
from scheduler.parts import follow_command, standing


@click.command()
@click.option("--lifeline", type=int, hidden=True)
def scheduler(lifeline: int | None) -> int:
    """Split, queue, rescue and close jobs, until Ctrl-C or SIGTERM.

    One scheduler leads; any others stand by and take over when it is gone.
    """
    stop = threading.Event()
    received: list[int] = []

    def leave(number: int, _frame: object) -> None:
        received.append(number)
        stop.set()

    signal.signal(signal.SIGTERM, leave)
    if lifeline is not None:
        follow_command(lifeline)
    with importing():
        from models.logs import configure_logs
        from scheduler.loop import run_scheduler

    given, say = read_settings(), partial(click.echo, err=True)
    with standing(given, say) as settings:
        configure_logs(settings)
        # Only now: before, Ctrl-C ends the start of the services at once.
        signal.signal(signal.SIGINT, leave)
        if not given.embedded and lifeline is None:
            await_database(settings, stop.wait, say)
        run_scheduler(settings, stop)
    return INTERRUPTED if signal.SIGINT in received else 0
