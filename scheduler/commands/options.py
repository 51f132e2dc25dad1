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


def verify_option(command: Command) -> Command:
    """``--verify``, as the parameter ``verify``: a word of Verification."""
    words = click.Choice([level.value for level in Verification])
    meaning = "Decode each image, read its header only, or take what begins as one.  [default: full]"
    return click.option("--verify", type=words, default=Verification.FULL.value, help=meaning)(command)
