"""Outcomes of a job counted by host, reason and status: of all its candidates, or of a sample with a fixed bound.

Reads only. The host is that of the URL that a candidate ended on. What was not asked of any host (ranges that were
not needed or cancelled) counts without one.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

from sqlalchemy import text
from sqlalchemy.orm import Session

from models.outcomes import WEB_PAGE, Reason

NOT_ASKED = frozenset({Reason.NOT_NEEDED, Reason.CANCELLED})
"""Reasons that say nothing of a host: it was not asked, or not to the end."""
UNTROUBLED = NOT_ASKED | {Reason.DUPLICATE}

Sign = Literal["temporary", "page"]
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Cell:
    """Candidates of one host that ended alike; ``reason`` None: accepted. ``sign`` tells a ``dns`` that may pass
    and a ``not_an_image`` that is a web page. ``elapsed_ms`` adds the time of those that have one, ``timed``.
    """

    host: str | None
    reason: str | None
    http_status: int | None
    sign: Sign | None
    candidates: float
    elapsed_ms: int = 0
    timed: int = 0


@dataclass(frozen=True)
class Breakdown:
    """A job's outcomes. ``reasons`` are exact; in cells of a sample the numbers are estimates."""

    job_id: int
    accepted: int
    reasons: Mapping[str, int]
    cells: tuple[Cell, ...]
    sampled: bool = False

    @cached_property
    def asked(self) -> int:
        """Candidates that were tried: accepted, or refused for a reason of their own."""
        return self.accepted + sum(
            number for reason, number in self.reasons.items() if reason not in NOT_ASKED
        )

    @cached_property
    def asked_by_host(self) -> dict[str, float]:
        """The same by host, as far as they have one."""
        return self.by_host(lambda cell: cell.reason not in NOT_ASKED)

    @cached_property
    def troubles(self) -> dict[str, float]:
        """Failures by host, without duplicates and what was not asked for."""
        return self.by_host(troubled)

    def by_host(self, wanted: Callable[[Cell], bool]) -> dict[str, float]:
        """Candidates of the cells that are ``wanted``, by host; those without a host are left out."""
        return self.add_up(lambda cell: cell.host if wanted(cell) else None)

    def add_up(self, key: Callable[[Cell], Key | None]) -> dict[Key, float]:
        """Candidates of the cells that have a ``key``, by it."""
        added: defaultdict[Key, float] = defaultdict(float)
        for cell in self.cells:
            if (name := key(cell)) is not None:
                added[name] += cell.candidates
        return dict(added)


def troubled(cell: Cell) -> bool:
    """Whether a host failed us."""
    return cell.reason is not None and cell.reason not in UNTROUBLED


def break_down(job: Mapping[str, Any], cells: Iterable[Cell]) -> Breakdown:
    """Put a job's cells and its exact counters together: cells of a sample are scaled up to them."""
    cells = tuple(cells)
    known: dict[str | None, int] = {**job["failures"], None: job["valid_images"]}
    found: defaultdict[str | None, float] = defaultdict(float)
    for cell in cells:
        found[cell.reason] += cell.candidates
    factors = {reason: known.get(reason, number) / number for reason, number in found.items()}
    sampled = any(factor > 1 for factor in factors.values())
    if sampled:
        cells = tuple(replace(cell, candidates=cell.candidates * factors[cell.reason]) for cell in cells)
    return Breakdown(job["id"], job["valid_images"], job["failures"], cells, sampled)


AUTHORITY = "CASE WHEN {0} LIKE '%://%' THEN nullif(split_part({0}, '/', 3), '') END"
"""Much faster than a regular expression that finds the host: ``host_of`` does the rest."""
FAILURE_AUTHORITY = AUTHORITY.format("coalesce(final_url, url)")
IMAGE_AUTHORITY = AUTHORITY.format("coalesce(final_url, original_url)")
SIGN = f"""CASE
    WHEN reason = 'dns' AND (attempts > 1 OR detail LIKE '%emporary failure%') THEN 'temporary'
    WHEN reason = 'not_an_image' AND detail = '{WEB_PAGE}' THEN 'page' END"""
"""A name server that may answer later is asked again, so such a ``dns`` took several attempts."""
FAILURE_CELLS = f"""
SELECT {FAILURE_AUTHORITY}, reason, http_status, {SIGN}, sum(position_end - position + 1), sum(elapsed_ms),
    count(elapsed_ms) FROM"""
IMAGE_CELLS = f"""
SELECT {IMAGE_AUTHORITY}, NULL, NULL, NULL, count(*), sum(elapsed_ms), count(elapsed_ms) FROM"""

