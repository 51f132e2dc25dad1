"""What a source that asks the web has to be able to do, and how it says that it cannot now, or any more.

A step is made outside any transaction; whoever made it commits what it found, with the cursor, at once. A step
that is lost is made again from the same cursor, so it keeps nothing anywhere else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.orm import Session

from models.about import About
from models.splitting import SplittableJob
from worker.child import Child


class SourceError(Exception):
    """An error that will not pass: the source ends here. The message is one sentence for people."""


class SourceWait(Exception):  # noqa: N818 - nothing is wrong
    """Whom the source asks is to be left alone for so many ``seconds``. The message says who, and why.

    ``ours`` says that we keep to a pace of our own: others are served meanwhile, and no attempt counts.
    """

    def __init__(self, seconds: float, why: str, *, ours: bool = False) -> None:
        super().__init__(why)
        self.seconds = seconds
        self.ours = ours


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate before it has a position. ``line`` is its rank in the source, from 1; ``keys`` are those by which
    it is known as seen, besides its URL's.
    """

    url: str
    line: int
    about: About | None = None
    keys: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """What one step brought: at most as many as were wanted, and where the source goes on.

    ``ended`` says why it does not go on. ``commit`` is called in the transaction that advances the source.
    """

    found: Sequence[Found]
    cursor: Mapping[str, Any]
    ended: str | None = None
    commit: Callable[[Session], None] | None = None


class Source(Protocol):
    """One kind of source. An object is made for each step."""

    async def step(self, child: Child, job: SplittableJob, wanted: int) -> Step:
        """Ask for up to ``wanted`` candidates, from the job's cursor on ({}: the beginning), within ten seconds or
        so. May be cancelled anywhere. Raises SourceWait or SourceError.
        """
