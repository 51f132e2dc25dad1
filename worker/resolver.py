"""Name lookup that refuses: every address is checked, whoever gave it. It never connects."""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from models.settings import IPNetwork
from worker.address import check_address
from worker.errors import AddressError

DNS_THREADS = 32


class RefusedConnectError(OSError):
    """Carries a refusal through aiohttp, which only lets OSError out of its connect loop in one piece."""

    def __init__(self, refusal: AddressError) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


def guard(address: str, allowed_networks: tuple[IPNetwork, ...]) -> None:
    """Check an address for aiohttp. Raises RefusedConnectError."""
    try:
        check_address(address, allowed_networks)
    except AddressError as refusal:
        raise RefusedConnectError(refusal) from refusal


class GuardedResolver(AbstractResolver):
    """Refuses a host whole when any of its addresses is refused: half an answer invites rebinding."""

    def __init__(self, resolver: AbstractResolver, allowed_networks: tuple[IPNetwork, ...]) -> None:
        self._resolver = resolver
        self.allowed_networks = allowed_networks

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look a host up. Raises RefusedConnectError or socket.gaierror."""
        answers = await self._resolver.resolve(host, port, family)
        if not answers:
            raise socket.gaierror(socket.EAI_NODATA, "the name has no address")
        for answer in answers:
            guard(answer["host"], self.allowed_networks)
        return answers

    async def close(self) -> None:
        """Close what is asked."""
        await self._resolver.close()


class SystemResolver(AbstractResolver):
    """The system's name lookup in threads of its own: dead name servers must not starve other threads."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(DNS_THREADS, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Ask getaddrinfo. Raises socket.gaierror."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, socket.getaddrinfo, host, port, family, socket.SOCK_STREAM
        )
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=answered,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for answered, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Forget lookups that have not begun; those that have end by themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)
