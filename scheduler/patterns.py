"""What hints look for in a breakdown, and how they put numbers: of whom, how many, mostly what. Pure."""

from collections.abc import Callable, Mapping
from operator import itemgetter

from models.breakdown import Breakdown, Cell, troubled
from models.outcomes import Reason
from scheduler.printing import count
from scheduler.remedies import GONE, REFUSING

CANDIDATES_MIN = 5
SHARE_MIN = 0.1
"""A pattern is worth a hint from so many candidates on, and from such a part of those that were tried."""
MOST = 0.5
NEARLY_ALL = 0.8
STATUSES_MAX = 3


def ending_at(host: str, cell: Cell) -> tuple[str, int | None] | None:
    """Why a cell of the host failed, with the status if that is why; None: it did not, or is another's."""
    if cell.host != host or cell.reason is None or not troubled(cell):
        return None
    return cell.reason, cell.http_status if cell.reason == Reason.HTTP_STATUS else None


def refused(cell: Cell) -> bool:
    """Whether the server said that we, or crawlers, may not."""
    return cell.reason in {Reason.HTTP_STATUS, Reason.RATE_LIMITED} and cell.http_status in REFUSING


def refusing_hosts(breakdown: Breakdown, wanted: Callable[[Cell], bool]) -> dict[str, float]:
    """The hosts of which nearly all candidates are ``wanted``: one that gives images, too, has other reasons."""
    asked = breakdown.asked_by_host
    hosts = breakdown.by_host(wanted)
    return {host: number for host, number in hosts.items() if number >= NEARLY_ALL * asked[host]}


def gone(cell: Cell) -> bool:
    """Whether the picture or its host is not there any more."""
    if cell.reason == Reason.DNS:
        return cell.sign != "temporary"
    return cell.reason == Reason.HTTP_STATUS and cell.http_status in GONE


def many(breakdown: Breakdown, number: float) -> bool:
    """Whether so many candidates are worth a hint."""
    return number >= CANDIDATES_MIN and number >= SHARE_MIN * breakdown.asked


def total(hosts: Mapping[str, float]) -> int:
    """Candidates of all hosts."""
    return round(sum(hosts.values()))


def most(counted: Mapping[str, float]) -> tuple[str, float]:
    """What has most, and how many."""
    return max(counted.items(), key=itemgetter(1), default=("", 0.0))


def leader(hosts: Mapping[str, float]) -> str | None:
    """The host that has more than all others together."""
    host, number = most(hosts)
    return host if number > MOST * sum(hosts.values()) else None


def statuses(breakdown: Breakdown, wanted: Callable[[Cell], bool]) -> str:
    """The statuses of cells, the most frequent first: 403, 401."""
    counted = breakdown.add_up(lambda cell: cell.http_status if wanted(cell) else None)
    return ", ".join(map(str, sorted(counted, key=lambda status: -counted[status])[:STATUSES_MAX]))


def hosts_of(breakdown: Breakdown, hosts: Mapping[str, float]) -> str:
    """How many hosts there are: a sample has met only some."""
    return f"{'at least ' if breakdown.sampled else ''}{count(len(hosts))} hosts"


def about(breakdown: Breakdown, number: float) -> str:
    """A number that may be an estimate."""
    return f"{'about ' if breakdown.sampled else ''}{count(round(number))}"
