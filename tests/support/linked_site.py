"""A site of pages that link to each other, made of what a test writes down, with a log of what was asked for."""

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web

from tests.support.site import picture


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    body: bytes | str = ""
    kind: str = "text/html; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class LinkedSite:
    """Serves ``answers`` by path and query, what ``make`` gives for any other path, and pictures under /img/."""

    def __init__(
        self,
        answers: Mapping[str, Answer | str] | None = None,
        make: Callable[[str], Answer | str | None] = lambda _: None,
    ) -> None:
        self.answers = dict(answers or {})
        self.make = make
        self.held: set[str] = set()
        """Paths whose answers wait for ``release``."""
        self.log: list[tuple[float, str]] = []
        """Every request: when, by ``time.monotonic``, and for what path and query."""

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="pages", daemon=True)
        self._ready: Future[int] = Future()
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._ready.result(timeout=10)}"
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(10)

    def release(self) -> None:
        """Let what is held go, now and from now on."""
        self._loop.call_soon_threadsafe(self._released.set)

    def asked(self, prefix: str = "/") -> list[str]:
        """What was asked for under a path, in order."""
        return [path for _, path in self.log if path.startswith(prefix)]

    async def _serve(self) -> None:
        self._loop, self._leave, self._released = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._ready.set_result(runner.addresses[0][1])
        await self._leave.wait()
        await runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        path = request.raw_path
        self.log.append((time.monotonic(), path))
        if path in self.held:
            await self._released.wait()
        answer = self.answers.get(path) or self.make(path)
        if answer is None and path.startswith("/img/"):
            # Equal names are equal pictures, and no others are.
            number = int.from_bytes(path.encode(), "big") % 65_521
            answer = Answer(picture(number), "image/png")
        if answer is None:
            return web.Response(status=404)
        answer = Answer(answer) if isinstance(answer, str) else answer
        text = answer.body.replace("SITE", self.url) if isinstance(answer.body, str) else None
        body = answer.body if text is None else text.encode()
        headers = {name: value.replace("SITE", self.url) for name, value in answer.headers.items()}
        if answer.kind:
            headers["Content-Type"] = answer.kind
        return web.Response(status=answer.status, body=body, headers=headers)
