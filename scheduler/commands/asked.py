"""What ``submit`` and ``run`` are asked to crawl: their argument and the options for it, spelled once."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from models.settings import Settings
from scheduler.commands.options import table_options
from scheduler.printing import count, counted
from worker.tables.formats import Format, TableOptions

if TYPE_CHECKING:
    from scheduler.enqueue import Submission, Supply
    from scheduler.searching import Search


SEARCH = "a search: give its keywords with -k"


@dataclass(frozen=True, slots=True)
class Asked:
    """As the command line has it."""

    inputs: tuple[str, ...]
    table_format: str | None
    url_column: str | None
    hash_column: str | None
    unique_urls: bool
    keywords: tuple[str, ...]
    providers: tuple[str, ...]
    licences: tuple[str, ...]
    dry_run: bool

    @property
    def tables(self) -> TableOptions:
        """What the names of files and columns do not say."""
        kind = Format(self.table_format) if self.table_format else None
        return TableOptions(kind, self.url_column, self.hash_column)

    def given(self, settings: Settings) -> "Sequence[str] | Supply":
        """The inputs, or a search. Raises UsageError for what does not go together, RequestError for what cannot be
        searched for so.
        """
        if self.keywords or self.dry_run:
            return self.search(settings)
        self._refuse(bool(self.providers), "--provider", SEARCH)
        self._refuse(bool(self.licences), "--license", SEARCH)
        if not self.inputs:
            raise click.UsageError("There is nothing to crawl: give an INPUT, or keywords with -k.")
        return self.inputs

    def search(self, settings: Settings) -> "Search":
        """What is searched for. Raises what ``given`` does."""
        self._refuse(not self.keywords, "--dry-run", SEARCH)
        if self.inputs:
            raise click.UsageError("A job takes an INPUT or keywords (-k), not both: make two jobs.")
        from scheduler.searching import make_search

        for option in ("format", "url_column", "hash_column", "unique_urls"):
            value = self.table_format if option == "format" else getattr(self, option)
            self._refuse(bool(value), f"--{option.replace('_', '-')}", "an INPUT, and a search has none")
        return make_search(settings, self.keywords, self.providers, self.licences)

    def _refuse(self, is_given: bool, option: str, what_for: str) -> None:
        if is_given:
            raise click.UsageError(f"{option} is for {what_for}.")


def asked_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """INPUT and everything that says what to crawl, as one parameter ``asked`` of the command."""
    names = [field.name for field in fields(Asked)]

    @functools.wraps(command)
    def with_asked(**values: Any) -> Any:
        return command(asked=Asked(**{name: values.pop(name) for name in names}), **values)

    options = (
        click.argument("inputs", nargs=-1, metavar="[INPUT...]"),
        click.option(
            "-k", "--keyword", "keywords", multiple=True, metavar="WORDS", help="Search for images of this."
        ),
        click.option(
            "--provider",
            "providers",
            multiple=True,
            metavar="NAME",
            help="Where to search; docs/sources.md lists them.  [default: openverse]",
        ),
        click.option(
            "--license",
            "licences",
            multiple=True,
            metavar="WORD",
            help="Only under these: cc0, pdm, by, by-sa, … or open, commercial, modification.  [default: any]",
        ),
        click.option("--dry-run", is_flag=True, help="Show the first results of a search, and its price."),
        table_options,
    )
    wrapped: Callable[..., Any] = with_asked
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _check_max_images(_: click.Context, __: click.Parameter, value: int | None) -> int | None:
    from scheduler.enqueue import check_max_images

    check_max_images(value)
    return value


def max_images_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``-n``, ``--max-images``."""
    return click.option(
        "-n",
        "--max-images",
        type=int,
        callback=_check_max_images,
        help="Stop when so many images are accepted.  [default: all of INPUT, 1000 of a search]",
    )(command)


def begun(given: "Sequence[str] | Supply", submission: "Submission", max_images: int | None) -> str:
    """What the new job does, in a few words."""
    if isinstance(given, Sequence):
        return counted(submission.candidates, "candidate")
    return f"{given.what}, until {count(max_images or given.max_images)} images are accepted"
