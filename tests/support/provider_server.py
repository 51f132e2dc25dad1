"""A server on loopback that keeps what it was asked; each provider's API is written on top of it."""

import asyncio
import json
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    form: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Said:
    """One response: a JSON document, or text as it is."""

    document: Any
    status: int = 200
    headers: Mapping[str, str] | None = None


class ProviderServer:
    """Answers with ``answer`` of its subclass, unless something stands in ``first``, which is said once each.

    A path in ``instead`` is always answered with what stands there. ``asked`` has every request.
    """

    def __init__(self) -> None:
        self.first: list[Said] = []
        self.instead: dict[str, Said] = {}
        self.asked: list[Asked] = []
        self._ready: Future[int] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def answer(self, asked: Asked) -> Said:
        """What the provider's API says."""
        raise NotImplementedError

    def queries(self, path: str) -> list[Mapping[str, str]]:
        """The parameters of every request for a path."""
        return [asked.query for asked in self.asked if asked.path == path]

    def __enter__(self) -> Self:
        self._thread.start()
        self.root = f"http://127.0.0.1:{self._ready.result(timeout=10)}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._leave = asyncio.get_running_loop(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._ready.set_result(runner.addresses[0][1])
        await self._leave.wait()
        await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert len(request.query) == len(set(request.query)), "a parameter was sent twice"
        headers = {name.lower(): value for name, value in request.headers.items()}
        form = {name: str(value) for name, value in (await request.post()).items()}
        asked = Asked(request.path, dict(request.query), headers, form)
        self.asked.append(asked)
        said = self.first.pop(0) if self.first else self.instead.get(request.path) or self.answer(asked)
        text = said.document if isinstance(said.document, str) else json.dumps(said.document)
        kind = "text/html" if isinstance(said.document, str) else "application/json"
        return web.Response(text=text, status=said.status, headers=said.headers, content_type=kind)
