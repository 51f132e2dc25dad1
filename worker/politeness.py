"""When a host may be asked: how many at once, how far apart, how long it wants to be left alone, if it is dead.

All children of all workers share this through Redis (politeness.lua decides): a child asks for slots and starts of
many hosts at once, uses them without another word, and tells what became of them. It never touches the web.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from math import ceil
from typing import Any

import structlog
from publicsuffixlist import PublicSuffixList
from redis.asyncio import Redis

from models.outcomes import Reason
from models.settings import Settings
from worker.address import ParsedURL
from worker.shared import AWAY

TICK_SECONDS = 0.1
REPORT_SECONDS = 0.25
"""A child tells what it saw of a host, and asks for more than it has, so often."""
LEASE_SECONDS = 10.0
"""Slots of a child that is silent for so long are free again."""
HORIZON_SECONDS = 0.5
"""How far ahead starts are given out."""
FAREWELL_SECONDS = 1.0
HOSTS_AT_ONCE = 200
KEY = "pixtrawl:host:"
KEPT_SECONDS = 600.0
"""What is known of a host that nobody asks any more is forgotten after so long."""

FAILURES_MAX = 6
"""So many transfers in a row without any answer close a host, for CLOSED_SECONDS; then one is tried."""
CLOSED_SECONDS = 60.0
CLOSED_SECONDS_MAX = 3600.0
PAUSE_FIRST_SECONDS = 0.1
"""Between two starts at a host that has refused for the first time; doubled each further time."""
PAUSE_LAST_SECONDS = 0.005
PAUSE_SECONDS_MAX = 60.0
DETAIL_CHARACTERS_MAX = 200

ALONE_SECONDS = 5.0
"""How long a child goes by what it knows itself before it asks a Redis again that was away."""
ALONE_PAUSE_SECONDS = 0.25
"""Between two starts at a host meanwhile, one at a time: others may be doing the same."""

log = structlog.get_logger()


@dataclass(slots=True)
class News:
    """What happened at a host since the last report. ``wait_seconds`` is what it asked for; None: it did not."""

    answered: int = 0
    struggling: int = 0
    refused: int = 0
    failed: int = 0
    latency_seconds: float = 0.0
    wait_seconds: float | None = None
    why: str = ""
    detail: str = ""


@dataclass(slots=True)
class Host:
    """What one child may do at one host. Times are of ``time.monotonic``; ``waiting`` and ``busy`` count its own
    transfers that want to start, and that run.
    """

    name: str
    hurry: asyncio.Event
    """Set when what happened there cannot wait to be told."""
    waiting: int = 0
    busy: int = 0
    slots: int = 0
    starts: deque[float] = field(default_factory=deque)
    """When transfers may start, if it is ``paced``; otherwise they may at any time after ``not_before``."""
    paced: bool = False
    pause_seconds: float = 0.0
    delay_seconds: float | None = None
    """What its robots.txt asks for between two requests; None: not known."""
    not_before: float = 0.0
    closed_until: float = 0.0
    why: str = ""
    detail: str = ""
    asked_at: float = 0.0
    """When it was last asked about; 0: never."""
    failed_in_row: int = 0
    urgent: bool = False
    news: News | None = None

    def wait_seconds(self, now: float) -> float | None:
        """0: a transfer may start; else how long to wait, or None when that is not known yet."""
        if self.paced and not self.starts:
            return self.not_before - now if self.not_before > now + HORIZON_SECONDS else None
        begin = max(self.starts[0] if self.paced else 0.0, self.not_before)
        if self.busy >= self.slots:
            return begin - now if begin > now + HORIZON_SECONDS else None
        return max(0.0, begin - now)

    def closed(self, now: float) -> bool:
        """Whether nobody asks this host at present."""
        return self.closed_until > now

    def begin(self) -> "Turn":
        """A transfer starts: ``wait_seconds`` was 0."""
        self.busy += 1
        if self.paced:
            # A start that comes late does not bring the next one closer.
            self.not_before = max(self.not_before, self.starts.popleft() + self.pause_seconds / 2)
        return Turn(self)

    def want(self) -> int:
        """Transfers that would run now if they might."""
        return self.busy + self.waiting

    def told(self) -> News:
        """What is to be reported next, to be added to."""
        if self.news is None:
            self.news = News()
        return self.news

    def heed_delay(self, seconds: float) -> bool:
        """Its robots.txt asks for so many seconds between two requests. True: that is news, and what was given out
        before does not count any more.
        """
        if seconds == (self.delay_seconds or 0.0):
            return False
        self.delay_seconds = seconds
        self.told()
        if not seconds or (self.paced and self.pause_seconds >= seconds):
            return False
        self.paced, self.pause_seconds = True, seconds
        self.alarm()
        return True

    def alarm(self) -> None:
        """What happened has to be told now; nothing that was given out before counts until there is an answer."""
        self.slots = min(self.slots, self.busy)
        self.starts.clear()
        self.urgent = True
        self.hurry.set()

    def due(self, now: float) -> bool:
        """Whether it is time to report, or to ask."""
        if not self.asked_at:
            return self.waiting > 0
        if self.urgent:
            return True
        if now < self.asked_at + REPORT_SECONDS:
            return False
        if self.news is not None or not self.want():
            return True
        starved = self.busy >= self.slots or (self.paced and not self.starts)
        if self.waiting and starved and now >= self.not_before - HORIZON_SECONDS:
            return True
        return now >= self.asked_at + LEASE_SECONDS / 3


class Turn:
    """One request at a host: it ends once, with what became of it, or by ``close``, which knows nothing."""

    __slots__ = ("_host", "_pause_seconds", "host_name")

    def __init__(self, host: Host) -> None:
        self._host: Host | None = host
        self.host_name = host.name
        self._pause_seconds = host.pause_seconds if host.paced else 0.0

    def heed_delay(self, seconds: float) -> bool:
        """The host's robots.txt asks for so many seconds between two requests. True: this turn was given out before
        anybody knew, and may not be used.
        """
        news = self._host is not None and self._host.heed_delay(seconds)
        return news or self._pause_seconds < seconds

    def answered(self, latency_seconds: float, *, struggling: bool = False) -> None:
        """The host answered, after ``latency_seconds``; ``struggling`` if it said that it cannot at present."""
        if host := self._end():
            news = host.told()
            news.answered += not struggling
            news.struggling += struggling
            news.latency_seconds += latency_seconds
            host.failed_in_row = 0

    def refused(self, wait_seconds: float | None, detail: str) -> None:
        """The host said that it is asked too often; ``wait_seconds`` is its Retry-After, 0 if it means at once."""
        if host := self._end():
            news = host.told()
            if wait_seconds != 0:
                news.refused += 1
                host.alarm()
            news.wait_seconds = max(news.wait_seconds or 0.0, wait_seconds or 0.0)
            news.detail = detail[:DETAIL_CHARACTERS_MAX]
            host.not_before = max(host.not_before, time.monotonic() + news.wait_seconds)
            host.failed_in_row = 0

    def failed(self, why: Reason, detail: str) -> None:
        """The host did not answer at all."""
        if host := self._end():
            news = host.told()
            news.failed += 1
            news.why, news.detail = why.value, detail[:DETAIL_CHARACTERS_MAX]
            host.failed_in_row += 1
            if host.failed_in_row >= FAILURES_MAX / 2:
                host.alarm()

    def close(self) -> None:
        """It ended for a reason of ours, if it has not ended yet."""
        self._end()

    def _end(self) -> Host | None:
        host, self._host = self._host, None
        if host is not None:
            host.busy -= 1
        return host


class Politeness:
    """The hosts of one child. ``changed`` is called with the names of hosts of which something new is known."""

    def __init__(self, settings: Settings, redis: Redis, child: str) -> None:
        self.changed: Callable[[Iterable[str]], None] = lambda _: None
        self._rules = json.dumps(_rules(settings) | {"child": child})
        self._hosts: dict[str, Host] = {}
        self._wanted = asyncio.Event()
        self._alone_until = 0.0
        self._domains = PublicSuffixList() if settings.host_group == "domain" else None
        script = files("worker").joinpath("politeness.lua").read_text("utf-8")
        self._decide = redis.register_script(script)

    def name_of(self, target: ParsedURL) -> str:
        """What counts as one host, with the port if it is none of the web's own."""
        host = self._domains.privatesuffix(target.host) if self._domains and _is_name(target.host) else None
        host = host or target.host
        return host if target.port in {80, 443} else f"{host}:{target.port}"

    def host(self, name: str) -> Host:
        """What is known of a host."""
        found = self._hosts.get(name)
        if found is None:
            found = self._hosts[name] = Host(name, self._wanted)
        return found

    def wanted(self, host: Host) -> None:
        """A transfer waits for a host: ask soon, if it was never asked about."""
        if not host.asked_at:
            self._wanted.set()

    async def keep(self) -> None:
        """Ask and tell, for as long as a chunk runs."""
        while True:
            tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._wanted.set)
            await self._wanted.wait()
            tick.cancel()
            self._wanted.clear()
            now = time.monotonic()
            await self._ask([host for host in self._hosts.values() if host.due(now)])

    async def leave(self) -> None:
        """Tell what is left to tell and give every slot back; forget all hosts."""
        told = [host for host in self._hosts.values() if host.asked_at]
        for host in told:
            host.waiting = 0
        self._hosts = {}
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._ask(told)
        except TimeoutError:
            pass  # What was lent is free again when its lease is over.

    async def _ask(self, hosts: Sequence[Host]) -> None:
        for start in range(0, len(hosts), HOSTS_AT_ONCE):
            some = hosts[start : start + HOSTS_AT_ONCE]
            if time.monotonic() < self._alone_until or not await self._ask_redis(some):
                now = time.monotonic()
                for host in some:
                    _decide_alone(host, now)
            for host in some:
                if not host.want() and host.news is None:
                    self._hosts.pop(host.name, None)
            self.changed([host.name for host in some])

    async def _ask_redis(self, hosts: Sequence[Host]) -> bool:
        arguments = [self._rules, *(json.dumps(_report(host)) for host in hosts)]
        for host in hosts:
            host.news = None
        asked_at = time.monotonic()
        try:
            answers = await self._decide(keys=[KEY + host.name for host in hosts], args=arguments)
        except AWAY as error:
            log.warning("politeness_alone", error=str(error) or type(error).__name__)
            self._alone_until = time.monotonic() + ALONE_SECONDS
            return False
        for host, answer in zip(hosts, answers, strict=True):
            _heed(host, answer, asked_at)
        return True


