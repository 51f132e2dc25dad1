"""The one guarded door to the web: every address is checked before every connect, every error becomes httpx's.

It follows no redirect, keeps no cookie, reads no proxy from the environment and never skips TLS verification.
"""

import functools
import socket
import ssl
import weakref
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence

import aiohttp
import httpx
import yarl
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict, CIMultiDictProxy

from models.settings import Settings
from worker.address import check_port, parse_url
from worker.body_memory import SHARED_BYTES, BodyMemory
from worker.coding import ContentDecoder, UnknownCodingError, make_decoder
from worker.connection import FIELD_BYTES_MAX, READ_BYTES, BoundedConnector, FloodError
from worker.errors import AddressError
from worker.proxy import Proxy, TargetCheck
from worker.resolver import GuardedResolver, RefusedConnectError, SystemResolver, guard

DNS_CACHE_SECONDS = 60
DNS_CACHE_HOSTS = 10_000
KEEP_ALIVE_SECONDS = 15.0
IDLE_CONNECTIONS_MAX = 128
HEADERS_MAX = 128
MESSAGE_CHARACTERS_MAX = 200

# aiohttp writes these itself, from the URL and the body.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding"})
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY})


class RefusedError(httpx.ConnectError):
    """The URL or the address it leads to is refused; ``refusal`` says why. Nothing was sent."""

    def __init__(self, refusal: AddressError) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


class ResolveError(httpx.ConnectError):
    """The host name has no address. ``temporary`` says that the name server may know one later."""

    temporary = True


class TLSError(httpx.ConnectError):
    """The TLS handshake failed or the certificate is not trusted."""


class FloodedError(httpx.RemoteProtocolError):
    """An answer has more bytes beside its body than any image can need."""


class HeadersTooLargeError(httpx.RemoteProtocolError):
    """The response header is larger than ``header_bytes_max``."""


# What aiohttp raises, and what it becomes. The nearest class in the method resolution order counts.
ERRORS: dict[type[Exception], type[httpx.TransportError]] = {
    aiohttp.ClientConnectorDNSError: ResolveError,
    aiohttp.ClientSSLError: TLSError,
    aiohttp.ServerFingerprintMismatch: TLSError,
    aiohttp.ClientProxyConnectionError: httpx.ProxyError,
    aiohttp.ClientHttpProxyError: httpx.ProxyError,
    aiohttp.ClientConnectorError: httpx.ConnectError,
    aiohttp.ConnectionTimeoutError: httpx.ConnectTimeout,
    aiohttp.ServerTimeoutError: httpx.ReadTimeout,
    aiohttp.ServerConnectionError: httpx.RemoteProtocolError,
    aiohttp.ClientConnectionError: httpx.ReadError,
    FloodError: FloodedError,
    aiohttp.ClientPayloadError: httpx.RemoteProtocolError,
    aiohttp.ClientResponseError: httpx.RemoteProtocolError,
    aiohttp.UploadAbortedError: httpx.WriteError,
    aiohttp.RedirectClientError: httpx.RemoteProtocolError,
    aiohttp.InvalidURL: httpx.LocalProtocolError,
    aiohttp.NonHttpUrlClientError: httpx.UnsupportedProtocol,
    aiohttp.ClientError: httpx.RemoteProtocolError,
    HttpProcessingError: httpx.RemoteProtocolError,
    TimeoutError: httpx.ReadTimeout,
    OSError: httpx.ReadError,
    ValueError: httpx.LocalProtocolError,
}
_CAUGHT = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)


def translate(error: Exception) -> httpx.TransportError:
    """Make httpx's error of what aiohttp raised."""
    os_error = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else None
    if isinstance(os_error, RefusedConnectError):
        return RefusedError(os_error.refusal)
    kind = next(ERRORS[base] for base in type(error).__mro__ if base in ERRORS)
    # A parser's message may quote kilobytes of what a hostile server sent.
    message = _short(error)
    if kind is ResolveError and isinstance(os_error, socket.gaierror):
        return _resolve_error(os_error, message)
    return kind(message)


def _resolve_error(error: socket.gaierror, message: str = "") -> ResolveError:
    translated = ResolveError(message or _short(error))
    translated.temporary = error.errno not in _NO_SUCH_NAME
    return translated


