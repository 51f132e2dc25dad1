"""Options that several commands have, spelled once."""

from collections.abc import Callable
from typing import TypeVar

import click

from models.outcomes import Verification

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


def verify_option(command: Command) -> Command:
    """``--verify``, as the parameter ``verify``: a word of Verification."""
    words = click.Choice([level.value for level in Verification])
    meaning = "Decode each image, read its header only, or take what begins as one.  [default: full]"
    return click.option("--verify", type=words, default=Verification.FULL.value, help=meaning)(command)
