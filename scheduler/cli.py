"""The command line's entry: finds the command that was named, and turns every error into one sentence.

Holds no command. A command's module is imported when it is used, so that each starts fast.
"""

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

import click

from scheduler.importing import importing
from scheduler.interrupts import INTERRUPTED

FAILED, REFUSED, UNREACHABLE = 1, 2, 3

COMMANDS = {
    "Crawl": {
        "run": "Crawl files of URLs from start to end, here and now.",
        "demo": "Crawl a local site of generated photographs and check every figure.",
    },
    "Jobs": {
        "submit": "Queue a job for files of URLs.",
        "jobs": "List jobs, the newest first.",
        "show": "Show one job.",
        "watch": "Follow a job until it ends.",
        "report": "Count a job's outcomes by reason and host, and say what the pattern tells.",
        "failures": "List the candidates of a job without an image, and why.",
        "cancel": "End a job early and keep what it has.",
        "pause": "Hand out nothing more of a job.",
        "resume": "Go on with a paused job.",
        "priority": "Change how urgent a job is.",
        "retry": "Try candidates again that failed.",
        "delete": "Delete a job with its images.",
        "notifications": "List what the system has told you.",
    },
    "Accounts": {
        "credits": "Show, grant, refund, refill and audit credits.",
        "users": "Create, list and delete users.",
        "projects": "Create and list projects.",
    },
    "Operation": {
        "up": "Run everything here until Ctrl-C: services, scheduler, worker, Flower.",
        "scheduler": "Run a scheduler.",
        "worker": "Run a Celery worker.",
        "migrate": "Bring the database to this program's revision.",
        "db": "Look into the database: rows without a parent.",
        "env": "Print the addresses of the services in use, for a shell.",
        "doctor": "Check everything that is needed and say what to do.",
        "healthcheck": "Tell a container engine whether the worker or the scheduler here makes progress.",
    },
}
"""What `pixtrawl --help` lists, without importing a single command."""
TARGETS = {
    "credits": "scheduler.commands.credits:credits_",
    "show": "scheduler.commands.jobs:show",
    "watch": "scheduler.commands.jobs:watch",
    "cancel": "scheduler.commands.jobs:cancel",
    "pause": "scheduler.commands.jobs:pause",
    "resume": "scheduler.commands.jobs:resume",
    "priority": "scheduler.commands.jobs:priority",
    "notifications": "scheduler.commands.members:notifications",
    "users": "scheduler.commands.members:users",
    "projects": "scheduler.commands.members:projects",
}
"""Commands that are not ``scheduler.commands.NAME:NAME``."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Every name, in the order of the help."""
        return [name for section in COMMANDS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, imported now."""
        if cmd_name not in self.list_commands(ctx):
            return None
        target = TARGETS.get(cmd_name, f"scheduler.commands.{cmd_name}:{cmd_name}")
        module, _, attribute = target.partition(":")
        with importing():
            command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - the same
        """One section for each kind of command."""
        for title, section in COMMANDS.items():
            with formatter.section(title):
                formatter.write_dl(list(section.items()), col_max=14)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(version("pixtrawl"), prog_name="pixtrawl", message="%(prog)s %(version)s")
def pixtrawl() -> None:
    """Collect image datasets: every candidate gets one outcome, every stored image is paid for once.

    \b
    pixtrawl demo                         see it work
    pixtrawl run urls.txt --out images    crawl a list of URLs now
    pixtrawl up                           keep everything running; then, elsewhere:
    pixtrawl submit urls.txt              queue a job
    pixtrawl watch 1                      follow it

    Settings are environment variables, see docs/configuration.md. Exit codes: 0 done, 1 the job failed or
    a check did, 2 bad usage or input, 3 a service is unreachable, 130 interrupted.
    """  # noqa: D301 - click keeps the lines after this mark as they are


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A command returns its code, or None for 0."""
    # Python's last collections find only what ends with the process; they took a quarter of a command's whole time.
    atexit.register(gc.freeze)
    try:
        result: Any = pixtrawl.main(arguments, prog_name="pixtrawl", standalone_mode=False)
        sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    except Exception as error:  # noqa: BLE001 - the one place that turns every error into a sentence
        return _report(error)
    return result if isinstance(result, int) else 0


def _report(error: Exception) -> int:
    """Say on standard error what is wrong; the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return REFUSED
    code, sentence = _explain(error)
    print(f"pixtrawl: {sentence}", file=sys.stderr)  # noqa: T201 - the error message of the program
    if code == FAILED and _debugging():
        traceback.print_exception(error)
    return code


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and sentence. Imports here are paid for by a command that fails."""
    if isinstance(error, click.ClickException):
        usage = error.ctx if isinstance(error, click.UsageError) else None
        way_out = f" (see `{usage.command_path} --help`)" if usage else ""
        return REFUSED, f"{error.format_message().rstrip('.')}{way_out}."
    from kombu.exceptions import OperationalError as BrokerError
    from redis.exceptions import RedisError
    from sqlalchemy.exc import DBAPIError

    from models.credits import CreditError
    from models.database import SchemaError, UnreachableError, first_line, lock_timed_out, transient
    from models.settings import SettingsError
    from scheduler.copying import RequestError
    from scheduler.progress import UnknownJobError
    from scheduler.servers import ServicesError
    from worker.store import StoreError

    code, sentence = UNREACHABLE, str(error)
    if isinstance(error, (RequestError, UnknownJobError, SettingsError, CreditError)):
        code = REFUSED
    elif isinstance(error, StoreError):
        sentence = f"The store cannot be used: {error}."
    elif isinstance(error, (BrokerError, RedisError)):
        sentence = f"Redis cannot be used: {str(error).rstrip('.')}: check PIXTRAWL_REDIS_URL."
    elif isinstance(error, UnreachableError):
        sentence = f"{str(error).rstrip('.')}: start it, or check PIXTRAWL_DATABASE_URL."
    elif isinstance(error, DBAPIError) and lock_timed_out(error):
        sentence = (
            "Another session keeps rows locked that this needs: try again, or look for it in pg_stat_activity "
            "(state 'idle in transaction')."
        )
    elif isinstance(error, DBAPIError) and transient(error):
        sentence = f"PostgreSQL does not answer: {first_line(error)}."
    elif not isinstance(error, (ServicesError, SchemaError)):
        code, sentence = FAILED, _bug(error)
    return code, sentence


def _bug(error: Exception) -> str:
    """Name an error that nobody expected, and the line of ours that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}"  # noqa: PTH119 - may be '<string>'
    words = str(error).strip().splitlines()
    return (
        f"This is a bug in Pixtrawl ({type(error).__name__} in {where}{': ' + words[0] if words else ''}). "
        "Please report it in the project's issue tracker, with what PIXTRAWL_LOG_LEVEL=debug adds."
    )


def _debugging() -> bool:
    from models.settings import SettingsError, read_settings

    try:
        return read_settings().log_level == "debug"
    except SettingsError:
        return False


def _reader_gone() -> int:
    """Whoever read our output has left (``| head``): say nothing, and let Python's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
