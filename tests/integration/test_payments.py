"""Payments over HTTP against a real server: one question, one answer, or the certainty that nobody knows."""

import socket
import uuid
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from types import SimpleNamespace

import pytest

from models.settings import Settings, SettingsError, read_settings
from tests.support.payment_service import SECRET, PaymentService
from worker import payments
from worker.payments import Declined, Paid, PaymentError, PaymentRequest, open_payments
from worker.payments_http import HTTPPayments, read_answer


@pytest.fixture
def service() -> Iterator[PaymentService]:
    """A service that pays."""
    with PaymentService() as service:
        yield service


def settings_for(service: PaymentService, **given: object) -> Settings:
    """Settings that name it, and allow the crawl no address of its own."""
    return read_settings(payment_url=service.url, payment_secret=SECRET, **given)


def request(key: str | None = None) -> PaymentRequest:
    """A request for 500 credits."""
    return PaymentRequest(key or str(uuid.uuid4()), "account", "user", "ada@example.invalid", 500)


def test_a_payment_is_one_request(service):
    """The request carries key, secret, who and how much; the address may be internal, for this URL alone."""
    settings = settings_for(service)
    provider = open_payments(settings)
    assert provider is not None
    asked = request()
    assert provider.charge(asked) == Paid(f"pay-{asked.key[:8]}")
    [seen] = service.asked
    assert seen["authorization"] == f"Bearer {SECRET}"
    assert (seen["key"], seen["credits"], seen["email"]) == (asked.key, 500, "ada@example.invalid")
    assert settings.allowed_networks == ()


def test_asking_again_pays_once(service):
    """An answer that was lost is asked for again with the same key: one charge, and the answer is there."""
    service.answers = ["lost", "paid"]
    provider, asked = HTTPPayments(settings_for(service)), request()
    with pytest.raises(PaymentError, match="no answer"):
        provider.charge(asked)
    assert provider.charge(asked) == Paid(f"pay-{asked.key[:8]}")
    assert (len(service.asked), service.charged.total()) == (2, 1)


@pytest.mark.parametrize("kind", ["error", "redirect", "pending", "nonsense"])
def test_whatever_is_no_clear_answer_is_not_known(service, kind):
    """Only 'paid' and 'declined' are answers; a redirect is not followed."""
    service.answers = [kind]
    with pytest.raises(PaymentError, match="the service answered"):
        HTTPPayments(settings_for(service)).charge(request())
    assert len(service.asked) == 1


def test_a_decline_is_an_answer(service):
    """402 means that it was not paid, with the reason."""
    service.answers = ["declined"]
    assert HTTPPayments(settings_for(service)).charge(request()) == Declined("the card has expired")


def test_waiting_has_an_end(service):
    """A service that does not answer is left after PIXTRAWL_PAYMENT_SECONDS_MAX."""
    service.answers = ["stuck"]
    with pytest.raises(PaymentError, match="no answer"):
        HTTPPayments(settings_for(service, payment_seconds_max=0.3)).charge(request())


def test_nobody_listening_is_not_known():
    """A refused connection says nothing about an earlier request with the key."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    with pytest.raises(PaymentError):
        HTTPPayments(read_settings(payment_url=url)).charge(request())


@pytest.mark.parametrize("url", ["https://me:pass@pay.example.org/", "https://", "ftp://pay.example.org"])
def test_a_url_that_cannot_be_asked_is_a_wrong_setting(url):
    """It is said when the scheduler starts, and not with each refill."""
    with pytest.raises(SettingsError, match="PIXTRAWL_PAYMENT_URL"):
        open_payments(read_settings(payment_url=url))


def test_words_of_the_service_are_printable():
    """What people read has no control characters and no end."""
    answer = read_answer(200, b'{"status": "paid", "payment": "a\\u0000\\u001bb' + b"x" * 999 + b'"}')
    assert answer == Paid("ab" + "x" * 198)


def test_a_package_may_offer_a_provider(monkeypatch):
    """The setting names an entry point; one that nobody offers is a wrong setting."""

    def found(group: str) -> EntryPoints:
        assert group == "pixtrawl.payments"
        return EntryPoints([EntryPoint("acme", "types:SimpleNamespace", group)])

    monkeypatch.setattr(payments, "entry_points", found)
    monkeypatch.setattr("types.SimpleNamespace", lambda settings: SimpleNamespace(given=settings))
    settings = read_settings(payment_provider="acme")
    assert open_payments(settings).given is settings
    with pytest.raises(SettingsError, match="offers other; there is acme, http"):
        open_payments(read_settings(payment_provider="other"))
    with pytest.raises(SettingsError, match="PIXTRAWL_PAYMENT_URL"):
        open_payments(read_settings(payment_provider="http"))
    assert open_payments(read_settings()) is None
