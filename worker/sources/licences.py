"""The words for licences: read from addresses and names, and the filter that a job sets. Knows no provider."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

WORDS = ("cc0", "pdm", "by", "by-sa", "by-nc", "by-nd", "by-nc-sa", "by-nc-nd")
"""Creative Commons' own codes. ``pdm`` is the public domain mark and whatever else says that no rights are left."""

GROUPS = {
    "commercial": frozenset({"cc0", "pdm", "by", "by-sa", "by-nd"}),
    "modification": frozenset({"cc0", "pdm", "by", "by-sa", "by-nc", "by-nc-sa"}),
    "open": frozenset({"cc0", "pdm", "by", "by-sa"}),
}
"""What may be used commercially, what may be changed, and what may be both: open as by the Open Definition."""

_CREATIVE_COMMONS = re.compile(
    r"(?:https?:)?//(?:www\.)?creativecommons\.org/(.*)", re.IGNORECASE | re.DOTALL
)
_PATH = re.compile(r"(licenses|publicdomain)/([a-z-]+)(?:/(\d\.\d))?(?:[/?#].*)?", re.IGNORECASE | re.DOTALL)
_VERSION = r"(?:[ -]*(?P<version>\d\.\d))?\b.*"
_NAMES = {
    "by": re.compile(
        r"cc[ -](?P<parts>by(?:-(?:nc|nd|sa))*)(?!-?[a-z])" + _VERSION, re.IGNORECASE | re.DOTALL
    ),
    "cc0": re.compile(r"cc[ -]?(?:0|zero)" + _VERSION, re.IGNORECASE | re.DOTALL),
    "pdm": re.compile(r"(?:public domain(?: mark)?|pdm?|cc[ -]pd)" + _VERSION, re.IGNORECASE | re.DOTALL),
}
_PUBLIC = {"zero": "cc0", "mark": "pdm", "publicdomain": "pdm"}


@dataclass(frozen=True, slots=True)
class Licence:
    """What an image may be used under: one of WORDS or None, its version, and where it stands in full."""

    word: str | None = None
    version: str | None = None
    url: str | None = None

    def __str__(self) -> str:
        """As in an attribution line: ``CC BY-SA 4.0``."""
        if self.word is None:
            return ""
        name = {"cc0": "CC0", "pdm": "Public Domain Mark"}.get(self.word, f"CC {self.word.upper()}")
        return f"{name} {self.version}" if self.version else name


UNKNOWN = Licence()


def licence_at(url: str) -> Licence:
    """The licence that an address stands for; without a word when it is none of Creative Commons'.

    Their addresses: https://wiki.creativecommons.org/wiki/License_Properties. A jurisdiction (``/3.0/de/``), a deed
    and old orders of the parts (``by-nd-nc``) are as good.
    """
    found = _CREATIVE_COMMONS.fullmatch(url.strip())
    path = _PATH.fullmatch(found[1]) if found else None
    if path is None:
        return Licence(url=url)
    kind, name, version = path[1].lower(), path[2].lower(), path[3]
    word = _PUBLIC.get(name) if kind == "publicdomain" or name == "publicdomain" else _word(name)
    return Licence(word, version if word else None, url)


def licence_named(name: str, url: str | None = None) -> Licence:
    """The licence that a name stands for: ``CC BY-SA 3.0 de``, ``cc-by-2.0``, ``CC0``, ``Public domain``."""
    for word, pattern in _NAMES.items():
        if found := pattern.fullmatch(name.strip()):
            known = _word(found["parts"].lower()) if word == "by" else word
            return Licence(known, found["version"] if known else None, url)
    return Licence(url=url)


def _word(name: str) -> str | None:
    """One of WORDS from the parts of a name in any order."""
    parts = sorted(name.split("-"))
    return next((word for word in WORDS if sorted(word.split("-")) == parts), None)


@dataclass(frozen=True, slots=True)
class Licences:
    """Which licences a job takes. No words: any licence, and images whose licence nobody knows."""

    words: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.words)

    def admit(self, licence: str | None) -> bool:
        """Whether an image under this licence is taken; with a filter, an unknown one is not."""
        return not self.words or licence in self.words


def read_licences(words: Iterable[str]) -> Licences:
    """The filter that words and groups name together: any of the words, what all of the groups allow.

    ``commercial modification`` is what may be used commercially and be changed. Raises ValueError with one
    sentence.
    """
    asked = {word.strip().lower() for word in words}
    if unknown := sorted(asked.difference(WORDS, GROUPS)):
        known = ", ".join((*WORDS, *GROUPS))
        raise ValueError(f"there is no licence {unknown[0]!r}; the words are {known}")
    groups = [GROUPS[word] for word in sorted(asked.intersection(GROUPS))]
    allowed = frozenset.intersection(*groups) if groups else frozenset()
    return Licences(allowed | asked.intersection(WORDS))
