"""How a provider reaches the web: one request at its turn, tried again when that may help, its answer bounded.

It knows no provider: what an answer means beyond its status is for the provider's own ``heed``.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from models.outcomes import TRANSIENT_STATUSES
from models.settings import Settings
from worker.address import parse_url
from worker.errors import AddressError
from worker.fetch import read_retry_after
from worker.pace import Pacer, PaceWait, Turn
from worker.sources.provider import Answer, ProviderError, ProviderWait
from worker.transport import FloodedError, HeadersTooLargeError, RefusedError

ANSWER_SECONDS_MAX = 10.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024
REDIRECTS_MAX = 3
PATIENCE_SECONDS = 2.0
"""A wait that is no longer is waited for in the step; a longer one postpones it."""
TRYING_SECONDS_MAX = 6.0
"""Nothing is tried again after so long: the step makes room for others."""
WAIT_SECONDS_MAX = 86_400.0
FINAL = (
    RefusedError,
    FloodedError,
    HeadersTooLargeError,
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
)
"""What no other try would change."""
HEEDED = frozenset({429, *TRANSIENT_STATUSES})
REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Asking:
    """``Ask`` for one provider. ``client`` is whose transport goes through the one guarded door to the web."""

    def __init__(self, client: httpx.AsyncClient, pacer: Pacer, name: str, settings: Settings) -> None:
        self._client = client
        self._pacer = pacer
        self._name = name
        self._seconds_max = min(ANSWER_SECONDS_MAX, settings.transfer_seconds_max)

    async def __call__(
        self,
        url: str,
        params: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
        heed: Callable[[Answer], None] | None = None,
    ) -> Any:
        """See ``Ask`` in provider.py."""
        try:
            request = self._client.build_request(
                "GET" if form is None else "POST", url, params=params, headers=headers, data=form
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise ProviderError(f"{self._name} cannot be asked at {_place(url)}: {error}") from error
        ends = time.monotonic() + TRYING_SECONDS_MAX
        while True:
            try:
                return await self._ask_once(request, heed)
            except PaceWait:
                raise
            except ProviderWait as wait:
                if wait.seconds > PATIENCE_SECONDS or time.monotonic() >= ends:
                    raise
                await asyncio.sleep(wait.seconds)

    async def _ask_once(self, request: httpx.Request, heed: Callable[[Answer], None] | None) -> Any:
        """One request at its turn; what it tells of the provider is told to everybody.

        A failure that may pass is a ProviderWait of no seconds: the next turn knows how long.
        """
        async with self._pacer.turn() as turn:
            try:
                answer = await self._send(request)
            except FINAL as error:
                raise ProviderError(f"{self._name} cannot be asked: {error}") from error
            except (httpx.TransportError, TimeoutError) as error:
                why = f"{self._name} gives no answer: {str(error) or type(error).__name__}"
                turn.failed(why)
                raise ProviderWait(0, why) from error
            try:
                if heed is not None:
                    heed(answer)
            except ProviderWait as wait:
                wait.seconds = min(wait.seconds, WAIT_SECONDS_MAX)
                turn.left_alone(wait.seconds, str(wait))
                raise
            return self._judge(answer, turn)

    def _judge(self, answer: Answer, turn: Turn) -> Any:
        """The document of a 2xx answer. Raises ProviderWait or ProviderError."""
        why = f"{self._name} answered {answer.status}"
        if answer.status in HEEDED:
            seconds = min(read_retry_after(httpx.Headers(answer.headers)) or 0.0, WAIT_SECONDS_MAX)
            if seconds:
                turn.left_alone(seconds, why)
            else:
                turn.failed(why)
            raise ProviderWait(seconds, why)
        turn.answered()
        if not 200 <= answer.status < 300:
            raise ProviderError(why)
        if answer.document is None:
            raise ProviderError(f"{why} with something that is no JSON")
        return answer.document

    async def _send(self, request: httpx.Request) -> Answer:
        """Send it, follow a few redirects, read all of the answer. Raises httpx.TransportError or TimeoutError."""
        async with asyncio.timeout(self._seconds_max):
            for _ in range(REDIRECTS_MAX + 1):
                response = await self._client.send(request, stream=True)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
                if response.status_code not in REDIRECTS or "location" not in response.headers:
                    break
                request = self._redirected(request, response)
        return Answer(response.status_code, _lower(response.headers), _document(body))

    def _redirected(self, request: httpx.Request, response: httpx.Response) -> httpx.Request:
        """The request that a redirect asks for. What is secret stays with the host that it was meant for."""
        if request.method != "GET":
            raise ProviderError(f"{self._name} redirects what it was sent, which is not sent elsewhere")
        target = urljoin(str(request.url), response.headers["location"])
        try:
            target = parse_url(target).url
        except AddressError as error:
            raise ProviderError(f"{self._name} redirects to what cannot be asked: {error.detail}") from error
        same = urlsplit(target)[:2] == urlsplit(str(request.url))[:2]
        headers = (
            {} if not same else {name: value for name, value in request.headers.items() if name != "host"}
        )
        return self._client.build_request("GET", target, headers=headers)


async def _read(response: httpx.Response) -> bytes:
    parts, size = [], 0
    async for part in response.aiter_raw():
        size += len(part)
        if size > ANSWER_BYTES_MAX:
            raise FloodedError(f"an answer is larger than {ANSWER_BYTES_MAX:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _lower(headers: httpx.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _document(body: bytes) -> Any:
    """The JSON of an answer; None for anything else, nested too deeply included."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _place(url: str) -> str:
    """A URL without what may be secret."""
    return url.partition("?")[0]
