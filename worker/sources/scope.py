"""Which pages a crawl may read: those of the hosts it began at, less or more what patterns say. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import cache
from typing import Any, Self

from publicsuffixlist import PublicSuffixList

from worker.address import ParsedURL, is_literal


class Reach(StrEnum):
    """How far a crawl goes from the pages it began with."""

    HOST = "host"
    DOMAIN = "domain"


class PatternError(ValueError):
    """A pattern is none. The message is one sentence."""


class Pattern:
    """``*`` is anything and ``?`` one character; the whole must match. One that begins with http:// or https:// is
    compared with the whole URL and names its own host, any other with path and query.
    """

    def __init__(self, text: str) -> None:
        self.whole = text.lower().startswith(("http://", "https://"))
        if not self.whole and not text.startswith(("/", "*")):
            raise PatternError(f"a pattern begins with /, * or http://, and {text!r} does not")
        parts = re.split(r"([*?])", text)
        wild = {"*": ".*", "?": "."}
        self._regex = re.compile("".join(wild.get(part) or re.escape(part) for part in parts), re.DOTALL)

    def matches(self, url: ParsedURL) -> bool:
        """Whether a page is meant."""
        return self._regex.fullmatch(url.url if self.whole else place_of(url)) is not None


class Scope:
    """The pages that a job may read."""

    def __init__(
        self,
        reach: Reach,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        hosts: Iterable[str] = (),
    ) -> None:
        self.reach = reach
        self.include = [Pattern(text) for text in include]
        self.exclude = [Pattern(text) for text in exclude]
        self.hosts = {reached(host, reach) for host in hosts}

    @classmethod
    def of(cls, source: Mapping[str, Any], hosts: Iterable[str]) -> Self:
        """The scope of a job's source, begun at ``hosts``."""
        reach = Reach(source.get("reach", Reach.HOST))
        return cls(reach, source.get("include", ()), source.get("exclude", ()), hosts)

    def holds(self, url: ParsedURL) -> bool:
        """Whether a page may be read: it is where the crawl goes, a pattern to include matches it, if there is any,
        and none to exclude.
        """
        if any(pattern.matches(url) for pattern in self.exclude):
            return False
        near = reached(host_of(url), self.reach) in self.hosts
        if not self.include:
            return near
        return any((near or pattern.whole) and pattern.matches(url) for pattern in self.include)


def host_of(url: ParsedURL) -> str:
    """A host with its port if it is none of the web's own."""
    return url.host if url.port in {80, 443} else f"{url.host}:{url.port}"


def place_of(url: ParsedURL) -> str:
    """Path and query of a URL."""
    return "/" + url.url.partition("://")[2].partition("/")[2]


def reached(host: str, reach: Reach) -> str:
    """What hosts have in common that a crawl goes to together."""
    name, colon, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "")
    if reach is Reach.HOST or is_literal(name):
        return host
    return f"{_suffixes().privatesuffix(name) or name}{colon}{port}"


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()