@functools.cache
def trusted() -> ssl.SSLContext:
    """Whom TLS trusts: certifi's authorities, or those of ``SSL_CERT_FILE`` or ``SSL_CERT_DIR``. Reading them takes
    as long as twenty pictures, so a worker does it once, before its pool forks.
    """
    return httpx.create_ssl_context()


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:MESSAGE_CHARACTERS_MAX] or type(error).__name__


class Received:
    """A response whose body has not been read yet. It must be released, however far it was read."""

    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers: CIMultiDictProxy[str] = response.headers

    @property
    def raw_headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The header fields as they came."""
        return self._response.raw_headers

    async def read_some(self) -> bytes:
        """Wait for the next bytes of the body; none means the end. Raises httpx.TransportError."""
        try:
            return await self._response.content.read(READ_BYTES)
        except _CAUGHT as error:
            raise translate(error) from error

    def release(self) -> None:
        """Give the connection back, or close it when the body was not read to its end."""
        self._response.release()


class GuardedTransport(httpx.AsyncBaseTransport):
    """The door. Make it inside the running event loop of the process that uses it, and ``aclose`` it there.

    ``memory`` is what large bodies share. ``resolver`` and ``ssl_context`` replace the system's name lookup and
    trust store; whatever the resolver answers is checked all the same.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        resolver: AbstractResolver | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.memory = BodyMemory(SHARED_BYTES, settings.image_bytes_max)
        self._settings = settings
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._sockets_max = settings.transfers + IDLE_CONNECTIONS_MAX
        self._timeout = aiohttp.ClientTimeout(
            sock_connect=settings.connect_seconds_max, sock_read=settings.read_seconds_max
        )
        resolver = resolver or SystemResolver()
        self._resolver = GuardedResolver(resolver, settings.allowed_networks)
        self._ports = settings.ports
        self._proxy = Proxy(settings.proxy_url, resolver) if settings.proxy_url else None
        self._targets = TargetCheck(self._resolver)
        self._connector = BoundedConnector(
            ssl=ssl_context or trusted(),
            resolver=self._proxy or self._resolver,
            socket_factory=self._open_socket,
            limit=0,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            ttl_dns_cache=DNS_CACHE_SECONDS,
            dns_cache_max_size=DNS_CACHE_HOSTS,
        )
        self._session = aiohttp.ClientSession(
            connector=self._connector,
            headers={"User-Agent": settings.user_agent, "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            proxy=self._proxy.url if self._proxy else None,
            auto_decompress=False,
            read_bufsize=READ_BYTES // 2,
            timeout=self._timeout,
            max_line_size=settings.header_bytes_max,
            max_field_size=min(settings.header_bytes_max // 2, FIELD_BYTES_MAX),
            max_headers=HEADERS_MAX,
        )

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: aiohttp.ClientTimeout | None = None,  # noqa: ASYNC109 - per-operation bounds, not a deadline.
    ) -> Received:
        """Send one request for a URL that ``parse_url`` gave, byte for byte, and wait for the header.

        The caller sets the deadline (``asyncio.timeout``) and releases what is returned. Raises
        httpx.TransportError; RefusedError when an address is not public.
        """
        if len(self._sockets) > self._sockets_max:
            headers = {**(headers or {}), "Connection": "close"}
        target = yarl.URL(url, encoded=True)
        await self._admit(target)
        if self._proxy is not None and target.scheme == "http":
            headers = {**(headers or {}), **self._proxy.headers}  # For https they are part of CONNECT.
        try:
            response = await self._session.request(
                method,
                target,
                headers=headers,
                data=body,
                timeout=timeout or self._timeout,
                proxy_headers=self._proxy.headers if self._proxy else None,
                allow_redirects=False,
            )
        except _CAUGHT as error:
            raise translate(error) from error
        header_bytes = sum([len(name) + len(value) + 4 for name, value in response.raw_headers])
        if header_bytes > self._settings.header_bytes_max:
            response.close()
            raise HeadersTooLargeError(f"the response header has {header_bytes} bytes")
        return Received(response)

    async def addresses(self, host: str, port: int) -> list[str]:
        """Where a request to a host goes, or would go from a proxy. A lookup, and what it costs, is shared with the
        requests. Raises OSError or aiohttp.ClientError.
        """
        if self._proxy is not None:
            return await self._targets.check(host, port)
        return await self._connector.addresses(host, port)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Serve ``httpx.AsyncClient``. The body is decoded and bounded here; httpx sees plain bytes."""
        try:
            url = parse_url(str(request.url)).url
        except AddressError as refusal:
            raise RefusedError(refusal) from refusal
        headers = CIMultiDict(
            (name, value) for name, value in request.headers.multi_items() if name not in _OWN_HEADERS
        )
        body = await request.aread()
        received = await self.send(
            request.method, url, headers=headers, body=body or None, timeout=self._timeouts(request)
        )
        try:
            decoder = make_decoder(received.headers.get("Content-Encoding", ""))
        except UnknownCodingError as error:
            received.release()
            raise httpx.RemoteProtocolError(str(error)) from error
        dropped = {b"content-encoding", b"content-length"} if decoder else set()
        return httpx.Response(
            received.status,
            headers=[pair for pair in received.raw_headers if pair[0].lower() not in dropped],
            stream=_ResponseStream(received, decoder, self._settings.image_bytes_max),
        )

    async def aclose(self) -> None:
        """Close every connection and stop the lookups."""
        await self._session.close()
        await self._resolver.close()

    async def _admit(self, target: yarl.URL) -> None:
        """Check the port, and with a proxy the target's addresses. Raises RefusedError or ResolveError."""
        try:
            check_port(target.port or 0, self._ports)
            if self._proxy is not None:
                await self._targets.check(target.host or "", target.port or 0)
        except AddressError as refusal:
            raise RefusedError(refusal) from refusal
        except RefusedConnectError as error:
            raise RefusedError(error.refusal) from error
        except socket.gaierror as error:
            raise _resolve_error(error) from error

    def _open_socket(self, addr_info: tuple[int, int, int, str, tuple[str | int, ...]]) -> socket.socket:
        """Check the address that is about to be connected to, whoever gave it, and open its socket."""
        family, kind, protocol, _, address = addr_info
        if self._proxy is not None:
            self._proxy.guard(str(address[0]), int(address[1]))
        else:
            guard(str(address[0]), self._settings.allowed_networks)
        opened = socket.socket(family, kind, protocol)
        self._sockets.add(opened)
        return opened

    def _timeouts(self, request: httpx.Request) -> aiohttp.ClientTimeout:
        """Turn httpx's timeouts into aiohttp's, and add the total deadline that httpx lacks."""
        asked = request.extensions.get("timeout", {})
        return aiohttp.ClientTimeout(
            total=self._settings.transfer_seconds_max,
            sock_connect=asked.get("connect") or self._settings.connect_seconds_max,
            sock_read=asked.get("read") or self._settings.read_seconds_max,
        )


def make_client(transport: GuardedTransport, settings: Settings) -> httpx.AsyncClient:
    """Make the httpx client for robots.txt, providers, pages and webhooks. It follows no redirect by itself.

    Closing it closes the transport: keep one per process.
    """
    return httpx.AsyncClient(
        transport=transport,
        headers={"User-Agent": settings.user_agent, "Accept-Encoding": "identity"},
        timeout=httpx.Timeout(
            settings.read_seconds_max, connect=settings.connect_seconds_max, pool=settings.connect_seconds_max
        ),
        follow_redirects=False,
        trust_env=False,
    )


class _ResponseStream(httpx.AsyncByteStream):
    """The decoded body for httpx, bounded, released when it is closed or abandoned."""

    def __init__(self, received: Received, decoder: ContentDecoder | None, bytes_max: int) -> None:
        self._received = received
        self._decoder = decoder
        self._bytes_max = bytes_max

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        try:
            while chunk := await self._received.read_some():
                for piece in self._decoder.feed(chunk) if self._decoder else (chunk,):
                    size += len(piece)
                    if size > self._bytes_max:
                        raise httpx.RemoteProtocolError(f"the body is larger than {self._bytes_max} bytes")
                    yield piece
            if self._decoder:
                self._decoder.finish()
        except zlib.error as error:
            raise httpx.RemoteProtocolError(f"the content coding is broken: {error}") from error

    async def aclose(self) -> None:
        self._received.release()
