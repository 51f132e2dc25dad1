"""How many candidates each keyword may have, so that all come to the same number of images. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Level:
    """What a keyword has: images, and candidates that may become some. It may have ``most`` at most; None: any."""

    now: int
    most: int | None = None

    def at(self, height: int) -> int:
        """What it would have if all were filled up to ``height``."""
        return max(self.now, height if self.most is None else min(height, self.most))


def needs(levels: Sequence[Level], wanted: int) -> list[int]:
    """``wanted`` more, shared out: the lowest are filled up first. Less when not so many may be had.

    What cannot be shared evenly goes to the first of them.
    """
    total = sum(level.now for level in levels) + wanted
    low, high = 0, total
    while low < high:  # The greatest height for which there is enough.
        middle = (low + high + 1) // 2
        if sum(level.at(middle) for level in levels) <= total:
            low = middle
        else:
            high = middle - 1
    shares = [level.at(low) for level in levels]
    left = total - sum(shares)
    for index, level in enumerate(levels):
        if left and level.at(low + 1) > shares[index]:
            shares[index] += 1
            left -= 1
    return [share - level.now for share, level in zip(shares, levels, strict=True)]


def level_now(handed: int, accepted: int, unresolved: int, open_in_all: int) -> int:
    """What a keyword has of ``handed`` candidates, when nobody knows whose the ``unresolved`` ones of the job are:
    of all that were handed out and not accepted (``open_in_all``) each may be one of them.
    """
    left = handed - accepted
    return accepted + (round(left * unresolved / open_in_all) if open_in_all > 0 else 0)
