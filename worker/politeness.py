"""When a host may be asked: how many at once, how far apart, how long it wants to be left alone, if it is dead.

All children of all workers share this through Redis (politeness.lua decides): a child asks for slots and starts of
many hosts at once, uses them without another word, and tells what became of them. It never touches the web.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any

import aiohttp
import structlog
from publicsuffixlist import PublicSuffixList
from redis.asyncio import Redis

from models.settings import Settings
from worker.address import ParsedURL
from worker.endings import end_tasks
from worker.host import CLOSED_SECONDS, FAILURES_MAX, HORIZON_SECONDS, LEASE_SECONDS, Host
from worker.shared import AWAY

TICK_SECONDS = 0.1
FAREWELL_SECONDS = 1.0
HOSTS_AT_ONCE = 200
KEY = "pixtrawl:host:"
KEPT_SECONDS = 600.0
"""What is known of a host that nobody asks any more is forgotten after so long."""

CLOSED_SECONDS_MAX = 3600.0
PAUSE_FIRST_SECONDS = 0.5
"""At most so far apart are starts at a host that has refused for the first time."""
PAUSE_LAST_SECONDS = 0.001
"""A host that bears starts closer together than this is not paced any more, until it refuses again."""
PAUSE_SECONDS_MAX = 60.0
COST_SECONDS_MAX = 10.0
"""A refusal that asks for a longer wait makes us no more careful than one that asks for so long."""

LOCATED_SECONDS = 60.0
LOCATED_MAX = 10_000

ALONE_SECONDS = 5.0
"""How long a child goes by what it knows itself before it asks a Redis again that was away."""

Lookup = Callable[[str, int], Awaitable[Sequence[str]]]

log = structlog.get_logger()


async def look_nowhere(_host: str, _port: int) -> Sequence[str]:
    """For who needs no address: a name without one counts by itself."""
    return ()


class Politeness:
    """The hosts of one child, for all its chunks together."""

    def __init__(self, settings: Settings, redis: Redis, child: str, look_up: Lookup = look_nowhere) -> None:
        """``look_up`` finds the addresses of a host and port; it is needed where addresses count as hosts."""
        self._heard: list[Callable[[Iterable[str]], None]] = []
        """What is called with the names of hosts of which something new is known; one for each chunk."""
        self._keeper: asyncio.Task[None] | None = None
        self._rules = json.dumps(_rules(settings) | {"child": child})
        self._transfers = settings.transfers
        self._hosts: dict[str, Host] = {}
        self._wanted = asyncio.Event()
        self._alone_until = 0.0
        self._domains = PublicSuffixList() if settings.host_group == "domain" else None
        self._look_up = look_up
        self._by_address = settings.host_group == "ip"
        self._many_sites = settings.host_group != "host"
        self._located: dict[tuple[str, int], tuple[str, float]] = {}
        """What a host's address is taken to be, and until when."""
        script = files("worker").joinpath("politeness.lua").read_text("utf-8")
        self._decide = redis.register_script(script)

    def name_of(self, target: ParsedURL) -> str | None:
        """What counts as one host, with the port if it is none of the web's own; None: ``locate`` it first."""
        host: str | None = target.host
        if self._domains and _is_name(target.host):
            host = self._domains.privatesuffix(target.host) or host
        elif self._by_address and _is_name(target.host):
            host, until = self._located.get((target.host, target.port), ("", 0.0))
            if time.monotonic() >= until:
                return None
        return host if target.port in {80, 443} else f"{host}:{target.port}"

    async def locate(self, target: ParsedURL) -> None:
        """Learn the address that counts for a name: the least of several, so that names with the same ones count as
        one host. A name without any counts by itself; whoever connects will say why.
        """
        try:
            address = min(
                await self._look_up(target.host, target.port), key=lambda found: (":" in found, found)
            )
        except (OSError, aiohttp.ClientError, ValueError):
            address = target.host
        if len(self._located) >= LOCATED_MAX:
            self._located.clear()
        self._located[target.host, target.port] = address, time.monotonic() + LOCATED_SECONDS

    def host(self, name: str) -> Host:
        """What is known of a host."""
        found = self._hosts.get(name)
        if found is None:
            found = self._hosts[name] = Host(name, self._wanted, self._tell, many_sites=self._many_sites)
        return found

    def wanted(self, host: Host) -> None:
        """A transfer waits for a host: ask soon, if it was never asked about."""
        if not host.asked_at:
            self._wanted.set()

    def join(self, heard: Callable[[Iterable[str]], None]) -> asyncio.Task[None]:
        """A chunk begins: ask and tell in the task that is returned, for as long as any runs."""
        self._heard.append(heard)
        if self._keeper is None:
            self._keeper = asyncio.ensure_future(self._keep())
        return self._keeper

    async def _keep(self) -> None:
        while True:
            tick = asyncio.get_running_loop().call_later(TICK_SECONDS, self._wanted.set)
            await self._wanted.wait()
            tick.cancel()
            self._wanted.clear()
            now = time.monotonic()
            await self._ask([host for host in self._hosts.values() if host.due(now)])

    async def leave(self, heard: Callable[[Iterable[str]], None]) -> None:
        """A chunk ends. After the last, tell what is left to tell, give every slot back, forget all hosts."""
        self._heard.remove(heard)
        if self._heard or self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        await end_tasks([keeper])
        if self._heard:  # Another one began meanwhile: what there is belongs to it now.
            return
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
                    host.decide_alone(now)
            for host in some:
                # The last chunk's farewell may be under way while the next one has made hosts of its own.
                if not host.want() and host.news is None and self._hosts.get(host.name) is host:
                    del self._hosts[host.name]
            self._tell([host.name for host in some])

    def _tell(self, names: Iterable[str]) -> None:
        """Something new is known of these hosts, or a turn there is over: the oldest chunk may use it first."""
        for heard in tuple(self._heard):
            heard(names)

    async def _ask_redis(self, hosts: Sequence[Host]) -> bool:
        most = self._transfers * max(1, len(self._heard))
        arguments = [self._rules, *(json.dumps(host.report(most)) for host in hosts)]
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
            host.heed(answer, asked_at)
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
        "cost_max": COST_SECONDS_MAX * 1000,
        "pause_max": PAUSE_SECONDS_MAX * 1000,
        "horizon": HORIZON_SECONDS * 1000,
        "lease": int(LEASE_SECONDS * 1000),
        "kept": int(KEPT_SECONDS * 1000),
    }


def _is_name(host: str) -> bool:
    """Whether a host is a name, and not a literal address."""
    return ":" not in host and not host.rpartition(".")[2].isdigit()
