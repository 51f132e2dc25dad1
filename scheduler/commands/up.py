"""``pixtrawl up``: services, scheduler, worker and Flower in one terminal until Ctrl-C. Crawls nothing itself."""

import os
import shlex
import socket
import threading
from collections.abc import Callable

import click

from models.settings import Settings, read_settings
from scheduler.interrupts import Interrupts
from scheduler.monitor import USER, listen, password
from scheduler.parts import Parts

COLOURS = {"scheduler": "cyan", "worker": "green", "flower": "magenta"}
STOPPING = "Stopping; work under way is handed back. Once more: now."


@click.command()
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1024),
    help="Chunks at once, each in a process of its own.  [default: number of processors]",
)
@click.option(
    "--flower-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port of Flower on 127.0.0.1.  [default: any free one]",
)
def up(concurrency: int | None, flower_port: int) -> None:
    """Run services, scheduler, worker and Flower until Ctrl-C; a part that dies is started again.

    Meanwhile submit, jobs, show, watch and cancel work from other terminals.
    """
    from scheduler.connect import connected

    settings = read_settings()
    with open_port(flower_port) as listener, connected(settings) as joined:
        print_line = line_printer()
        say = say_with(print_line)
        with (
            Interrupts(STOPPING, say) as interrupts,
            Parts(joined, say, home=settings.home if settings.embedded else None, show=print_line) as parts,
        ):
            interrupts.hurry, interrupts.gentle = parts.hurry, True
            parts.start("scheduler", "scheduler")
            parts.start("worker", "worker", *(["--concurrency", str(concurrency)] if concurrency else []))
            number = listener.fileno()
            parts.start(
                "flower", "--listener", str(number), module="scheduler.monitor", descriptors=(number,)
            )
            click.echo(banner(joined, settings, listener, concurrency or os.cpu_count() or 1))
            interrupts.stop.wait()


def open_port(port: int) -> socket.socket:
    """Flower's socket. Raises UsageError when the port is taken: a restarted Flower keeps the one it has."""
    try:
        return listen(port)
    except OSError as error:
        raise click.UsageError(
            f"Port {port} of 127.0.0.1 cannot be used ({error.strerror}): name another with --flower-port."
        ) from None


def banner(joined: Settings, settings: Settings, listener: socket.socket, slots: int) -> str:
    """What runs where, and what to type next."""
    where = f"embedded, in {settings.home}" if settings.embedded else "your own PostgreSQL and Redis"
    port = listener.getsockname()[1]
    home = "" if settings.home == default_home() else f"PIXTRAWL_HOME={shlex.quote(str(settings.home))} "
    return "\n".join(
        [
            f"Pixtrawl is up ({where}); {slots} chunks at once; images go to {joined.store}",
            f"  Flower    http://127.0.0.1:{port}  user {USER}  password {password(settings.home)}",
            "In another terminal:",
            f"  {home}pixtrawl submit urls.txt",
            f"  {home}pixtrawl jobs | show JOB | watch JOB | cancel JOB",
            f'  eval "$({home}pixtrawl env)"     for psql, celery and alembic',
            "Ctrl-C stops all of it.",
        ]
    )


def default_home() -> object:
    """Where the home is unless it is set."""
    factory = Settings.model_fields["home"].default_factory
    return factory() if callable(factory) else None  # type: ignore[call-arg] # It takes no argument.


def line_printer() -> Callable[[str, str], None]:
    """Print the lines of several parts, each whole and under its part's name."""
    lock = threading.Lock()

    def print_line(name: str, line: str) -> None:
        prefix = click.style(f"{name:>9} │", fg=COLOURS.get(name))
        with lock:
            click.echo(f"{prefix} {line}", err=True)

    return print_line


def say_with(print_line: Callable[[str, str], None]) -> Callable[[str], None]:
    """What the command itself has to say, among its parts' lines."""
    return lambda sentence: print_line("pixtrawl", sentence)
