"""robots.txt by RFC 9309: what a file says about a URL, and which line says it. Pure; it never fetches.

protego compares paths: wildcards, percent-encoding, precedence. Which lines are meant for us, and which of them
decided, it does not tell; so groups are read here, and every refusal can name its line.
"""

import functools
import re
import string
import urllib.parse
from collections.abc import Sequence
from typing import NamedTuple, Self

from protego import Protego

FILE_BYTES_MAX = 500 * 1024
"""A parser must read so much of a file, and need not read more (RFC 9309, section 2.5)."""
EVERYBODY = "*"
COMPARED_MAX = 24_000_000
"""Characters of a URL that all rules with wildcards together are compared with, 30 ms of work. Where they would be
more the URL counts as disallowed, since one of them may disallow it.
"""
RULE_CHARACTERS = 1000
"""A rule that does not match costs as much as so many characters besides."""
BLOCK_LINES = 100

_LINE_END = re.compile(r"\r\n|\r|\n")
_NAME = re.compile(r"[^\s/;,()]+")
_COMPATIBLE = re.compile(r"Mozilla/[\d.]+ \(compatible; ")
_AGENT = frozenset({"user-agent", "useragent", "user agent"})
_ALLOW = frozenset({"allow"})
# As Google's parser and protego have them: who misspells it means it all the same.
_DISALLOW = frozenset({"disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"})
_DELAY = frozenset({"crawl-delay", "crawl delay"})
_OURS = _AGENT | _ALLOW | _DISALLOW | _DELAY


class Line(NamedTuple):
    """One line of a file: its number, from 1, and the line as it stands."""

    number: int
    text: str


class PathPattern:
    """A pattern of robots.txt for paths: ``*`` is anything, a final ``$`` the end (RFC 9309, section 2.2.3)."""

    def __init__(self, pattern: str) -> None:
        self._parser = Protego.parse(f"User-agent: *\nDisallow: {_one_line(pattern)}")

    def matches(self, url: str) -> bool:
        """Whether the path and query of a URL match. An empty pattern matches nothing."""
        return not self._parser.can_fetch(url, EVERYBODY)


class Rules:
    """The lines of a robots.txt that one crawler obeys: those of its own groups, or else of everybody's.

    ``agent`` says for whom they stand; ``crawl_delay`` are the seconds that they ask for between two requests.
    """

    def __init__(self, agent: str = EVERYBODY, lines: Sequence[Line] = ()) -> None:
        self.agent = agent
        self.lines = lines
        self._parser: Protego | None = None
        self.crawl_delay: float | None = None
        self._wildcards = 0
        if lines:
            fields = [_read(line.text) for line in lines]
            self._wildcards = sum("*" in value or value.endswith("$") for _, value in fields)
            text = "\n".join(f"{field}: {_one_line(value)}" for field, value in fields)
            self._parser = Protego.parse(f"User-agent: *\n{text}")
            self.crawl_delay = self._parser.crawl_delay(EVERYBODY)

    @classmethod
    def parse(cls, body: bytes, token: str) -> Self:
        """Read a file, or the first FILE_BYTES_MAX bytes of one, for the crawler with this product token."""
        return cls(*select_lines(body, token))

    def refusal(self, url: str) -> Line | None:
        """The line that disallows a URL; None when it may be fetched. The longest match decides, and of equal
        ones ``Allow``. A line with the number 0 says why they were not compared.
        """
        if self._parser is None or not self._blocks:
            return None
        if self._wildcards * (RULE_CHARACTERS + len(url)) > COMPARED_MAX:
            why = f"{self._wildcards} rules with wildcards are too many for a URL of {len(url)} characters"
            return Line(0, f"{why}: it is taken as disallowed")
        if self._parser.can_fetch(url, EVERYBODY):
            return None
        return next(filter(None, (block.line_of(url) for block in self._blocks)), self.lines[0])

    @functools.cached_property
    def _blocks(self) -> list["_Block"]:
        """The longest patterns first: the first that matches is the one that decided."""
        read = [(line, *_read(line.text)) for line in self.lines]
        lines = [(line, pattern) for line, field, pattern in read if field == "disallow"]
        lines.sort(key=lambda each: len(each[1]), reverse=True)
        return [_Block(lines[start : start + BLOCK_LINES]) for start in range(0, len(lines), BLOCK_LINES)]


