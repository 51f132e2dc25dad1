"""What one child knows of a host and may do there. Pure: it asks nobody and tells nobody."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from models.outcomes import Reason

REPORT_SECONDS = 0.25
"""A child tells what it saw of a host, and asks for more than it has, so often."""
LEASE_SECONDS = 10.0
"""Slots of a child that is silent for so long are free again."""
HORIZON_SECONDS = 0.5
"""How far ahead starts are given out."""
FAILURES_MAX = 6
"""So many transfers in a row without any answer close a host, for CLOSED_SECONDS; then one is tried."""
CLOSED_SECONDS = 60.0
DETAIL_CHARACTERS_MAX = 200
ALONE_PAUSE_SECONDS = 0.25
"""Between two starts at a host while Redis is away, one at a time: others may be doing the same."""


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
    freed: Callable[[Iterable[str]], None]
    """Called with its name when a turn is over: whoever waits here may go on."""
    many_sites: bool = False
    """Whether it is a domain or an address, at which there may be sites of many owners."""
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
            # A start that comes late does not bring the next one here closer than half of the pause, nor than the
            # owner asked for.
            begun = max(time.monotonic(), self.starts.popleft())
            self.not_before = max(
                self.not_before, begun + max(self.pause_seconds / 2, self.delay_seconds or 0.0)
            )
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
        before does not count any more. Of many sites' delays the longest counts.
        """
        if self.many_sites:
            seconds = max(seconds, self.delay_seconds or 0.0)
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
        # Where starts are close together, new ones are asked for before those at hand are used up.
        starved = self.paced and (not self.starts or self.pause_seconds < REPORT_SECONDS)
        if self.waiting and (starved or self.busy >= self.slots) and now >= self.not_before - HORIZON_SECONDS:
            return True
        return now >= self.asked_at + LEASE_SECONDS / 3

    def report(self, most: int) -> dict[str, Any]:
        """What politeness.lua is told, in milliseconds. Slots beyond ``most`` cannot be used: others have them."""
        news = self.news or News()
        return {
            "want": min(self.want(), most),
            "busy": self.busy,
            "have": len(self.starts),
            "need": max(0, self.waiting - len(self.starts)),
            "ok": news.answered,
            "struggling": news.struggling,
            "refused": news.refused,
            "failed": news.failed,
            "latency": 1000 * news.latency_seconds / max(1, news.answered + news.struggling),
            "wait": -1 if news.wait_seconds is None else ceil(1000 * news.wait_seconds),
            "delay": -1 if self.delay_seconds is None else ceil(1000 * self.delay_seconds),
            "why": news.why,
            "detail": news.detail,
        }

    def heed(self, answer: Sequence[Any], now: float) -> None:
        """Take an answer: slots, starts (-1: at any time), from when and how far apart (in microseconds; other
        times are milliseconds), how long nobody may start, closed for how long and why.
        """
        slots, starts, begin, pause, until, closed, why, detail = answer
        self.asked_at, self.urgent = now, False
        self.slots, self.paced, self.pause_seconds = slots, starts >= 0, pause / 1e6
        self.not_before = max(self.not_before, now + until / 1000)
        if not self.paced:
            self.starts.clear()
        # What was not used in time, or may not be any more, would come on top of what is given out now.
        stale = now + until / 1000 if until else now - HORIZON_SECONDS
        while self.starts and self.starts[0] < stale:
            self.starts.popleft()
        if self.paced and not starts and not self.starts:
            self.not_before = max(self.not_before, now + begin / 1000)
        self.starts.extend(now + begin / 1000 + place * self.pause_seconds for place in range(starts))
        self.closed_until = now + closed / 1000 if closed else 0.0
        self.why, self.detail = why.decode(), detail.decode("utf-8", "replace")

    def decide_alone(self, now: float) -> None:
        """Without Redis: one at a time, never faster than before, and by what this child has seen itself."""
        self.news, self.urgent = None, False
        self.slots, self.paced = 1, True
        self.pause_seconds = max(self.pause_seconds, ALONE_PAUSE_SECONDS)
        if self.failed_in_row >= FAILURES_MAX:
            self.closed_until = now + CLOSED_SECONDS
            self.why, self.detail = Reason.CONNECT.value, "none of its last transfers had an answer"
        if not self.starts:
            self.starts.append(
                max(now, self.not_before, self.asked_at + self.pause_seconds if self.asked_at else 0.0)
            )
        self.asked_at = now


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
            host.freed((host.name,))

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
            host.freed((host.name,))

    def failed(self, why: Reason, detail: str) -> None:
        """The host did not answer at all. Where many sites are, a certificate is one site's affair."""
        if (host := self._end()) and host.many_sites and why is Reason.TLS:
            host.freed((host.name,))
        elif host:
            news = host.told()
            news.failed += 1
            news.why, news.detail = why.value, detail[:DETAIL_CHARACTERS_MAX]
            host.failed_in_row += 1
            if host.failed_in_row >= FAILURES_MAX / 2:
                host.alarm()
            host.freed((host.name,))

    def close(self) -> None:
        """It ended for a reason of ours, if it has not ended yet."""
        if host := self._end():
            host.freed((host.name,))

    def _end(self) -> Host | None:
        host, self._host = self._host, None
        if host is not None:
            host.busy -= 1
        return host
