"""An operator's proxy: the only address that is connected to then, while every target is still checked here before.

A name may lead elsewhere when the proxy looks it up again: what it may reach is its own configuration's business.
"""

import asyncio
import socket
import time

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import SecretStr

from models.outcomes import Reason
from worker.address import is_literal
from worker.errors import AddressError
from worker.resolver import GuardedResolver, RefusedConnectError, guard

CHECKED_SECONDS = 60
CHECKED_HOSTS_MAX = 10_000


class Proxy(AbstractResolver):
    """One proxy and the way to it. As a resolver it knows no name but the proxy's."""

    def __init__(self, url: SecretStr, resolver: AbstractResolver) -> None:
        given = yarl.URL(url.get_secret_value())
        self.url = given.with_user(None).with_path("/")
        self.headers: dict[str, str] = {}
        if given.user is not None:
            password = aiohttp.encode_basic_auth(given.user, given.password or "")
            self.headers["Proxy-Authorization"] = password
        self._resolver = resolver
        self._addresses: set[str] = set()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look the proxy up. Raises RefusedConnectError for any other host."""
        if host != self.url.host:
            raise _refused(f"{host} is not the proxy")
        answers = await self._resolver.resolve(host, port, family)
        self._addresses = {answer["host"] for answer in answers}
        return answers

    async def close(self) -> None:
        """Close what is asked."""
        await self._resolver.close()

    def guard(self, address: str, port: int) -> None:
        """Let a connection to the proxy pass. Raises RefusedConnectError for any other."""
        if port != self.url.port or address not in {*self._addresses, self.url.host}:
            raise _refused(f"{address} port {port} is not the proxy")


class TargetCheck:
    """Whether a host may be asked for through a proxy: every address that it has here must be public."""

    def __init__(self, resolver: GuardedResolver) -> None:
        self._resolver = resolver
        self._checked: dict[str, tuple[float, asyncio.Task[list[ResolveResult]]]] = {}

    async def check(self, host: str, port: int) -> list[str]:
        """Its addresses; they count for a minute. Raises RefusedConnectError or socket.gaierror unless it may."""
        if is_literal(host):
            guard(host, self._resolver.allowed_networks)
            return [host]
        until, lookup = self._checked.get(host, (0.0, None))
        if lookup is None or time.monotonic() > until:
            if len(self._checked) >= CHECKED_HOSTS_MAX:
                self._checked.clear()
            lookup = asyncio.ensure_future(self._resolver.resolve(host, port))
            lookup.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._checked[host] = (time.monotonic() + CHECKED_SECONDS, lookup)
        try:
            return [answer["host"] for answer in await asyncio.shield(lookup)]
        except socket.gaierror:
            self._checked.pop(host, None)
            raise


def _refused(detail: str) -> RefusedConnectError:
    return RefusedConnectError(AddressError(Reason.BLOCKED_ADDRESS, detail))