FAILURES_OF = text(f"""{FAILURE_CELLS} failures
WHERE job_id = :job_id AND position BETWEEN :first AND :last GROUP BY 1, 2, 3, 4
""")
IMAGES_OF = text(f"""{IMAGE_CELLS} images
WHERE crawl_job_id = :job_id AND position BETWEEN :first AND :last GROUP BY 1
""")
LAST_POSITION = text("""
SELECT greatest((SELECT max(position) FROM failures WHERE job_id = :job_id),
    (SELECT max(position) FROM images WHERE crawl_job_id = :job_id))
""")
PAGE_POSITIONS = 100_000
CELLS_MAX = 100_000


def last_position(session: Session, job_id: int) -> int | None:
    """The highest position with an outcome; None: there is none."""
    position: int | None = session.execute(LAST_POSITION, {"job_id": job_id}).scalar_one()
    return position


def count_outcomes(session: Session, job_id: int, first: int, cells: "Cells") -> None:
    """Add all outcomes at PAGE_POSITIONS positions from ``first``."""
    parameters = {"job_id": job_id, "first": first, "last": first + PAGE_POSITIONS - 1}
    for query in (FAILURES_OF, IMAGES_OF):
        cells.add(session.execute(query, parameters))


# Windows of equal length over the positions that have a row, and the first rows of each.
WINDOWS = """
(SELECT max(position) + 1 AS size FROM {table} WHERE {job} = :job_id) AS job
CROSS JOIN generate_series(0, :windows - 1) AS number
CROSS JOIN LATERAL (
    SELECT {columns} FROM {table} WHERE {job} = :job_id
        AND position >= CAST(number AS bigint) * size / :windows
        AND position < CAST(number + 1 AS bigint) * size / :windows
    ORDER BY position LIMIT :rows) AS sample"""
FAILURE_COLUMNS = "position, position_end, url, final_url, reason, http_status, detail, attempts, elapsed_ms"
FAILURE_WINDOWS = WINDOWS.format(table="failures", job="job_id", columns=FAILURE_COLUMNS)
IMAGE_WINDOWS = WINDOWS.format(
    table="images", job="crawl_job_id", columns="original_url, final_url, elapsed_ms"
)
SAMPLED_FAILURES = text(f"{FAILURE_CELLS} {FAILURE_WINDOWS} GROUP BY 1, 2, 3, 4")
SAMPLED_IMAGES = text(f"{IMAGE_CELLS} {IMAGE_WINDOWS} GROUP BY 1")
FAILURE_SAMPLE = {"windows": 64, "rows": 32}
IMAGE_SAMPLE = {"windows": 32, "rows": 16}


def sample_outcomes(session: Session, job_id: int) -> "Cells":
    """Cells of at most 2,048 failures and 512 images, spread over the job: of all when there are few."""
    cells = Cells()
    cells.add(session.execute(SAMPLED_FAILURES, {"job_id": job_id} | FAILURE_SAMPLE))
    cells.add(session.execute(SAMPLED_IMAGES, {"job_id": job_id} | IMAGE_SAMPLE))
    return cells


Ending = tuple[str | None, str | None, int | None, Sign | None]
Numbers = tuple[int, int, int]


class Cells:
    """Cells that are added up. Of more than CELLS_MAX, the smallest half is counted without its hosts, so that a
    million hosts take no more memory than a hundred thousand.
    """

    def __init__(self) -> None:
        self._numbers: dict[Ending, Numbers] = {}

    def add(self, rows: Iterable[Any]) -> None:
        """Add what a query counted."""
        for authority, reason, http_status, sign, candidates, elapsed_ms, timed in rows:
            ending = (authority, reason, http_status, sign)
            self._add(ending, (int(candidates), int(elapsed_ms or 0), timed))
        if len(self._numbers) > CELLS_MAX:
            self._forget_hosts()

    def __iter__(self) -> Iterator[Cell]:
        """One cell for each authority; of those that are one host all count."""
        for (authority, reason, http_status, sign), numbers in self._numbers.items():
            yield Cell(host_of(authority), reason, http_status, sign, *numbers)

    def _add(self, ending: Ending, numbers: Numbers) -> None:
        known = self._numbers.get(ending, (0, 0, 0))
        self._numbers[ending] = (known[0] + numbers[0], known[1] + numbers[1], known[2] + numbers[2])

    def _forget_hosts(self) -> None:
        ordered = sorted(self._numbers.items(), key=lambda item: -item[1][0])
        self._numbers = dict(ordered[: CELLS_MAX // 2])
        for (_, reason, http_status, sign), numbers in ordered[CELLS_MAX // 2 :]:
            self._add((None, reason, http_status, sign), numbers)


def host_of(authority: str | None) -> str | None:
    """The host of what stands between ``//`` and the next slash: lower case, without user, port, query."""
    if authority is None:
        return None
    host = re.split(r"[?#\\]", authority, maxsplit=1)[0].rpartition("@")[2].lower()
    if not host.startswith("["):
        return host.partition(":")[0] or None
    return host.partition("]")[0] + "]"
