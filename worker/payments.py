"""Paying for credits: the small interface to a payment service; worker/payments_http.py implements it over HTTP.

It asks once and says what came back; whether to ask again is the scheduler's. It never decides that a payment
failed because no answer came: only the service knows, and the key makes asking again harmless.
"""

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Protocol

from models.settings import Settings, SettingsError

GROUP = "pixtrawl.payments"


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
        # A scheduler without payments starts a seventh faster without what speaks HTTP.
        from worker.payments_http import HTTPPayments

        return HTTPPayments(settings)
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in offered:
        known = ", ".join(sorted({"http", *offered}))
        raise SettingsError(
            f"PIXTRAWL_PAYMENT_PROVIDER: no installed package offers {name}; there is {known}"
        )
    payments: Payments = offered[name].load()(settings)
    return payments
