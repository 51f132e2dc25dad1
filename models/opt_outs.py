"""What owners may say against the collection of their images, and the evidence that they said it.

Knows no database and no network: worker code makes these values, models/recording.py writes them.
"""

import datetime
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class OptOut(StrEnum):
    """Ways of saying no. An operator may let jobs ignore some (``PIXTRAWL_OPT_OUTS_IGNORABLE``)."""

    ROBOTS = "robots"
    X_ROBOTS_TAG = "x-robots-tag"
    TDM = "tdm"


def read_opt_outs(text: str) -> tuple[OptOut, ...]:
    """Read a comma-separated list. Raises ValueError with one sentence."""
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    unknown = next((word for word in words if word not in set(OptOut)), None)
    if unknown is not None:
        raise ValueError(f"there is no opt-out {unknown}: there are {', '.join(OptOut)}")
    return tuple(sorted(set(map(OptOut, words))))


class Declaration(StrEnum):
    """Where it was said. The words are stored."""

    ROBOTS_TXT = "robots.txt"
    X_ROBOTS_TAG = "x-robots-tag"
    TDM_HEADER = "tdm-header"
    TDMREP_JSON = "tdmrep.json"
    ROBOTS_META = "robots-meta"
    TDM_META = "tdm-meta"


LINE_CHARACTERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a refusal rests on: a line of the file or response header at ``source``, as it was at ``fetched_at``.

    ``agent`` is for whom the line stands, ``*`` for everybody; ``policy`` the URL at which a licence may be had.
    ``unreachable`` says why there is no line: robots.txt could not be read, and without it nothing is fetched.
    """

    rule: Declaration
    source: str
    fetched_at: datetime.datetime
    line: str | None = None
    line_number: int | None = None
    agent: str | None = None
    policy: str | None = None
    unreachable: str | None = None

    @property
    def document(self) -> dict[str, Any]:
        """What ``failures.evidence`` holds: no more than there is to say."""
        whole = {
            "rule": self.rule.value,
            "source": self.source,
            "fetched_at": self.fetched_at.isoformat(timespec="seconds"),
            "line": self.line and self.line[:LINE_CHARACTERS_MAX],
            "line_number": self.line_number,
            "agent": self.agent,
            "policy": self.policy and self.policy[:LINE_CHARACTERS_MAX],
            "unreachable": self.unreachable,
        }
        return {name: value for name, value in whole.items() if value is not None}
