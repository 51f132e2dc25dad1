"""Why a job's candidates have no image: by reason, status and host, with hints. JSON as it is; prints nothing.

``explain`` looks at a sample with a fixed bound, for what is shown again and again; ``report`` at every row.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from models.breakdown import (
    NOT_ASKED,
    PAGE_POSITIONS,
    Breakdown,
    Cell,
    Cells,
    break_down,
    count_outcomes,
    last_position,
    sample_outcomes,
)
from models.database import transaction
from models.keywords import search_reports
from models.outcomes import Reason
from models.page_counts import page_report
from scheduler.hints import find_hints

HOSTS_SHOWN = 10
"""Hosts in the object of ``show --json``; `pixtrawl report` has more."""
SAMPLE_SHARE_MIN = 0.02
"""A host that has fewer of the failures is in a sample by chance: forty rows of 2,048 are right to a sixth."""


@dataclass(slots=True)
class Group:
    """Candidates with something in common: their outcomes, the statuses of those that ended as ``http_status``, and
    the time of their transfers.
    """

    accepted: float = 0
    reasons: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    statuses: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    elapsed_ms: int = 0
    timed: int = 0

    def add(self, cell: Cell) -> None:
        """Add the candidates of a cell."""
        if cell.reason is None:
            self.accepted += cell.candidates
        else:
            self.reasons[cell.reason] += cell.candidates
            if cell.reason == Reason.HTTP_STATUS and cell.http_status is not None:
                self.statuses[cell.http_status] += cell.candidates
        self.elapsed_ms += cell.elapsed_ms
        self.timed += cell.timed

    @property
    def failures(self) -> float:
        """Candidates without an image."""
        return sum(self.reasons.values())

    def report(self) -> dict[str, Any]:
        """The group as JSON has it, the most frequent first; ``mean_ms`` is null when nothing was timed."""
        return {
            "accepted": round(self.accepted),
            "failures": round(self.failures),
            "reasons": ordered(self.reasons),
            "statuses": {str(status): number for status, number in ordered(self.statuses).items()},
            "mean_ms": round(self.elapsed_ms / self.timed) if self.timed else None,
        }


def explain(session: Session, job: Mapping[str, Any]) -> dict[str, Any]:
    """What the object of ``show --json`` says beyond the job's row: searches, pages, statuses, hosts and hints.

    With ``hosts_sampled`` the numbers of hosts and statuses are estimates, from at most 2,560 rows, and hosts with
    few of the failures are left out.
    """
    cells = sample_outcomes(session, job["id"]) if job["failed_images"] else ()
    breakdown = break_down(job, cells)
    hosts = group_by_host(breakdown)
    least = SAMPLE_SHARE_MIN * job["failed_images"] if breakdown.sampled else 0
    return {
        "searches": search_reports(session, job),
        "pages": page_report(session, job),
        "statuses": statuses_of(breakdown),
        "hosts": worst(hosts, HOSTS_SHOWN, least),
        "hosts_sampled": breakdown.sampled,
        "hints": [hint.report() for hint in find_hints(breakdown)],
    }


def report(engine: Engine, job: Mapping[str, Any], hosts_max: int) -> dict[str, Any]:
    """The object of ``report --json``: every outcome of the job counted, page by page in short transactions."""
    breakdown = break_down(job, count_all(engine, job["id"]))
    hosts = group_by_host(breakdown)
    reasons: defaultdict[str, Group] = defaultdict(Group)
    for cell in breakdown.cells:
        reasons[cell.reason or "accepted"].add(cell)
    with transaction(engine) as session:
        searches = search_reports(session, job, counted_max=None)
        pages = page_report(session, job)
    return {
        "job": job,
        "searches": searches,
        "pages": pages,
        "outcomes": {name: outcome(group) for name, group in sorted(reasons.items(), key=_by_size)},
        "hosts_total": len(hosts),
        "hosts": worst(hosts, hosts_max),
        "hosts_accepted": best(hosts, hosts_max),
        "hints": [hint.report() for hint in find_hints(breakdown)],
    }


def count_all(engine: Engine, job_id: int) -> Cells:
    """Every outcome that the job has now; what is recorded meanwhile may be counted or not."""
    cells = Cells()
    with transaction(engine) as session:
        last = last_position(session, job_id)
    for first in range(0, 0 if last is None else last + 1, PAGE_POSITIONS):
        with transaction(engine) as session:
            count_outcomes(session, job_id, first, cells)
    return cells


def group_by_host(breakdown: Breakdown) -> dict[str, Group]:
    """What each host that was asked answered."""
    hosts: defaultdict[str, Group] = defaultdict(Group)
    for cell in breakdown.cells:
        if cell.host and cell.reason not in NOT_ASKED:
            hosts[cell.host].add(cell)
    return hosts


def statuses_of(breakdown: Breakdown) -> dict[str, int]:
    """{status: candidates} of those that ended as ``http_status``."""
    answers = Group()
    for cell in breakdown.cells:
        answers.add(cell)
    statuses: dict[str, int] = answers.report()["statuses"]
    return statuses


def worst(hosts: Mapping[str, Group], limit: int, least: float = 0) -> list[dict[str, Any]]:
    """The hosts with most failures first; none without any, or with fewer than ``least``."""
    failing = [(name, group) for name, group in hosts.items() if group.reasons and group.failures >= least]
    failing.sort(key=lambda item: (-item[1].failures, item[0]))
    return [{"host": name} | group.report() for name, group in failing[:limit]]


def best(hosts: Mapping[str, Group], limit: int) -> list[dict[str, Any]]:
    """The hosts with most images first; none without any."""
    giving = [(name, group) for name, group in hosts.items() if group.accepted]
    giving.sort(key=lambda item: (-item[1].accepted, item[0]))
    return [{"host": name} | group.report() for name, group in giving[:limit]]


def outcome(group: Group) -> dict[str, Any]:
    """What is said of one outcome: how many candidates, with which statuses, and how long they took."""
    said = group.report()
    return {
        "candidates": said["accepted"] + said["failures"],
        "statuses": said["statuses"],
        "mean_ms": said["mean_ms"],
    }


def ordered(counted: Mapping[Any, float]) -> dict[Any, int]:
    """Whole numbers, the largest first."""
    return {name: round(number) for name, number in _largest_first(counted.items())}


def _largest_first(items: Iterable[tuple[Any, float]]) -> list[tuple[Any, float]]:
    return sorted(items, key=lambda item: (-item[1], item[0]))


def _by_size(item: tuple[str, Group]) -> tuple[bool, float, str]:
    """Accepted first, then the most frequent reason."""
    name, group = item
    return bool(group.reasons), -group.failures, name
