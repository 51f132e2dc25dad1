"""What owners say against being collected, asked before a URL is requested and before its body is read.

Obeys robots.txt (RFC 9309), X-Robots-Tag and the TDM Reservation Protocol, less what a job may ignore. Every
refusal carries its evidence. docs/opt-outs.md says it for people.
"""

import datetime
import functools
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from multidict import CIMultiDictProxy
from redis.asyncio import Redis

from models.opt_outs import Declaration, Evidence, OptOut
from models.outcomes import Reason
from models.settings import Settings
from worker.address import ParsedURL
from worker.cluster_memory import CLAIM_SECONDS, Cluster, OriginMemory, Record
from worker.errors import AddressError, CandidateError, OptOutError, TransferError
from worker.fetch import Hooks, reason_of
from worker.reservations import POLICY, RESERVATION, Reservation, Reservations, refused_for, reserves
from worker.robots import EVERYBODY, Line, Rules, product_token, select_lines
from worker.site_files import SECONDS_MAX, SiteFile, UnreachableError, fetch_file, file_of
from worker.transport import GuardedTransport, RefusedError

ROBOTS_PATH = "/robots.txt"
TDMREP_PATH = "/.well-known/tdmrep.json"
REMEMBERED_SECONDS = 24 * 3600
"""No file is believed for longer (RFC 9309, section 2.4)."""
UNREACHABLE_SECONDS = 300
"""After so long a file that could not be read is asked for again."""
NO_ANSWER_SECONDS = 60
"""A host that gave no answer is asked again after so long; every candidate of it ends at once meanwhile."""
ADMIT_SECONDS_MAX = 2 * (SECONDS_MAX + CLAIM_SECONDS)
"""The longest that both files of an origin may take: to wait for another child that dies over it, and to ask."""

ALL = frozenset(OptOut)
Headers = CIMultiDictProxy[str]
Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Robots:
    """The robots.txt of one origin: ``rules``, unless it was ``unreachable``, or its host (``absent``)."""

    source: str
    fetched_at: datetime.datetime
    rules: Rules
    unreachable: str | None = None
    absent: tuple[Reason, str] | None = None


@dataclass(frozen=True, slots=True)
class Tdmrep:
    """The tdmrep.json of one origin. A file that is not there reserves nothing."""

    source: str
    fetched_at: datetime.datetime
    reservations: Reservations


Heed = Callable[[ParsedURL, float], bool]


def heed_nothing(_url: ParsedURL, _seconds: float) -> bool:
    """Where nobody paces requests."""
    return False


class OptOuts:
    """What the owners of every origin say to this crawler. Make it inside the running loop."""

    def __init__(self, transport: GuardedTransport, settings: Settings, redis: Redis | None = None) -> None:
        self._transport = transport
        self._settings = settings
        self.token = product_token(settings.user_agent)
        cluster = Cluster(redis)
        prefix = f"pixtrawl:robots:{self.token}"
        self.robots = OriginMemory(prefix, cluster, self._ask_robots, _read_robots)
        self.tdmrep = OriginMemory("pixtrawl:tdmrep", cluster, self._ask_tdmrep, _read_tdmrep)

    def obeyed(self, ignored: Collection[OptOut]) -> frozenset[OptOut]:
        """What holds for a job that ignores these opt-outs, as far as the settings let it."""
        return ALL - (frozenset(ignored) & frozenset(self._settings.opt_outs_ignorable))

    def hooks(self, obeyed: frozenset[OptOut] = ALL, heed: Heed = heed_nothing) -> Hooks:
        """What a fetch has to ask."""
        return Hooks(
            admit=functools.partial(self.admit, obeyed=obeyed, heed=heed),
            header=functools.partial(self.check_header, obeyed=obeyed),
        )

    async def admit(self, url: ParsedURL, obeyed: frozenset[OptOut] = ALL, heed: Heed = heed_nothing) -> bool:
        """Let a URL be requested, or raise OptOutError; AddressError or TransferError when its host is not there.

        Without a robots.txt that says yes, nothing but that is asked of an origin. ``heed`` is told of its
        Crawl-delay. False: not now; ``heed`` wants to wait first, or the present turn went into tdmrep.json.
        """
        origin, delay_seconds = url.origin, None
        if OptOut.ROBOTS in obeyed:
            robots = self.robots.known(origin) or await self.robots.find(origin)
            _check_robots(robots, url)
            delay_seconds = robots.rules.crawl_delay
            if delay_seconds and heed(url, delay_seconds):
                return False
        if OptOut.TDM not in obeyed:
            return True
        known = self.tdmrep.known(origin)
        tdmrep = known or await self.tdmrep.find(origin)
        if tdmrep.reservations.rules:
            _check_tdmrep(tdmrep, url)
        return known is not None or not delay_seconds

    def check_header(self, url: ParsedURL, headers: Headers, obeyed: frozenset[OptOut] = ALL) -> None:
        """Let a body be read, or raise OptOutError."""
        if OptOut.X_ROBOTS_TAG in obeyed and (tags := headers.getall("X-Robots-Tag", ())):
            refused = refused_for(tags, self.token)
            if refused is not None:
                line = _header_line(headers, "X-Robots-Tag", refused[0])
                evidence = Evidence(Declaration.X_ROBOTS_TAG, url.url, _now(), line, agent=refused[1])
                raise OptOutError(Reason.OPT_OUT, f"the response says {line}", evidence)
        if OptOut.TDM in obeyed:
            reserved = next(
                (value for value in headers.getall(RESERVATION, ()) if reserves(value.strip())), None
            )
            if reserved is not None:
                line = _header_line(headers, RESERVATION, reserved)
                policy = headers.get(POLICY)
                evidence = Evidence(
                    Declaration.TDM_HEADER, url.url, _now(), line, agent=EVERYBODY, policy=policy
                )
                raise OptOutError(Reason.OPT_OUT, f"the response says {line}", evidence)

    async def close(self) -> None:
        """End the questions that nobody waits for, before the transport is closed."""
        await self.robots.close()
        await self.tdmrep.close()

    async def _ask_robots(self, origin: str) -> Record:
        url = file_of(origin, ROBOTS_PATH)
        try:
            file = await fetch_file(self._transport, url, self._settings)
        except UnreachableError as error:
            return _record(url.url, UNREACHABLE_SECONDS, unreachable=str(error))
        except httpx.TransportError as error:
            reason = error.refusal.reason if isinstance(error, RefusedError) else reason_of(error)
            absent = [reason.value, str(error) or type(error).__name__]
            return _record(url.url, NO_ANSWER_SECONDS, own=True, absent=absent)
        agent, lines = select_lines(file.body, self.token)
        return _record(file.url, REMEMBERED_SECONDS, file, agent=agent, lines=lines)

    async def _ask_tdmrep(self, origin: str) -> Record:
        """A file that cannot be had says that nobody takes part in the protocol (TDMRep, section 4.2); one that
        robots.txt does not let us ask for, too.
        """
        url = file_of(origin, TDMREP_PATH)
        robots = self.robots.known(origin)
        if robots is not None and robots.rules.refusal(url.url):
            return _record(url.url, REMEMBERED_SECONDS, own=True, rules=[])
        try:
            file = await fetch_file(self._transport, url, self._settings)
        except UnreachableError:
            return _record(url.url, UNREACHABLE_SECONDS, rules=[])
        except httpx.TransportError:
            return _record(url.url, NO_ANSWER_SECONDS, own=True, rules=[])
        return _record(file.url, REMEMBERED_SECONDS, file, rules=Reservations.parse(file.body).rules)


