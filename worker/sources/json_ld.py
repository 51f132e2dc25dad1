"""Images that a page describes in JSON-LD (schema.org): image, contentUrl, thumbnailUrl. Pure."""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

NODES_MAX = 50_000
"""No more values of one document are looked at."""


@dataclass(frozen=True, slots=True)
class Described:
    """One image: its URL as it stands, and what the document tells of it."""

    url: str
    title: str | None = None
    caption: str | None = None
    licence: str | None = None
    creator: str | None = None


def described_images(text: str) -> Iterator[Described]:
    """The images of a document, in its order, nested graphs included. What is no JSON describes none.

    A thumbnail is one only where its object names nothing better.
    """
    try:
        document = json.loads(text.strip().removesuffix(";"), strict=False)
    except (ValueError, RecursionError):
        return
    waiting: deque[tuple[Any, bool]] = deque([(document, False)])
    for _ in range(NODES_MAX):
        if not waiting:
            return
        value, is_image = waiting.popleft()
        if isinstance(value, str) and is_image:
            yield Described(value)
        elif isinstance(value, list):
            waiting.extendleft((entry, is_image) for entry in reversed(value))
        elif isinstance(value, dict):
            own = list(_own_images(value, is_image))
            yield from own
            inner = [
                (entry, name == "image" and isinstance(entry, str | list | dict))
                for name, entry in value.items()
                if isinstance(entry, list | dict) or name == "image"
            ]
            if not own and "image" not in value:
                yield from (Described(url) for url in _texts(value.get("thumbnailUrl")))
            waiting.extendleft(reversed(inner))


def _own_images(node: Mapping[str, Any], is_image: bool) -> Iterator[Described]:
    """What an object that is an image itself names."""
    if not (
        is_image or any("image" in kind.lower() or kind == "Photograph" for kind in _texts(node.get("@type")))
    ):
        return
    urls = (
        _texts(node.get("contentUrl")) or _texts(node.get("url"))
        if is_image
        else _texts(node.get("contentUrl"))
    )
    for url in urls:
        yield Described(
            url,
            _text(node.get("name")),
            _text(node.get("caption")) or _text(node.get("description")),
            _text(node.get("license")),
            _text(node.get("creator")) or _text(node.get("author")),
        )


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [entry for entry in values if isinstance(entry, str)]


def _text(value: Any) -> str | None:
    """A text, or the name or address of the object that stands for it."""
    if isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, dict):
        value = value.get("name") or value.get("url") or value.get("@id")
    return value.strip() or None if isinstance(value, str) else None
