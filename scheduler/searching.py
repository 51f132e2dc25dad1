"""From the words of a command to a search: keywords, providers and licences, checked without a connection."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from models.jobs import SourceKind
from models.settings import Settings
from scheduler.copying import RequestError
from worker.sources.licences import Licences, read_licences
from worker.sources.provider import ProviderError, open_provider

DEFAULT_PROVIDER = "openverse"
DEFAULT_MAX_IMAGES = 1000
KEYWORDS_MAX = 100
KEYWORD_LENGTH_MAX = 200
PROVIDER_LENGTH_MAX = 50


@dataclass(frozen=True, slots=True)
class Search:
    """What is searched for, where, and under which licences; none: any."""

    keywords: tuple[str, ...]
    providers: tuple[str, ...]
    licences: Licences

    kind = SourceKind.KEYWORDS
    candidates = 0
    detail = None
    max_images = DEFAULT_MAX_IMAGES

    @property
    def title(self) -> str:
        """What its job is called."""
        return ", ".join(self.keywords)

    @property
    def what(self) -> str:
        """What its job does."""
        words = ", ".join(f"'{keyword}'" for keyword in self.keywords)
        return f"searches {' and '.join(self.providers)} for {words}"

    @property
    def source(self) -> dict[str, Any]:
        """The job's source."""
        return {
            "keywords": list(self.keywords),
            "providers": list(self.providers),
            "licences": sorted(self.licences.words),
        }

    @property
    def content(self) -> list[object]:
        """What tells whether two searches are the same."""
        return [self.source]


def make_search(
    settings: Settings, keywords: Sequence[str], providers: Sequence[str], licences: Iterable[str]
) -> Search:
    """Raises RequestError for what no provider could be asked."""
    words = tuple(dict.fromkeys(" ".join(keyword.split()) for keyword in keywords))
    for word in words:
        if not word or len(word) > KEYWORD_LENGTH_MAX or not word.isprintable():
            raise RequestError(f"A keyword has 1 to {KEYWORD_LENGTH_MAX} characters, and {word!r} is none.")
    if len(words) > KEYWORDS_MAX:
        raise RequestError(f"One job searches for at most {KEYWORDS_MAX} keywords, not {len(words):,}.")
    try:
        filtered = read_licences(part for word in licences for part in word.split(","))
    except ValueError as error:
        raise RequestError(f"--license: {error}.") from None
    names = tuple(dict.fromkeys(providers)) or (DEFAULT_PROVIDER,)
    for name in names:
        try:
            open_provider(name, settings).check(filtered)
        except ProviderError as error:
            raise RequestError(f"--provider {name}: {error}.") from None
    return Search(words, names, filtered)
