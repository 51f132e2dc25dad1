"""What owners say in a response header or in tdmrep.json: do not index this, do not train on it, do not mine it.

Pure; it never fetches. There is no standard for X-Robots-Tag but what Google and Bing document; noai and
noimageai are DeviantArt's. The TDM Reservation Protocol is a final report of a W3C community group (May 2024).
"""

import codecs
import datetime
import email.utils
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

from worker.robots import EVERYBODY, FILE_BYTES_MAX, PathPattern

REFUSING = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
"""Directives by which an image must not be collected; ``none`` is ``noindex, nofollow``."""
NOT_FOLLOWING = frozenset({"nofollow", "none"})
"""Directives by which the links of a page must not be followed."""
UNAVAILABLE_AFTER = "unavailable_after"
"""With a date behind it: from then on it is ``noindex``."""
RESERVATION = "tdm-reservation"
POLICY = "tdm-policy"
TDM_RULES_MAX = 1000
"""Rules of one tdmrep.json that are read. Somebody who writes more wants something reserved: what they leave of the
site is taken as reserved, and so is all of it when the file is too large to be read.
"""

# Words that stand before a colon and are no crawler's name. Dates have commas and colons of their own.
_DIRECTIVES = REFUSING | {
    "all",
    "index",
    "follow",
    "nofollow",
    "noarchive",
    "nocache",
    "nosnippet",
    "notranslate",
    "nositelinkssearchbox",
    "indexifembedded",
    "noodp",
    "noydir",
    UNAVAILABLE_AFTER,
    "max-snippet",
    "max-image-preview",
    "max-video-preview",
}
_AGENT = re.compile(r"([a-z][a-z0-9_.-]*|\*)(?:/\S*)?")
_EVERYBODY = frozenset({EVERYBODY, "robots"})
# Two of the forms of a date have a comma behind the day's name, which is no part of the list.
_WEEKDAY = re.compile(
    rf"({UNAVAILABLE_AFTER}\s*:\s*)(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\s*,", re.IGNORECASE
)


def refused_for(tags: Iterable[str], token: str) -> tuple[str, str] | None:
    """The first X-Robots-Tag value that refuses a crawler, and for whom it does; None when there is none.

    The most restrictive value counts: what is said to everybody is said to us, too.
    """
    return next(((tag, agent) for tag, agent, words in _said_to(tags, token) if words & REFUSING), None)


def forbids_following(tags: Iterable[str], token: str) -> bool:
    """Whether an X-Robots-Tag value, or the content of a robots meta element, lets a crawler follow no link."""
    return any(words & NOT_FOLLOWING for _, _, words in _said_to(tags, token))


def _said_to(tags: Iterable[str], token: str) -> Iterator[tuple[str, str, set[str]]]:
    """The value, the name it is said to, and the words of each directive that is meant for a crawler.

    A value is a list of directives. A crawler's name and a colon in it say for whom the rest of it is.
    """
    for tag in tags:
        agent = EVERYBODY
        for part in re.split("[,;]", _WEEKDAY.sub(r"\1", tag)):
            words, colon, rest = part.strip().lower().partition(":")
            if colon and words.strip() not in _DIRECTIVES:
                named = _AGENT.fullmatch(words.strip())
                agent, words = (named[1], rest) if named else (agent, "")
                words, _, rest = words.strip().partition(":")
            if agent in _EVERYBODY or agent == token:
                ended = words.strip() == UNAVAILABLE_AFTER and _is_past(rest.strip())
                yield tag, agent, {"noindex"} if ended else set(re.split(r"[\s:]+", words))


def _is_past(text: str) -> bool:
    """Whether a date and time, of HTTP, of a mail or by ISO 8601, is over. Any other is ignored, as by Google."""
    try:
        try:
            until = datetime.datetime.fromisoformat(text.upper())
        except ValueError:
            until = email.utils.parsedate_to_datetime(text)
        if until.tzinfo is None:
            until = until.replace(tzinfo=datetime.UTC)
        return until <= datetime.datetime.now(datetime.UTC)
    except (ValueError, TypeError, LookupError, ArithmeticError):
        return False


def reserves(value: object) -> bool:
    """Whether a value of tdm-reservation, from a header or a file, is the 1 that reserves."""
    return value in (1, "1")


class Reservation(NamedTuple):
    """One rule of a tdmrep.json: paths, and whether they are reserved; with the address of the policy, if any.

    ``unread`` is why it stands for rules that were not read.
    """

    location: str
    reserved: bool
    policy: str | None = None
    unread: str | None = None

    @property
    def text(self) -> str:
        """The rule as JSON, in the report's own words; or why there is none to show."""
        if self.unread is not None:
            return self.unread
        rule: dict[str, object] = {"location": self.location, RESERVATION: int(self.reserved)}
        return json.dumps(rule | ({POLICY: self.policy} if self.policy else {}))


class Reservations:
    """The rules of one tdmrep.json, in their order. Without any, nothing is reserved."""

    def __init__(self, rules: Sequence[Reservation] = ()) -> None:
        self.rules = rules
        self._patterns = [PathPattern(rule.location) for rule in rules]

    @classmethod
    def parse(cls, body: bytes) -> Self:
        """Read a file. What is none says nothing, and neither does a rule that breaks the protocol."""
        if len(body) >= FILE_BYTES_MAX:
            begins_as_json = body.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"[", b"{")
            return cls([_unread(f"the file has {FILE_BYTES_MAX} bytes or more")] if begins_as_json else [])
        try:
            read = json.loads(body)
        except (ValueError, RecursionError):
            return cls()
        # A file of one rule is often written without its brackets, and one for the whole site without location.
        entries = [{"location": "/", **read}] if isinstance(read, dict) else read
        if not isinstance(entries, list):
            return cls()
        rules = [rule for rule in map(_read_rule, entries) if rule is not None]
        if len(rules) > TDM_RULES_MAX:
            rules[TDM_RULES_MAX:] = [
                _unread(f"the file has {len(rules)} rules, and {TDM_RULES_MAX} are read")
            ]
        return cls(rules)

    def reservation(self, url: str) -> Reservation | None:
        """The rule by which a URL is reserved. The first that matches decides."""
        for rule, pattern in zip(self.rules, self._patterns, strict=True):
            if pattern.matches(url):
                return rule if rule.reserved else None
        return None


def _unread(why: str) -> Reservation:
    """What stands for rules that are not read: everything that none before has decided is reserved."""
    return Reservation("/", True, unread=f"{why}: the rest of the site is taken as reserved")


def _read_rule(entry: Any) -> Reservation | None:
    if not isinstance(entry, dict):
        return None
    location, value = entry.get("location"), entry.get(RESERVATION)
    if not isinstance(location, str) or value not in (0, 1, "0", "1"):
        return None
    policy = entry.get(POLICY)
    return Reservation(location, reserves(value), policy if isinstance(policy, str) and policy else None)
