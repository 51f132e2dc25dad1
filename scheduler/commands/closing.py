"""What ``pixtrawl users delete`` asks and says, and how it is interrupted. scheduler/closing.py deletes."""

import sys
import time

import click
from sqlalchemy import Engine

from models.closing import Estate
from models.settings import Settings
from scheduler.batches import Deleted, StoppedError
from scheduler.closing import Closing, PaymentPendingError, SharedFolderError
from scheduler.interrupts import INTERRUPTED, Interrupts
from scheduler.printing import count, counted, size

FAILED = 1
PROGRESS_SECONDS = 0.1


def confirmed(estate: Estate) -> bool:
    """Ask whether all of this is to go. Raises UsageError when there is nobody to ask."""
    if not sys.stdin.isatty():
        raise click.UsageError("Nobody is here to be asked: add --yes to delete the user all the same.")
    images = f"{counted(estate.images, 'image')} ({size(estate.bytes)})"
    jobs = f"{counted(estate.jobs, 'job')} in {counted(estate.projects, 'project')}"
    question = f"Delete {estate.email} with {jobs}, {images}, account and ledger, for good?"
    return click.confirm(question, err=True)


def close_user(settings: Settings, engine: Engine, estate: Estate) -> tuple[int, Deleted]:
    """Delete a user; the exit code, and what was deleted. A signal stops after the batch that is under way."""
    code = 0
    progress = Progress(estate)
    with Interrupts("Stopping after the batch that is under way.", progress.say) as interrupts:
        interrupts.gentle = True
        closing = Closing(
            settings, engine, estate.user_id, stop=interrupts.stop, say=progress.say, show=progress.show
        )
        try:
            closing.run()
        except StoppedError:
            code = INTERRUPTED
        except (SharedFolderError, PaymentPendingError) as error:
            progress.say(f"pixtrawl: {error}")
            code = FAILED
        finally:
            progress.clear()
            if not closing.deleted.complete:
                say(unfinished(estate.email, begun=closing.begun))
    return code, closing.deleted


def unfinished(email: str, *, begun: bool) -> str:
    """What to do about a deletion that did not reach its end."""
    if not begun:
        return "Nothing was deleted."
    return f"{email} is deleted in part and can start nothing: `pixtrawl users delete {email}` completes it."


def describe(email: str, deleted: Deleted) -> str:
    """What a run has deleted, in one line."""
    parts = [
        counted(deleted.rows["crawl_jobs"], "job"),
        counted(deleted.rows["images"], "image"),
        f"{counted(deleted.objects, 'object')} ({size(deleted.bytes)})",
        counted(deleted.rows["credit_transactions"], "transaction"),
        counted(deleted.messages, "message"),
    ]
    return f"{email}: deleted {', '.join(parts)}{'' if deleted.complete else '; not complete'}"


def say(sentence: str) -> None:
    """Progress and hints go to standard error."""
    click.echo(sentence, err=True)


class Progress:
    """One line on a terminal that is written again and again; nothing elsewhere, sentences apart."""

    def __init__(self, estate: Estate) -> None:
        self.estate = estate
        self.terminal = sys.stderr.isatty()
        self.shown_at = float("-inf")

    def show(self, deleted: Deleted) -> None:
        """Write the line, if that is due."""
        if not self.terminal or time.monotonic() - self.shown_at < PROGRESS_SECONDS:
            return
        self.shown_at = time.monotonic()
        figures = (
            f"jobs {count(deleted.rows['crawl_jobs'])}/{count(self.estate.jobs)}, "
            f"images {count(deleted.rows['images'])}, objects {count(deleted.objects)}, "
            f"other rows {count(sum(deleted.rows.values()) - deleted.rows['images'])}"
        )
        click.echo(f"\r\x1b[2KDeleting {self.estate.email}: {figures}", nl=False, err=True)

    def say(self, sentence: str) -> None:
        """A sentence on a line of its own."""
        self.clear()
        say(sentence)

    def clear(self) -> None:
        """Take the line away."""
        if self.terminal:
            click.echo("\r\x1b[2K", nl=False, err=True)
