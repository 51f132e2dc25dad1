"""Attributes that hold more than one URL: srcset, and styles. Pure, and linear in their length."""

import re
from collections.abc import Iterator
from math import isfinite

_SPACE = " \t\n\f\r"
_DESCRIPTOR = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([wx])")
_ESCAPE = re.compile(r"\\(?:([0-9A-Fa-f]{1,6})\s?|\r\n|(.))", re.DOTALL)


def read_srcset(text: str) -> Iterator[tuple[str, float, str]]:
    """The URLs of a srcset with their size and its unit, ``w`` or ``x``; 1x where nothing is said.

    By the HTML standard (section 4.8.4.3.10): a URL may hold commas, though not begin or end with one.
    """
    place = 0
    while place < len(text):
        while place < len(text) and text[place] in _SPACE + ",":
            place += 1
        start = place
        while place < len(text) and text[place] not in _SPACE:
            place += 1
        url = text[start:place]
        descriptors = ""
        if url.endswith(","):
            url = url.rstrip(",")
        else:
            end = _descriptors_end(text, place)
            descriptors, place = text[place:end], end
        if url:
            yield url, *_size(descriptors)


def largest(candidates: Iterator[tuple[str, float, str]]) -> str | None:
    """The URL of the greatest width, else of the greatest density; the first of equals."""
    ranked = [((unit == "w", size), url) for url, size, unit in candidates if not url.startswith("data:")]
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _descriptors_end(text: str, place: int) -> int:
    """Where the descriptors end: at a comma that is in no parentheses."""
    inside = False
    for index in range(place, len(text)):
        if text[index] in "()":
            inside = text[index] == "("
        elif text[index] == "," and not inside:
            return index
    return len(text)


def _size(descriptors: str) -> tuple[float, str]:
    for word in descriptors.split():
        found = _DESCRIPTOR.fullmatch(word)
        if found and isfinite(float(found[1])):
            return float(found[1]), found[2]
    return 1.0, "x"


def background_images(style: str) -> Iterator[str]:
    """The URLs in the ``background`` and ``background-image`` of declarations or of whole rules.

    A token at a time, as CSS is read (CSS Syntax, section 4): a url() in a comment or a string is none.
    """
    name = ""
    for kind, text in _tokens(style):
        if kind == "word":
            name = text
        elif kind == "end":
            name = ""
        elif name in {"background", "background-image"} and text:
            yield text


_TOKEN = re.compile(
    r"""/\*.*?(?:\*/|\Z)
    |(?i:url)\(\s*(?:"(?P<double>(?:[^"\\\n]|\\.)*+)"|'(?P<single>(?:[^'\\\n]|\\.)*+)')\s*\)?
    |(?i:url)\(\s*(?P<bare>(?:[^"'()\\\s]|\\[0-9A-Fa-f]{1,6}\s?|\\.)*+)\s*\)?
    |"(?:[^"\\\n]|\\.)*+"?|'(?:[^'\\\n]|\\.)*+'?
    |(?P<word>[A-Za-z-]++)\s*+:(?!:)
    |(?P<end>[;{}])
    |[A-Za-z0-9_-]++|.""",
    re.DOTALL | re.VERBOSE,
)


def _tokens(style: str) -> Iterator[tuple[str, str]]:
    for found in _TOKEN.finditer(style):
        kind = found.lastgroup
        if kind is not None:
            text = found[kind]
            if kind == "word":
                text = text.lower()
            elif kind != "end":
                kind, text = "url", _ESCAPE.sub(_unescape, text).strip()
            yield kind, text


def _unescape(found: re.Match[str]) -> str:
    if found[1]:
        code = int(found[1], 16)
        return chr(code) if 0 < code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else "\ufffd"
    return found[2] if found[2] and found[2] != "\n" else ""
