"""``pixtrawl demo``: crawls a local site whose every answer is known, and checks what came of it.

In a home of its own, so that it cannot touch anybody's data, and with loopback allowed for itself only.
"""

import fcntl
import hashlib
import ipaddress
import os
import shlex
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models.settings import Settings, read_settings
from scheduler.interrupts import INTERRUPTED
from scheduler.printing import count, print_table, size

if TYPE_CHECKING:
    from models.audit import Statement, StoredImage
    from scheduler.demo_site import DemoSite
    from scheduler.system import System

FAILED = 1
IMAGE_BYTES_MAX = 8 * 1024 * 1024
LOOPBACK = ipaddress.ip_network("127.0.0.0/8")
SHEET = "pixtrawl-demo.png"


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything that the demo compares, read back from the database and the store."""

    job: dict[str, Any]
    outcomes: dict[int, str]
    images: "list[StoredImage]"
    files: dict[str, bytes]
    """The bytes of every object in the job's store, by name."""
    statement: "Statement"
    notifications: list[dict[str, Any]]


@click.command()
@click.option("--images", type=click.IntRange(1, 5000), default=200, show_default=True, help="Photographs.")
@click.option("--keep", is_flag=True, help="Keep the demo's home until the next demo.")
@click.option(
    "--sheet",
    type=click.Path(path_type=Path, dir_okay=False),
    default=SHEET,
    show_default=True,
    help="Where the contact sheet goes.",
)
def demo(images: int, keep: bool, sheet: Path) -> int:
    """Crawl a local site of generated photographs and check every figure.

    Some are missing, cut, too large, no pictures at all, redirected, doubled, slow or not meant to be collected.
    Exits with 1 unless each line has the right outcome and each credit is accounted for.
    """
    from scheduler.system import InterruptedJobError, PartError

    started = time.monotonic()
    with own_home(read_settings(), keep=keep) as settings:
        try:
            site, findings = crawl(settings, images)
        except PartError as error:
            say(f"pixtrawl: {error}")
            return FAILED
        except InterruptedJobError:
            return INTERRUPTED
        differences = [*site.differences(by_line(findings)), *wrong_figures(len(site.lines), findings)]
        present(site, findings)
        draw_sheet(findings, sheet)
        if keep:
            click.echo(
                f"Kept in {settings.home}: PIXTRAWL_HOME={shlex.quote(str(settings.home))} pixtrawl show 1"
            )
    for difference in differences:
        click.echo(f"✗ {difference}")
    verdict = f"{len(differences)} figures differ" if differences else "✓ Every figure agrees"
    click.echo(f"{verdict} ({time.monotonic() - started:.1f} s).")
    return FAILED if differences else 0


