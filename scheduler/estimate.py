"""From a sample to the whole: how many images a job may expect, what fails, and what it takes. Pure arithmetic.

When the sample is everything, every figure is exact.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from models.outcomes import Accepted, Outcome, Reason, Refused

SHARE = 0.01
SAMPLE_MIN = 20
SAMPLE_MAX = 200
CONFIDENCE = 0.9
Z = 1.6448536269514722
"""So many standard deviations to both sides hold CONFIDENCE of a normal distribution."""


def sample_size(candidates: int) -> int:
    """How many of so many candidates are tried: about one in a hundred, within bounds."""
    return min(candidates, SAMPLE_MAX, max(SAMPLE_MIN, math.ceil(candidates * SHARE)))


def count_duplicates(outcomes: Iterable[Outcome], repeated: Iterable[int] = ()) -> list[Outcome]:
    """Outcomes in the order of their positions, where a picture that is there already is a ``duplicate``.

    ``repeated`` are the positions of candidates whose URL comes again later in the source. A job keeps the first of
    them and not the last, but as many: counting the last makes the share right whatever the sample misses.
    """
    again = frozenset(repeated)
    seen: set[bytes] = set()
    judged: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda outcome: outcome.position):
        if not isinstance(outcome, Accepted):
            judged.append(outcome)
        elif outcome.position in again:
            judged.append(_duplicate(outcome, "its URL comes again"))
        elif outcome.sha256 in seen:
            judged.append(_duplicate(outcome, "another one has the same bytes"))
        else:
            seen.add(outcome.sha256)
            judged.append(outcome)
    return judged


def _duplicate(outcome: Accepted, detail: str) -> Refused:
    return Refused(
        outcome.position,
        outcome.original_url,
        Reason.DUPLICATE,
        detail,
        http_status=outcome.http_status,
        downloaded=True,
        wire_bytes=outcome.wire_bytes,
    )


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the candidates of a sample, and what they took.

    ``unanswered`` ones were asked for and had no outcome in time. ``slot_seconds`` one pool child needs for all of
    them, ``host_seconds`` each host.
    """

    accepted: int
    failures: Mapping[str, int]
    unanswered: int = 0
    wire_bytes: int = 0
    stored_bytes: int = 0
    slot_seconds: float = 0.0
    host_seconds: float = 0.0

    @property
    def refused(self) -> int:
        """Those that have an outcome and no image."""
        return sum(self.failures.values())

    @property
    def size(self) -> int:
        """All."""
        return self.accepted + self.refused + self.unanswered


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure that is not known exactly: it lies between ``low`` and ``high`` with CONFIDENCE."""

    low: int
    expected: int
    high: int

    def at_most(self, most: int) -> "Spread":
        """The same where no more than ``most`` can be."""
        return Spread(min(self.low, most), min(self.expected, most), min(self.high, most))

    def times(self, factor: int) -> "Spread":
        """So many times as much."""
        return Spread(factor * self.low, factor * self.expected, factor * self.high)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job may expect. ``candidates`` are those that it uses up, None when nobody can tell: then only
    ``images`` is known, as far as it goes.
    """

    images: Spread
    candidates: int | None
    failures: Mapping[str, int]
    unanswered: int
    wire_bytes: int
    stored_bytes: int
    seconds: float | None


def wilson(accepted: float, size: int, population: int | None) -> tuple[float, float]:
    """Bounds of the share of which ``accepted`` of ``size`` were seen: Wilson's score interval (1927), with the
    correction for a finite ``population``, by which it closes up when the sample is all of it; None: endless.

    It stays within 0 and 1 and does not end at the point when all or none were accepted, as the simpler ones do.
    """
    if not size:
        return 0.0, 1.0
    share = accepted / size
    rest = 1.0 if population is None else (population - size) / max(1, population - 1)
    z2 = Z * Z * rest
    middle = share + z2 / (2 * size)
    half = math.sqrt(z2 * (share * (1 - share) / size + z2 / (4 * size * size)))
    return max(0.0, (middle - half) / (1 + z2 / size)), min(1.0, (middle + half) / (1 + z2 / size))


def estimate(counts: Counts, population: int | None, max_images: int, slots: int) -> Estimate:
    """What a job of ``population`` candidates (None: unknown) that stops at ``max_images`` may expect of ``slots``
    pool children, by ``counts``. Nothing is known of what was not sampled, so an empty sample spreads over all.
    """
    images = spread(counts, population, max_images)
    if population is None:
        used = round(images.expected * counts.size / counts.accepted) if counts.accepted else None
    else:
        all_images = population * counts.accepted / counts.size if counts.size else 0
        used = population if all_images <= max_images else round(population * max_images / all_images)
    if used is None or not counts.size:
        return Estimate(images, used, {}, 0, 0, 0, None)
    scale = used / counts.size
    return Estimate(
        images=images,
        candidates=used,
        failures={reason: round(number * scale) for reason, number in counts.failures.items()},
        unanswered=round(counts.unanswered * scale),
        wire_bytes=round(counts.wire_bytes * scale),
        stored_bytes=round(counts.stored_bytes * scale),
        seconds=scale * max(counts.slot_seconds / max(1, slots), counts.host_seconds),
    )


def spread(counts: Counts, population: int | None, max_images: int) -> Spread:
    """How many images there will be. At best all candidates that did not answer in time are some, at worst none."""
    if population is None:
        # There may always be more: one image in the sample makes any number possible.
        return Spread(counts.accepted, max_images if counts.accepted else 0, max_images).at_most(max_images)
    low, _ = wilson(counts.accepted, counts.size, population)
    _, high = wilson(counts.accepted + counts.unanswered, counts.size, population)
    least, most = counts.accepted, population - counts.refused
    expected = population * counts.accepted / counts.size if counts.size else 0
    found = Spread(
        max(least, math.floor(population * low)),
        round(expected),
        min(most, math.ceil(population * high)),
    )
    return replace(found, expected=min(max(found.expected, found.low), found.high)).at_most(max_images)
