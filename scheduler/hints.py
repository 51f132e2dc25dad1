"""What the pattern of a job's failures tells, and what to do about it: a closed list, docs/outcomes.md has it, too.

Pure: from a breakdown to sentences. Each rule looks at one pattern.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter
from typing import Any

from models.breakdown import Breakdown, Cell, troubled
from models.outcomes import Reason
from scheduler.printing import count
from scheduler.remedies import GONE, REFUSING, remedy

HINTS_MAX = 3
CANDIDATES_MIN = 5
SHARE_MIN = 0.1
"""A pattern is worth a hint from so many candidates on, and from such a part of those that were tried."""
HOSTS_MIN = 3
"""So many hosts are not one host's trouble any more, but ours."""
MOST = 0.5
NEARLY_ALL = 0.8
STATUSES_MAX = 3


class HintCode(StrEnum):
    """The pattern that a hint names."""

    PRIVATE_ADDRESSES = "private_addresses"
    HOST_REFUSES = "host_refuses"
    USER_AGENT_REFUSED = "user_agent_refused"
    HOST_DOMINATES = "host_dominates"
    RATE_LIMITED = "rate_limited"
    DNS_OVERLOADED = "dns_overloaded"
    BANDWIDTH_FULL = "bandwidth_full"
    TLS_BROKEN = "tls_broken"
    DEAD_LINKS = "dead_links"
    WEB_PAGES = "web_pages"
    DUPLICATES = "duplicates"


@dataclass(frozen=True, slots=True)
class Hint:
    """One or two sentences about so many candidates, perhaps of one host."""

    code: HintCode
    message: str
    candidates: int
    host: str | None = None

    def report(self) -> dict[str, Any]:
        """The hint as JSON has it."""
        return {
            "code": self.code.value,
            "message": self.message,
            "candidates": self.candidates,
            "host": self.host,
        }


def find_hints(breakdown: Breakdown) -> list[Hint]:
    """The hints that explain most candidates first, HINTS_MAX at most."""
    found = [hint for rule in RULES if (hint := rule(breakdown)) is not None]
    codes = {hint.code: hint for hint in found}
    found = [hint for hint in found if not any(hint.code in SAID_BY.get(code, ()) for code in codes)]
    return sorted(found, key=lambda hint: -hint.candidates)[:HINTS_MAX]


def private_addresses(breakdown: Breakdown) -> Hint | None:
    """Most lead to addresses that are not public."""
    number = breakdown.reasons.get(Reason.BLOCKED_ADDRESS, 0)
    if number <= MOST * breakdown.asked:
        return None
    message = "Most addresses are not public: if they are your own, set PIXTRAWL_ALLOWED_NETWORKS."
    return Hint(HintCode.PRIVATE_ADDRESSES, message, number)


def user_agent_refused(breakdown: Breakdown) -> Hint | None:
    """Several hosts, none of them alone, answer that we may not: it is us whom they refuse."""
    hosts = breakdown.by_host(refused)
    number = total(hosts)
    if not many(breakdown, number) or len(hosts) < HOSTS_MIN or most(hosts)[1] > MOST * number:
        return None
    return Hint(
        HintCode.USER_AGENT_REFUSED,
        f"Sites refuse the user agent: {about(breakdown, number)} requests to {hosts_of(breakdown, hosts)} "
        f"({statuses(breakdown, refused)}). Name a contact in PIXTRAWL_USER_AGENT, as many sites ask of crawlers.",
        number,
    )


def host_refuses(breakdown: Breakdown) -> Hint | None:
    """One host answers nearly every request that we may not."""
    host, number = most(breakdown.by_host(lambda cell: refused(cell) and cell.reason == Reason.HTTP_STATUS))
    if not many(breakdown, number) or number < NEARLY_ALL * breakdown.asked_by_host.get(host, 0):
        return None
    return Hint(
        HintCode.HOST_REFUSES,
        f"{host} refuses crawlers ({about(breakdown, number)} answers "
        f"{statuses(breakdown, lambda cell: refused(cell) and cell.host == host)}): ask its owner, or leave its "
        "URLs out. A contact in PIXTRAWL_USER_AGENT may help.",
        round(number),
        host,
    )


def host_dominates(breakdown: Breakdown) -> Hint | None:
    """One of several hosts has most of the failures, and little else."""
    host, number = most(breakdown.troubles)
    if (
        len(breakdown.asked_by_host) < 2
        or not many(breakdown, number)
        or number <= MOST * total(breakdown.troubles)
    ):
        return None
    if number < MOST * breakdown.asked_by_host.get(host, 0):
        return None
    ending, _ = max(breakdown.add_up(lambda cell: ending_at(host, cell)).items(), key=itemgetter(1))
    return Hint(
        HintCode.HOST_DOMINATES,
        f"{host} has {100 * number / total(breakdown.troubles):.0f} % of the failures, mostly "
        f"{ending[0]}{f' {ending[1]}' if ending[1] else ''}: {remedy(*ending).format(job=breakdown.job_id)}",
        round(number),
        host,
    )


