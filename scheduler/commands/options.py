"""Options that several commands have, spelled once."""

from collections.abc import Callable
from typing import TypeVar

import click

from models.outcomes import Verification
from worker.tables.formats import Format

Command = TypeVar("Command", bound=Callable[..., object])


def json_option(command: Command) -> Command:
    """``--json``, as the parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def user_option(command: Command) -> Command:
    """``--user``."""
    return click.option("--user", metavar="EMAIL", help="Act for this user.  [default: PIXTRAWL_USER]")(
        command
    )


def ignore_opt_outs_option(command: Command) -> Command:
    """``--ignore-opt-outs``."""
    return click.option(
        "--ignore-opt-outs",
        metavar="LIST",
        default="",
        help="Opt-outs not to obey, of robots, x-robots-tag and tdm, if the operator allows it.  [default: none]",
    )(command)


def limit_option(command: Command) -> Command:
    """``--limit``."""
    counts = click.IntRange(1, 100_000)
    return click.option("--limit", type=counts, default=20, show_default=True, help="Show so many at most.")(
        command
    )


def table_options(command: Command) -> Command:
    """``--format``, ``--url-column``, ``--hash-column`` and ``--unique-urls``; the first as ``table_format``."""
    words = click.Choice([word.value for word in Format])
    options = (
        click.option(
            "--format", "table_format", type=words, help="What INPUT is.  [default: by its name, else a list]"
        ),
        click.option("--url-column", metavar="NAME", help="Column with the URLs.  [default: url or alike]"),
        click.option(
            "--hash-column",
            metavar="NAME",
            help="Column with the sha256, sha1 or md5 that an image must have, else it is a mismatch.",
        ),
        click.option("--unique-urls", is_flag=True, help="Fetch no URL twice: the others are duplicates."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def page_options(command: Command) -> Command:
    """``--page`` and what says how far a crawl goes from there; the hosts as ``reach``."""
    options = (
        click.option(
            "--page",
            "pages",
            multiple=True,
            metavar="URL",
            help="Take the images of this page, or of a sitemap's.",
        ),
        click.option("--depth", type=int, metavar="N", help="Follow its links so far.  [default: 0]"),
        click.option("--same-host", "reach", flag_value="host", help="Stay on its host.  [default]"),
        click.option("--same-domain", "reach", flag_value="domain", help="Stay in its registered domain."),
        click.option(
            "--include", multiple=True, metavar="PATTERN", help="Read only pages like /gallery/*, or http://…"
        ),
        click.option("--exclude", multiple=True, metavar="PATTERN", help="Read no pages like */print/*"),
        click.option(
            "--max-pages", type=int, metavar="N", help="Read so many pages at most.  [default: 10000]"
        ),
        click.option("--max-host-pages", type=int, metavar="N", help="The same of one host.  [default: all]"),
        click.option(
            "--sitemaps", is_flag=True, help="Read the sitemaps that the site's robots.txt names, too."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def verify_option(command: Command) -> Command:
    """``--verify``, as the parameter ``verify``: a word of Verification."""
    words = click.Choice([level.value for level in Verification])
    meaning = "Decode each image, read its header only, or take what begins as one.  [default: full]"
    return click.option("--verify", type=words, default=Verification.FULL.value, help=meaning)(command)