class _Block:
    """Some of the lines that disallow something, asked together first: a file may have 20,000 of them.

    Parsed when the first refusal asks: most files refuse nothing that is asked.
    """

    def __init__(self, lines: Sequence[tuple[Line, str]]) -> None:
        self._lines = lines
        self._patterns: list[PathPattern] = []

    def line_of(self, url: str) -> Line | None:
        """The first line that a URL matches."""
        if self._all.can_fetch(url, EVERYBODY):
            return None
        for place, (line, pattern) in enumerate(self._lines):
            if place == len(self._patterns):
                self._patterns.append(PathPattern(pattern))
            if self._patterns[place].matches(url):
                return line
        return None

    @functools.cached_property
    def _all(self) -> Protego:
        disallowed = "\n".join(f"Disallow: {_one_line(pattern)}" for _, pattern in self._lines)
        return Protego.parse(f"User-agent: *\n{disallowed}")


def product_token(user_agent: str) -> str:
    """The name by which robots.txt may address us: that of the first product of a User-Agent header (RFC 9110,
    section 10.1.5), or of the one that calls itself compatible with a browser.
    """
    shown = _COMPATIBLE.sub("", user_agent, count=1)
    name = _NAME.search(shown)
    return name[0].lower() if name else EVERYBODY


def select_lines(body: bytes, token: str) -> tuple[str, list[Line]]:
    """For whom the lines stand that the crawler with this product token obeys, and the lines: its own groups taken
    together, or those of everybody (RFC 9309, section 2.2.1). They are all that has to be kept of a file.

    Only User-agent lines begin a group. What is neither Allow, Disallow nor Crawl-delay, such as Sitemap, is
    passed over and separates nothing.
    """
    token = token.lower()
    groups: dict[str, list[Line]] = {}
    agents: set[str] = set()
    naming = False
    for number, raw in enumerate(_LINE_END.split(_decode(body)), start=1):
        field, value = _read(raw)
        if field == "user-agent":
            agents = agents if naming else set()
            naming = True
            name = _NAME.match(value)
            if name is not None:
                agents.add(name[0].lower())
                groups.setdefault(name[0].lower(), [])
        elif field:
            naming = False
            if value:
                for agent in agents & {token, EVERYBODY}:
                    groups[agent].append(Line(number, raw.strip()))
    agent = token if token in groups else EVERYBODY
    return agent, groups.get(agent, [])


def _read(line: str) -> tuple[str, str]:
    """Field and value of a line that matters here; both are empty for any other. A missing colon is forgiven."""
    rule = line.partition("#")[0].strip()
    field, colon, value = rule.partition(":")
    if not colon:
        field, _, value = rule.partition(" ")
    field = field.strip().lower()
    if field not in _OURS:
        return "", ""
    name = "user-agent" if field in _AGENT else "disallow" if field in _DISALLOW else field.replace(" ", "-")
    return name, value.strip()


def _decode(body: bytes) -> str:
    """UTF-8, whatever else it may be; a line that the bound cuts is no line."""
    if len(body) >= FILE_BYTES_MAX:
        body = body[:FILE_BYTES_MAX]
        body = body[: max(body.rfind(b"\n"), body.rfind(b"\r")) + 1]
    return body.decode("utf-8-sig", "replace")


def _one_line(pattern: str) -> str:
    """A value as protego may read it: what it takes for an end of line, and what is not ASCII, percent-encoded.
    JSON may have half a character in it, which then matches nothing.
    """
    return urllib.parse.quote(pattern, safe=string.punctuation, errors="surrogatepass")