def rate_limited(breakdown: Breakdown) -> Hint | None:
    """Servers ask to be asked less often."""
    number = breakdown.reasons.get(Reason.RATE_LIMITED, 0)
    if not many(breakdown, number):
        return None
    hosts = breakdown.by_host(lambda cell: cell.reason == Reason.RATE_LIMITED)
    where = (
        f" on {hosts_of(breakdown, hosts)}" if len(hosts) > 1 else f" by {most(hosts)[0]}" if hosts else ""
    )
    return Hint(
        HintCode.RATE_LIMITED,
        f"{count(number)} candidates were rate-limited{where}: lower PIXTRAWL_HOST_TRANSFERS or "
        f"PIXTRAWL_HOST_RATE, then `pixtrawl retry {breakdown.job_id} --only rate_limited`.",
        number,
    )


def dns_overloaded(breakdown: Breakdown) -> Hint | None:
    """The name server does not answer for many hosts."""
    hosts = breakdown.by_host(lambda cell: cell.reason == Reason.DNS and cell.sign == "temporary")
    number = total(hosts)
    if not many(breakdown, number) or len(hosts) < HOSTS_MIN:
        return None
    return Hint(
        HintCode.DNS_OVERLOADED,
        f"The name server did not answer for {about(breakdown, number)} candidates on "
        f"{hosts_of(breakdown, hosts)}: overloaded, or away. Lower PIXTRAWL_TRANSFERS or run a caching resolver, "
        f"then `pixtrawl retry {breakdown.job_id} --only dns`.",
        number,
    )


def bandwidth_full(breakdown: Breakdown) -> Hint | None:
    """Transfers from many hosts take too long."""
    reasons = {Reason.TIMEOUT, Reason.TOO_SLOW}
    hosts = breakdown.by_host(lambda cell: cell.reason in reasons)
    number = sum(breakdown.reasons.get(reason, 0) for reason in reasons)
    if not many(breakdown, number) or len(hosts) < HOSTS_MIN:
        return None
    return Hint(
        HintCode.BANDWIDTH_FULL,
        f"{count(number)} candidates on {hosts_of(breakdown, hosts)} timed out or were too slow: perhaps the "
        "connection is full. Lower PIXTRAWL_TRANSFERS or the number of workers, then "
        f"`pixtrawl retry {breakdown.job_id}`.",
        number,
    )


def tls_broken(breakdown: Breakdown) -> Hint | None:
    """The certificates of many hosts are not trusted."""
    hosts = breakdown.by_host(lambda cell: cell.reason == Reason.TLS)
    number = breakdown.reasons.get(Reason.TLS, 0)
    if not many(breakdown, number) or len(hosts) < HOSTS_MIN:
        return None
    return Hint(
        HintCode.TLS_BROKEN,
        f"TLS failed for {count(number)} candidates on {hosts_of(breakdown, hosts)}: check the clock of the "
        "workers' machines, and that their certificate authorities (ca-certificates) are up to date.",
        number,
    )


def dead_links(breakdown: Breakdown) -> Hint | None:
    """Most failures are of pictures, or of hosts, that are gone."""
    hosts = breakdown.by_host(gone)
    number = total(hosts)
    if not many(breakdown, number) or number <= MOST * total(breakdown.troubles):
        return None
    return Hint(
        HintCode.DEAD_LINKS,
        f"The list is old: {about(breakdown, number)} links are dead (404, 410, or a host that does not exist). "
        "No setting helps, a newer list does.",
        number,
    )


def web_pages(breakdown: Breakdown) -> Hint | None:
    """URLs lead to pages that show a picture, or to an error page."""
    hosts = breakdown.by_host(lambda cell: cell.sign == "page")
    number = total(hosts)
    if not many(breakdown, number):
        return None
    return Hint(
        HintCode.WEB_PAGES,
        f"Web pages came instead of images from {about(breakdown, number)} URLs: list the images' own URLs.",
        number,
    )


def duplicates(breakdown: Breakdown) -> Hint | None:
    """Nearly everything is the same picture."""
    number = breakdown.reasons.get(Reason.DUPLICATE, 0)
    if number < CANDIDATES_MIN or number < NEARLY_ALL * breakdown.asked:
        return None
    return Hint(
        HintCode.DUPLICATES,
        f"{count(number)} candidates have the bytes of others: a host may answer with one placeholder for whatever "
        f"is gone. `pixtrawl failures {breakdown.job_id} --reason duplicate` lists them.",
        number,
    )


RULES: tuple[Callable[[Breakdown], Hint | None], ...] = (
    private_addresses,
    user_agent_refused,
    host_refuses,
    host_dominates,
    rate_limited,
    dns_overloaded,
    bandwidth_full,
    tls_broken,
    dead_links,
    web_pages,
    duplicates,
)
SAID_BY = {
    HintCode.USER_AGENT_REFUSED: {HintCode.HOST_REFUSES},
    HintCode.HOST_REFUSES: {HintCode.HOST_DOMINATES},
    HintCode.PRIVATE_ADDRESSES: {HintCode.HOST_DOMINATES},
    HintCode.HOST_DOMINATES: {HintCode.RATE_LIMITED, HintCode.DEAD_LINKS, HintCode.WEB_PAGES},
}
"""A hint that says what others would, and more exactly."""


def ending_at(host: str, cell: Cell) -> tuple[str, int | None] | None:
    """Why a cell of the host failed, with the status if that is why; None: it did not, or is another's."""
    if cell.host != host or cell.reason is None or not troubled(cell):
        return None
    return cell.reason, cell.http_status if cell.reason == Reason.HTTP_STATUS else None


def refused(cell: Cell) -> bool:
    """Whether the server said that we, or crawlers, may not."""
    return cell.reason in {Reason.HTTP_STATUS, Reason.RATE_LIMITED} and cell.http_status in REFUSING


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
