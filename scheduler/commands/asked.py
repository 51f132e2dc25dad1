"""What ``submit`` and ``run`` are asked to crawl: their argument and the options for it, spelled once."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from models.settings import Settings
from scheduler.commands.options import page_options, table_options
from scheduler.printing import count, counted
from worker.tables.formats import Format, TableOptions

if TYPE_CHECKING:
    from scheduler.enqueue import Submission, Supply
    from scheduler.paging import PageCrawl
    from scheduler.searching import Search


ALL = 2_147_483_647
"""So many images are all that there are."""
SEARCH = "a search: give its keywords with -k"
PAGES = "a crawl by pages: say with --page where it begins"
PAGE_OPTIONS = ("depth", "reach", "include", "exclude", "max_pages", "max_host_pages", "sitemaps")
SPELLED = {
    "table_format": "--format",
    "providers": "--provider",
    "licences": "--license",
    "reach": "--same-host or --same-domain",
}


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
    pages: tuple[str, ...]
    depth: int | None
    reach: str | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    max_pages: int | None
    max_host_pages: int | None
    sitemaps: bool

    @property
    def tables(self) -> TableOptions:
        """What the names of files and columns do not say."""
        kind = Format(self.table_format) if self.table_format else None
        return TableOptions(kind, self.url_column, self.hash_column)

    def given(self, settings: Settings) -> "Sequence[str] | Supply":
        """The inputs, a search, or a crawl by pages. Raises UsageError for what does not go together, RequestError
        for what cannot be searched for or crawled so.
        """
        if self.pages:
            return self.page_crawl()
        for option in PAGE_OPTIONS:
            self._refuse(getattr(self, option) not in {None, (), False}, _spelled(option), PAGES)
        if self.keywords or self.dry_run:
            return self.search(settings)
        self._refuse(bool(self.providers), "--provider", SEARCH)
        self._refuse(bool(self.licences), "--license", SEARCH)
        if not self.inputs:
            raise click.UsageError("There is nothing to crawl: give an INPUT, keywords with -k, or a --page.")
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

    def page_crawl(self) -> "PageCrawl":
        """The pages to be read. Raises what ``given`` does."""
        if self.inputs or self.keywords:
            raise click.UsageError("A job takes an INPUT, keywords (-k) or pages (--page), not two of them.")
        from scheduler.paging import make_page_crawl

        for option in ("table_format", "url_column", "hash_column", "unique_urls"):
            self._refuse(bool(getattr(self, option)), _spelled(option), "an INPUT, and a page is none")
        for option in ("providers", "licences", "dry_run"):
            self._refuse(bool(getattr(self, option)), _spelled(option), SEARCH)
        return make_page_crawl(self.pages, **{option: getattr(self, option) for option in PAGE_OPTIONS})

    def refuse_both_looks(self) -> None:
        """Raise UsageError when ``--dry-run`` is given, too."""
        self._refuse(self.dry_run, "--dry-run", "a look at a search without trying it: leave out --quote")

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
        page_options,
    )
    wrapped: Callable[..., Any] = with_asked
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def _spelled(option: str) -> str:
    return SPELLED.get(option, f"--{option.replace('_', '-')}")


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
        help="Stop when so many images are accepted.  [default: all; 1000 of a search]",
    )(command)


def begun(given: "Sequence[str] | Supply", submission: "Submission", max_images: int | None) -> str:
    """What the new job does, in a few words."""
    if isinstance(given, Sequence):
        return counted(submission.candidates, "candidate")
    limit = max_images or given.max_images
    return given.what if limit >= ALL else f"{given.what}, until {count(limit)} images are accepted"
