"""What ``pixtrawl users delete`` and ``pixtrawl delete`` ask and say, and how they are interrupted.

scheduler/closing.py and scheduler/deletion.py delete.
"""

import sys
import time
from collections.abc import Callable

import click

from scheduler.batches import Deleted, StoppedError
from scheduler.deletion import Deletion, UnfinishedError
from scheduler.interrupts import INTERRUPTED, Interrupts
from scheduler.printing import count, counted, size

FAILED = 1
PROGRESS_SECONDS = 0.1


def confirmed(what: str, question: str) -> bool:
    """Ask whether all of this is to go. Raises UsageError when there is nobody to ask."""
    if not sys.stdin.isatty():
        raise click.UsageError(f"Nobody is here to be asked: add --yes to delete {what} all the same.")
    return click.confirm(question, err=True)


def run_deletion(make: Callable[..., Deletion], progress: "Progress", unfinished: str) -> tuple[int, Deleted]:
    """Walk to the end; the exit code, and what was deleted. A signal stops after the batch that is under way.

    ``make`` takes stop, say and show; ``unfinished`` says what to do when the end was not reached.
    """
    code = 0
    with Interrupts("Stopping after the batch that is under way.", progress.say) as interrupts:
        interrupts.gentle = True
        deletion = make(stop=interrupts.stop, say=progress.say, show=progress.show)
        try:
            deletion.run()
        except StoppedError:
            code = INTERRUPTED
        except UnfinishedError as error:
            progress.say(f"pixtrawl: {error}")
            code = FAILED
        finally:
            progress.clear()
            if not deletion.deleted.complete:
                say(unfinished if deletion.begun else "Nothing was deleted.")
    return code, deletion.deleted


def describe(what: str, deleted: Deleted, *tables: tuple[str, str]) -> str:
    """What a run has deleted, in one line; ``tables`` with the word for one of their rows."""
    parts = [
        *(counted(deleted.rows[table], noun) for table, noun in tables),
        f"{counted(deleted.objects, 'object')} ({size(deleted.bytes)})",
        counted(deleted.messages, "message"),
    ]
    return f"{what}: deleted {', '.join(parts)}{'' if deleted.complete else '; not complete'}"


def say(sentence: str) -> None:
    """Progress and hints go to standard error."""
    click.echo(sentence, err=True)


class Progress:
    """One line on a terminal that is written again and again; nothing elsewhere, sentences apart."""

    def __init__(self, what: str, jobs: int) -> None:
        self.what = what
        self.jobs = jobs
        self.terminal = sys.stderr.isatty()
        self.shown_at = float("-inf")

    def show(self, deleted: Deleted) -> None:
        """Write the line, if that is due."""
        if not self.terminal or time.monotonic() - self.shown_at < PROGRESS_SECONDS:
            return
        self.shown_at = time.monotonic()
        figures = (
            f"jobs {count(deleted.rows['crawl_jobs'])}/{count(self.jobs)}, "
            f"images {count(deleted.rows['images'])}, objects {count(deleted.objects)}, "
            f"other rows {count(sum(deleted.rows.values()) - deleted.rows['images'])}"
        )
        click.echo(f"\r\x1b[2KDeleting {self.what}: {figures}", nl=False, err=True)

    def say(self, sentence: str) -> None:
        """A sentence on a line of its own."""
        self.clear()
        say(sentence)

    def clear(self) -> None:
        """Take the line away."""
        if self.terminal:
            click.echo("\r\x1b[2K", nl=False, err=True)
