"""Payments over HTTP: one request to the operator's service, and what its answer says (docs/credits.md)."""

import asyncio
import ipaddress
import json
from dataclasses import asdict
from typing import Any

import httpx

from models.settings import Settings, SettingsError
from worker.address import parse_url
from worker.errors import AddressError
from worker.payments import Answer, Declined, Paid, PaymentError, PaymentRequest
from worker.transport import GuardedTransport, make_client

ANSWER_BYTES_MAX = 64 * 1024
WORDS_MAX = 200
ANYWHERE = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))


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
