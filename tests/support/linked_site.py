"""A site of pages that link to each other, made of what a test writes down, with a log of what was asked for."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiohttp import web

from tests.support.loopback import LoopbackSite
from tests.support.site import picture


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    body: bytes | str = ""
    kind: str = "text/html; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


class LinkedSite(LoopbackSite):
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

    def asked(self, prefix: str = "/") -> list[str]:
        """What was asked for under a path, in order."""
        return [path for _, path in self.log if path.startswith(prefix)]

    async def answer(self, request: web.BaseRequest) -> web.Response:
        """A page, a picture, or 404."""
        path = request.raw_path
        self.log.append((time.monotonic(), path))
        if path in self.held:
            await self.released.wait()
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
