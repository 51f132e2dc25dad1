"""What is known of a candidate besides its URL: where it was found, whose it is, and what else its source says.

Knows no database: it travels with the candidate in its chunk and ends in the image's row.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

METADATA_BYTES_MAX = 16 * 1024
"""JSON of one candidate's metadata. A chunk of 500 has 8 MB of it at most, before compression."""
CUT = " …"
"""Ends a text that was cut."""
NAMES = ("keyword", "source_page", "provider", "licence", "creator")
"""What has a column of its own in ``images``."""


@dataclass(frozen=True, slots=True)
class About:
    """Each None where its source does not say. ``metadata`` is everything else, as JSON can hold it."""

    keyword: str | None = None
    source_page: str | None = None
    provider: str | None = None
    licence: str | None = None
    creator: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        """Only what is known: the arguments that make it again."""
        known = {name: value for name in NAMES if (value := getattr(self, name)) is not None}
        return known | {"metadata": dict(self.metadata)} if self.metadata else known


def bounded(metadata: Mapping[str, Any], bytes_max: int = METADATA_BYTES_MAX) -> dict[str, Any]:
    """As much of ``metadata`` as has room, in its order: a text that does not fit is cut, other values go."""
    if _size(metadata) <= bytes_max:
        return dict(metadata)
    kept: dict[str, Any] = {}
    room = bytes_max - len("{}")
    for name, value in metadata.items():
        size = _size({name: value})
        if size > room and isinstance(value, str):
            value = _cut(value, room - _size({name: CUT}))  # noqa: PLW2901 - the same value, shorter
            size = _size({name: value})
        if value and size <= room:
            kept[name] = value
            room -= size
    return kept


def _cut(text: str, bytes_max: int) -> str:
    """The beginning of a text that takes ``bytes_max`` as JSON, and CUT; nothing when there is no room for one."""
    kept = text[: max(0, bytes_max)]
    while kept and _size(kept) > bytes_max:
        kept = kept[: len(kept) * bytes_max // _size(kept) or -1]
    return kept and kept + CUT


def _size(value: Any) -> int:
    """Bytes of a value as JSON, at most: every character that is not ASCII counts as it is escaped."""
    return len(json.dumps(value))
