"""The words for licences, and the filter that a job sets with them. Knows no provider."""

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
