"""Paying for credits: the small interface to a payment service, and one implementation, over HTTP.

It asks once and says what came back; whether to ask again is the scheduler's. It never decides that a payment
failed because no answer came: only the service knows, and the key makes asking again harmless.
"""

import asyncio
import ipaddress
import json
from dataclasses import asdict, dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

import httpx

from models.settings import Settings, SettingsError
from worker.address import parse_url
from worker.errors import AddressError
from worker.transport import GuardedTransport, make_client

GROUP = "pixtrawl.payments"
ANSWER_BYTES_MAX = 64 * 1024
WORDS_MAX = 200
ANYWHERE = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


@dataclass(frozen=True, slots=True)
class PaymentRequest:
    """What is to be paid for. Two requests with the same ``key`` are the same payment, however late the second."""

    key: str
    account: str
    user: str
    email: str
    credits: int


@dataclass(frozen=True, slots=True)
class Paid:
    """It was paid, now or by an earlier request with the key; ``payment`` is the service's name of it."""

    payment: str


@dataclass(frozen=True, slots=True)
class Declined:
    """It was not paid and will not be, whoever asks again with the key."""

    reason: str


Answer = Paid | Declined


class PaymentError(Exception):
    """Nobody knows whether it was paid: to be asked again with the same key."""


class Payments(Protocol):
    """A payment service. Called from several threads at once; an answer takes seconds, not minutes."""

    def charge(self, request: PaymentRequest) -> Answer:
        """Pay. Whatever is raised means that the answer is not known, and the same request comes again later."""
        ...


def open_payments(settings: Settings) -> Payments | None:
    """The service of the settings: over HTTP, or one that an installed package offers under its name; None without.

    A package offers one as an entry point of the group ``pixtrawl.payments``: a callable that takes the Settings
    and returns a Payments. Raises SettingsError.
    """
    name = settings.payment_provider or ("http" if settings.payment_url else None)
    if name is None:
        return None
    if name == "http":
        return HTTPPayments(settings)
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in offered:
        known = ", ".join(sorted({"http", *offered}))
        raise SettingsError(
            f"PIXTRAWL_PAYMENT_PROVIDER: no installed package offers {name}; there is {known}"
        )
    payments: Payments = offered[name].load()(settings)
    return payments


class HTTPPayments:
    """A service behind one URL: docs/credits.md has the contract.

    The operator chose the URL, so it may lead to any address, but only this transport may go there: no redirect is
    followed, and what the crawl may connect to is not touched.
    """

    def __init__(self, settings: Settings) -> None:
        if settings.payment_url is None:
            raise SettingsError("PIXTRAWL_PAYMENT_URL is not set: payments over HTTP need it")
        try:
            self.url = parse_url(settings.payment_url).url
        except AddressError as error:
            raise SettingsError(f"PIXTRAWL_PAYMENT_URL: {error.detail}") from None
        self.secret = settings.payment_secret
        self.seconds_max = settings.payment_seconds_max
        limits = {"connect_seconds_max": self.seconds_max, "read_seconds_max": self.seconds_max}
        sizes = {"transfers": 1, "image_bytes_max": ANSWER_BYTES_MAX}
        doors = {"allowed_networks": ANYWHERE, "allowed_ports": "1-65535", "proxy_url": None}
        self.settings = settings.model_copy(update={**doors, **limits, **sizes})

    def charge(self, request: PaymentRequest) -> Answer:
        """POST the request, and read the answer. Raises PaymentError."""
        try:
            return asyncio.run(self._charge(request))
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            raise PaymentError(f"no answer: {error or type(error).__name__}") from error

    async def _charge(self, request: PaymentRequest) -> Answer:
        headers = {"Idempotency-Key": request.key}
        if self.secret is not None:
            headers["Authorization"] = f"Bearer {self.secret.get_secret_value()}"
        # One client a call: calls are rare, and a connection that was kept may have died unseen.
        client = make_client(GuardedTransport(self.settings), self.settings)
        async with asyncio.timeout(self.seconds_max), client:
            response = await client.post(self.url, json=asdict(request), headers=headers)
        return read_answer(response.status_code, response.content)


def read_answer(status: int, body: bytes) -> Answer:
    """What a response says. Raises PaymentError unless it says clearly that it was paid, or that it was not."""
    try:
        document: Any = json.loads(body)
    except ValueError:
        document = None
    said: dict[str, Any] = document if isinstance(document, dict) else {}
    if status in (200, 201) and said.get("status") == "paid" and said.get("payment"):
        return Paid(_words(said["payment"]))
    if status == 402 or (status in (200, 201) and said.get("status") == "declined"):
        return Declined(_words(said.get("reason") or "the payment service gave no reason"))
    raise PaymentError(f"the service answered {status} {_words(said.get('status') or '')}".rstrip())


def _words(value: object) -> str:
    """Text of the service that people read, without what could disturb a terminal or a table."""
    return "".join(letter for letter in str(value) if letter.isprintable())[:WORDS_MAX]