def _rules(settings: Settings) -> dict[str, Any]:
    """What politeness.lua goes by, in milliseconds."""
    return {
        "limit": settings.host_transfers,
        "pause": 1000 / settings.host_rate if settings.host_rate else 0,
        "patience": settings.host_patience_seconds * 1000,
        "failures": FAILURES_MAX,
        "closed": CLOSED_SECONDS * 1000,
        "closed_max": CLOSED_SECONDS_MAX * 1000,
        "pause_first": PAUSE_FIRST_SECONDS * 1000,
        "pause_last": PAUSE_LAST_SECONDS * 1000,
        "pause_max": PAUSE_SECONDS_MAX * 1000,
        "horizon": HORIZON_SECONDS * 1000,
        "lease": int(LEASE_SECONDS * 1000),
        "kept": int(KEPT_SECONDS * 1000),
    }


def _report(host: Host) -> dict[str, Any]:
    news = host.news or News()
    return {
        "want": host.want(),
        "busy": host.busy,
        "need": max(0, host.waiting - len(host.starts)),
        "ok": news.answered,
        "struggling": news.struggling,
        "refused": news.refused,
        "failed": news.failed,
        "latency": 1000 * news.latency_seconds / max(1, news.answered + news.struggling),
        "wait": -1 if news.wait_seconds is None else ceil(1000 * news.wait_seconds),
        "delay": -1 if host.delay_seconds is None else ceil(1000 * host.delay_seconds),
        "why": news.why,
        "detail": news.detail,
    }