@contextmanager
def own_home(settings: Settings, *, keep: bool) -> Iterator[Settings]:
    """Settings of an empty home in HOME/demo, for one demo at a time. Raises ServicesError."""
    from scheduler.servers import ServicesError

    home = settings.home / "demo"
    settings.home.mkdir(parents=True, exist_ok=True)
    lock = os.open(settings.home / "demo.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServicesError(f"Another demo runs in {home}: wait for its end.") from None
        refuse_used(home)
        shutil.rmtree(home, ignore_errors=True)
        # The defaults, whatever the environment says: nothing of it may reach real data or change a figure.
        yield Settings.model_construct(
            home=home, allowed_networks=(LOOPBACK,), image_bytes_max=IMAGE_BYTES_MAX
        )
    finally:
        if not keep:
            shutil.rmtree(home, ignore_errors=True)
        os.close(lock)


def refuse_used(home: Path) -> None:
    """Raise ServicesError when somebody works with a kept demo."""
    from scheduler.devstack import Layout
    from scheduler.servers import ServicesError

    if not Layout(home).run.is_dir():
        return
    users = Layout(home).lock("users")
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ServicesError(f"A command still uses the kept demo in {home}: end it first.") from None
    finally:
        os.close(users)


def crawl(settings: Settings, photographs: int) -> "tuple[DemoSite, Findings]":
    """Make the site and crawl it through the whole system, as `pixtrawl run` does."""
    from scheduler.demo_site import DemoSite
    from scheduler.enqueue import submit
    from scheduler.system import running

    say(f"Making a site of {photographs} photographs and everything that can go wrong …")
    with (
        DemoSite(photographs, image_bytes_max=IMAGE_BYTES_MAX) as site,
        tempfile.TemporaryDirectory(prefix="pixtrawl-demo-") as folder,
        running(settings, None, say) as system,
    ):
        urls = Path(folder, "urls.txt")
        urls.write_text("".join(f"{line}\n" for line in site.lines), "utf-8")
        say(f"Crawling {site.url} with PostgreSQL, Valkey, a scheduler and Celery workers …")
        submission = submit(system.settings, system.engine, [str(urls)], name="Demo")
        job = system.follow(submission.job_id)
        return site, read_findings(system, job)


def read_findings(system: "System", job: dict[str, Any]) -> Findings:
    """Read back every row and every byte that the crawl has left."""
    from models import audit
    from models.database import transaction
    from models.members import find_user
    from models.reports import notification_reports
    from worker.store import open_store

    email = system.settings.user
    with transaction(system.engine) as session:
        user_id = find_user(session, email)
        if user_id is None:
            raise LookupError(f"There is no profile {email}.")
        outcomes = audit.outcomes(session, job["id"])
        images = audit.images(session, job["id"])
        statement = audit.statement(session, user_id)
        notifications = notification_reports(session, email, 10)
    store = open_store(job["store_url"])
    files = {stored.name: store.read(stored.name, 0, stored.size) for stored in store.list()}
    return Findings(job, outcomes, images, files, statement, notifications)


def by_line(findings: Findings) -> dict[int, str]:
    """Outcomes by line of the list, from 1: in the demo's list every line is a candidate."""
    return {position + 1: outcome for position, outcome in findings.outcomes.items()}


def wrong_figures(lines: int, findings: Findings) -> Iterator[str]:
    """One sentence for each figure that does not agree with another that must equal it."""
    job, money = findings.job, findings.statement
    counts = Counter(findings.outcomes.values())
    digests = {hashlib.sha256(body).digest() for body in findings.files.values()}
    equal = [
        ("lines of the list", lines, "candidates", job["total_images"]),
        ("candidates", job["total_images"], "outcomes", len(findings.outcomes)),
        ("image rows", len(findings.images), "valid_images", job["valid_images"]),
        ("image rows", len(findings.images), "stored files", len(findings.files)),
        ("image rows", len(findings.images), "credits charged to the job", job["credits"]["charged"]),
        ("credits charged to the job", job["credits"]["charged"], "to the account", money.charged),
        ("open holds", money.open, "nothing", 0),
        ("notifications", len(findings.notifications), "one", 1),
        ("failures by reason", job["failures"], "failure rows", without_accepted(counts)),
        ("digests in rows", {image.sha256 for image in findings.images}, "of the files' bytes", digests),
    ]
    for name, left, other, right in equal:
        if left != right:
            yield f"{name} ({left}) and {other} ({right}) differ"
    if not money.correct:
        yield f"the balance is not explained by its transactions: {money}"
    if job["status"] != "completed":
        yield f"the job is {job['status']}"


def without_accepted(counts: Counter[str]) -> dict[str, int]:
    """Counts of the reasons of failure only."""
    return {reason: number for reason, number in counts.items() if reason != "accepted"}


def present(site: "DemoSite", findings: Findings) -> None:
    """Print outcomes beside what the site served, the account's statement and the notification."""
    expected, found = site.expected_counts(), Counter(findings.outcomes.values())
    reasons = sorted(expected | found, key=lambda reason: (-expected[reason], reason))
    rows = [
        (
            str(reason),
            count(expected[reason]),
            count(found[reason]),
            "✓" if expected[reason] == found[reason] else "✗",
        )
        for reason in reasons
    ]
    rows.append(("total", count(expected.total()), count(found.total()), ""))
    print_table(("OUTCOME", "EXPECTED", "FOUND", ""), rows, numbers=("EXPECTED", "FOUND"))
    click.echo()
    money = findings.statement
    balance = money.granted
    lines = [("starting bonus", money.granted), (f"held for {money.holds} chunks", -money.held)]
    lines += [("given back for what was not accepted", money.released)]
    statement = []
    for number, (what, amount) in enumerate(lines):
        balance = amount if number == 0 else balance + amount
        statement.append((what, f"{amount:+,}", count(balance)))
    statement.append(
        (f"= {count(money.charged)} images at 1 credit", f"{-money.charged:+,}", count(money.balance))
    )
    print_table(("ACCOUNT", "CREDITS", "BALANCE"), statement, numbers=("CREDITS", "BALANCE"))
    click.echo()
    for notification in findings.notifications:
        click.echo(f"Notification: {notification['title']}. {notification['message']}")


def draw_sheet(findings: Findings, path: Path) -> None:
    """Put the collected images on one picture."""
    from scheduler.contact_sheet import make_contact_sheet

    stored = sum(len(body) for body in findings.files.values())
    try:
        make_contact_sheet(
            findings.files.values(),
            path,
            title=f"Pixtrawl demo: {len(findings.files)} images, {size(stored)}",
        )
    except OSError as error:
        say(f"The contact sheet could not be written to {path}: {error.strerror}.")
    else:
        click.echo(f"Contact sheet: {path.absolute()}")


def say(sentence: str) -> None:
    """Progress goes to standard error."""
    click.echo(sentence, err=True)
