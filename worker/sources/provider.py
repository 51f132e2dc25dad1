"""What a keyword provider is, what it may use, and how one is found. It never connects: ``ask`` does that.

ProviderError               it will not pass: the source ends, with this sentence
└── ProviderWait            it will pass: ask again after ``seconds``
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from models.settings import Settings
from worker.sources.licences import Licences, read_licences

__all__ = [
    "Answer",
    "Ask",
    "Hit",
    "Licences",
    "Pace",
    "Page",
    "Provider",
    "ProviderError",
    "ProviderWait",
    "offered_providers",
    "open_provider",
    "read_licences",
]

GROUP = "pixtrawl.providers"


class ProviderError(Exception):
    """The provider cannot be asked so, now or later. The message is one sentence that people read."""


class ProviderWait(ProviderError):  # noqa: N818 - nothing is wrong.
    """The provider asks to be left alone for so many seconds."""

    def __init__(self, seconds: float, why: str) -> None:
        super().__init__(why)
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Hit:
    """One image that a provider names. ``url`` is absolute, http or https; ``licence`` one of our words or None."""

    url: str
    provider_id: str
    source_page: str | None = None
    licence: str | None = None
    licence_version: str | None = None
    licence_url: str | None = None
    creator: str | None = None
    attribution: str | None = None
    title: str | None = None
    sha1: str | None = None
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What one search found, and the cursor of the next one; None: there is no more.

    A page may be empty and still have a next one. A cursor is a small JSON object, kept in the database. ``total``
    is about how many hits all pages together have, as far as they are given out; None: it does not say.
    """

    hits: Sequence[Hit]
    cursor: Mapping[str, Any] | None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a provider may be asked, by its own published rules, by the whole cluster together."""

    requests_per_second: float
    at_once: int = 1
    per_hour: int | None = None
    per_day: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One response to ``ask``: header names are in lower case, ``document`` is its JSON, None without any."""

    status: int
    headers: Mapping[str, str]
    document: Any


class Ask(Protocol):
    """The one way in which a provider reaches the web: paced, retried, bounded. Calls may be made at once."""

    async def __call__(
        self,
        url: str,
        params: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        heed: Callable[[Answer], None] | None = None,
    ) -> Any:
        """The JSON of a 2xx answer to a GET, or to a POST of ``form``; ``headers`` are added to ours.

        ``heed`` sees every answer before it is judged, and may raise in the provider's own words. When it returns,
        429 and 5xx are tried again and raise ProviderWait then (``Retry-After`` is honoured); other statuses and
        what is no JSON raise ProviderError.
        """
        ...


class Provider(Protocol):
    """A service that finds images by keyword: an entry point of the group ``pixtrawl.providers``.

    Made once for each child process, so it may keep a token. The entry point's name is ``name``: one word of
    lower-case letters and digits.
    """

    name: str
    pace: Pace

    def __init__(self, settings: Mapping[str, str]) -> None:
        """Take PIXTRAWL_PROVIDER_<NAME>_<FIELD> as {field: value}, and our ``user_agent``.

        Raises ProviderError, when a key is missing, say, and names the variable.
        """
        ...

    def check(self, licences: Licences) -> None:
        """Raise ProviderError when it cannot filter so: asked before a job is taken, without a connection."""
        ...

    async def search(
        self, ask: Ask, keyword: str, licences: Licences, cursor: Mapping[str, Any], limit: int
    ) -> Page:
        """One page of hits, in a few seconds. {} is the first cursor, ``limit`` about how many hits are of use.

        ``limit`` may be exceeded; hits that ``licences`` does not admit may be among them. Raises ProviderWait and
        ProviderError.
        """
        ...


def offered_providers() -> dict[str, EntryPoint]:
    """Every provider that an installed package offers, ours among them, by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def open_provider(name: str, settings: Settings) -> Provider:
    """The provider of this name. Raises ProviderError when there is none, or it cannot be made so."""
    offered = offered_providers()
    if name not in offered:
        known = ", ".join(offered) or "none: install this package properly"
        raise ProviderError(f"no installed package offers the provider {name!r}; there is {known}")
    fields = {field: word.get_secret_value() for field, word in settings.providers.get(name, {}).items()}
    try:
        provider: Provider = offered[name].load()({**fields, "user_agent": settings.user_agent})
    except ProviderError:
        raise
    except Exception as error:  # Nobody can foresee what somebody else's package raises.
        why = str(error) or type(error).__name__
        raise ProviderError(
            f"the provider {name!r} ({offered[name].value}) cannot be loaded: {why}"
        ) from error
    return provider
