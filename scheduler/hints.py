"""What the pattern of a job's failures tells, and what to do about it: a closed list, docs/outcomes.md has it, too.

Pure: from a breakdown to sentences. Each rule looks at one pattern.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from operator import itemgetter
from typing import Any

from models.breakdown import Breakdown
from models.outcomes import Reason
from scheduler.patterns import (
    CANDIDATES_MIN,
    MOST,
    NEARLY_ALL,
    about,
    ending_at,
    gone,
    hosts_of,
    leader,
    many,
    most,
    refused,
    refusing_hosts,
    statuses,
    total,
)
from scheduler.printing import count
from scheduler.remedies import remedy

HINTS_MAX = 3
HOSTS_MIN = 3
"""So many hosts are not one host's trouble any more, but ours."""


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
    """One or two sentences about so many candidates, most of them perhaps of one host."""

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
    found = [hint for hint in found if not any(says(other, hint) for other in found)]
    return sorted(found, key=lambda hint: -hint.candidates)[:HINTS_MAX]


def says(other: Hint, hint: Hint) -> bool:
    """Whether the other says the same more exactly: of the same host, or of all of them."""
    return hint.code in SAID_BY.get(other.code, ()) and other.host in {None, hint.host}


def private_addresses(breakdown: Breakdown) -> Hint | None:
    """Most lead to addresses that are not public."""
    number = breakdown.reasons.get(Reason.BLOCKED_ADDRESS, 0)
    if number <= MOST * breakdown.asked:
        return None
    message = "Most addresses are not public: if they are your own, set PIXTRAWL_ALLOWED_NETWORKS."
    return Hint(HintCode.PRIVATE_ADDRESSES, message, number)


def user_agent_refused(breakdown: Breakdown) -> Hint | None:
    """Several hosts, none of them alone, answer that we may not: it is us whom they refuse."""
    hosts = refusing_hosts(breakdown, refused)
    number = total(hosts)
    if not many(breakdown, number) or len(hosts) < HOSTS_MIN or leader(hosts):
        return None
    return Hint(
        HintCode.USER_AGENT_REFUSED,
        f"Sites refuse the user agent: {about(breakdown, number)} requests to {hosts_of(breakdown, hosts)} "
        f"({statuses(breakdown, refused)}). Name a contact in PIXTRAWL_USER_AGENT, as many sites ask of crawlers.",
        number,
    )


def host_refuses(breakdown: Breakdown) -> Hint | None:
    """One host answers nearly every request that we may not."""
    hosts = refusing_hosts(breakdown, lambda cell: refused(cell) and cell.reason == Reason.HTTP_STATUS)
    host, number = most(hosts)
    if not many(breakdown, number):
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
    if leader(breakdown.troubles) is None or not many(breakdown, number):
        return None
    if len(breakdown.asked_by_host) < 2 or number < MOST * breakdown.asked_by_host[host]:
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
    where = leader(hosts) or hosts_of(breakdown, hosts)
    return Hint(
        HintCode.RATE_LIMITED,
        f"{count(number)} candidates were rate-limited by {where}: lower PIXTRAWL_HOST_TRANSFERS or "
        f"PIXTRAWL_HOST_RATE, then `pixtrawl retry {breakdown.job_id} --only rate_limited`.",
        number,
        leader(hosts),
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
        leader(hosts),
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
        leader(hosts),
    )


def duplicates(breakdown: Breakdown) -> Hint | None:
    """Nearly everything is the same picture."""
    number = breakdown.reasons.get(Reason.DUPLICATE, 0)
    if number < CANDIDATES_MIN or number < NEARLY_ALL * breakdown.asked:
        return None
    return Hint(
        HintCode.DUPLICATES,
        f"{count(number)} candidates have the bytes of others, or their URL: a host may answer with one "
        f"placeholder for whatever is gone. `pixtrawl failures {breakdown.job_id} --reason duplicate` lists them.",
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