def _heed(host: Host, answer: Sequence[Any], now: float) -> None:
    """Take an answer: slots, starts (-1: at any time), from when and how far apart, how long nobody may start,
    closed for how long and why.
    """
    slots, starts, begin, pause, until, closed, why, detail = answer
    host.asked_at, host.urgent = now, False
    host.slots, host.paced, host.pause_seconds = slots, starts >= 0, pause / 1000
    host.not_before = max(host.not_before, now + until / 1000)
    if not host.paced:
        host.starts.clear()
    elif not starts and not host.starts:
        host.not_before = max(host.not_before, now + begin / 1000)
    host.starts.extend(now + begin / 1000 + place * host.pause_seconds for place in range(starts))
    host.closed_until = now + closed / 1000 if closed else 0.0
    host.why, host.detail = why.decode(), detail.decode("utf-8", "replace")


def _decide_alone(host: Host, now: float) -> None:
    """Without Redis: one at a time, never faster than before, and by what this child has seen itself."""
    host.news, host.urgent = None, False
    host.slots, host.paced = 1, True
    host.pause_seconds = max(host.pause_seconds, ALONE_PAUSE_SECONDS)
    if host.failed_in_row >= FAILURES_MAX:
        host.closed_until = now + CLOSED_SECONDS
        host.why, host.detail = Reason.CONNECT.value, "none of its last transfers had an answer"
    if not host.starts:
        host.starts.append(
            max(now, host.not_before, host.asked_at + host.pause_seconds if host.asked_at else 0.0)
        )
    host.asked_at = now


def _is_name(host: str) -> bool:
    """Whether a host is a name, and not a literal address."""
    return ":" not in host and not host.rpartition(".")[2].isdigit()
