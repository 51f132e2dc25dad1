"""Pages that are nested so deep that building their tree would take minutes or gigabytes. Pure.

A parser looks through the open elements at each tag, and repeats open formatting elements in each paragraph (HTML
standard, section 13.2.4.3): both grow with the square of what a page leaves open.
"""

import re

CLOSED_BY_OTHERS = frozenset(
    {
        "p",
        "li",
        "dt",
        "dd",
        "option",
        "optgroup",
        "tr",
        "td",
        "th",
        "tbody",
        "thead",
        "tfoot",
        "rp",
        "rt",
        "colgroup",
        "html",
        "head",
        "body",
    }
)
"""Elements that may be left open: the next of their kind closes them."""
VOID = frozenset(
    {
        "area",
        "base",
        "br",
        "col",
        "embed",
        "hr",
        "img",
        "input",
        "link",
        "meta",
        "param",
        "source",
        "track",
        "wbr",
    }
)
FORMATTING = frozenset(
    {"a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"}
)
TAGS_FEW = 2_000
"""So many tags cannot do harm."""
STEPS_MAX = 100_000_000
COPIES_MAX = 3_000_000
FORMATTING_FEW = 8
"""So many open formatting elements are usual."""

_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9-]*)")


class NestingError(ValueError):
    """The page is nested too deep to be read."""


def check_nesting(text: str) -> None:
    """Let a page be parsed, or raise NestingError. Counts what tags leave open, at most: markup in scripts, too."""
    if text.count("<") <= TAGS_FEW:
        return
    depth = steps = formatting = copies = 0
    for found in _TAG.finditer(text):
        name = found[2].lower()
        if name in CLOSED_BY_OTHERS or name in VOID:
            pass
        elif found[1]:
            depth -= depth > 0
            formatting -= name in FORMATTING and formatting > 0
        else:
            depth += 1
            formatting += name in FORMATTING
        steps += depth
        copies += max(0, formatting - FORMATTING_FEW)
        if steps > STEPS_MAX or copies > COPIES_MAX:
            raise NestingError("its elements are nested too deep")