def _record(
    source: str, seconds: float, file: SiteFile | None = None, *, own: bool = False, **content: Any
) -> Record:
    at = file.at if file else _now()
    return Record(content | {"source": source, "at": at.timestamp()}, time.time() + seconds, own)


def _read_robots(content: Mapping[str, Any]) -> Robots:
    absent = content.get("absent")
    return Robots(
        content["source"],
        _time(content["at"]),
        Rules(content.get("agent", EVERYBODY), [Line(*line) for line in content.get("lines", ())]),
        content.get("unreachable"),
        (Reason(absent[0]), absent[1]) if absent else None,
    )


def _read_tdmrep(content: Mapping[str, Any]) -> Tdmrep:
    rules = [Reservation(*rule) for rule in content["rules"]]
    return Tdmrep(content["source"], _time(content["at"]), Reservations(rules))


def _said(find: Callable[[str], Found | None], url: ParsedURL) -> Found | None:
    """What ``find`` finds said about a URL, in whichever of its readings."""
    return next(filter(None, map(find, url.readings)), None)


def _check_robots(robots: Robots, url: ParsedURL) -> None:
    line = _said(robots.rules.refusal, url)
    if line is not None:
        evidence = Evidence(
            Declaration.ROBOTS_TXT,
            robots.source,
            robots.fetched_at,
            line.text,
            line.number or None,
            robots.rules.agent,
        )
        place = f", line {line.number}" if line.number else ""
        detail = f"{robots.source}{place}: {line.text[:200]}"
        raise OptOutError(Reason.ROBOTS, detail, evidence)
    if robots.unreachable is not None:
        evidence = Evidence(
            Declaration.ROBOTS_TXT, robots.source, robots.fetched_at, unreachable=robots.unreachable
        )
        raise OptOutError(Reason.ROBOTS, f"{robots.source} cannot be read: {robots.unreachable}", evidence)
    if robots.absent is not None:
        reason, detail = robots.absent
        blocked = reason in {Reason.BLOCKED_ADDRESS, Reason.INVALID_URL}
        kind: type[CandidateError] = AddressError if blocked else TransferError
        raise kind(reason, detail, transient=False)


def _check_tdmrep(tdmrep: Tdmrep, url: ParsedURL) -> None:
    rule = _said(tdmrep.reservations.reservation, url)
    if rule is not None:
        evidence = Evidence(
            Declaration.TDMREP_JSON,
            tdmrep.source,
            tdmrep.fetched_at,
            rule.text,
            agent=EVERYBODY,
            policy=rule.policy,
        )
        raise OptOutError(Reason.OPT_OUT, f"{tdmrep.source} says {rule.text[:200]}", evidence)


def _header_line(headers: Headers, name: str, value: str) -> str:
    """A field as it was received."""
    received = next(key for key, held in headers.items() if key.lower() == name.lower() and held == value)
    return f"{received}: {value}"


def _time(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
