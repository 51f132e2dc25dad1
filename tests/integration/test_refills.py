"""Auto-refill with a real payment service: one charge for each refill, whatever happens to its answer."""

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from models.audit import differences
from models.closing import close_account
from models.credits import CREDITS_MAX, CreditError, grant
from models.database import transaction
from models.job_lifecycle import block_job, unblock_jobs
from models.jobs import BlockedReason
from models.lifecycle import settle_chunk
from models.refills import (
    complete_refill,
    configure_refill,
    decline_refill,
    give_up_refill,
    open_refills,
    pending_refills,
)
from models.settings import Settings, read_settings
from scheduler import refills
from scheduler.cli import main
from scheduler.commands.doctor import check_refills
from scheduler.leader import leadership
from scheduler.refills import Refiller
from tests.support.crawling import (
    NewJob,
    accepted,
    balance_of,
    change,
    check_books,
    new_job,
    query,
    read_job,
    start_next,
    wait_for_blocked,
)
from tests.support.payment_service import SECRET, PaymentService
from tests.support.processes import Command, environment, until
from worker.payments import Paid, open_payments
from worker.payments_http import HTTPPayments

ROWS = "SELECT status, amount, balance_after, settled_at IS NOT NULL FROM credit_transactions WHERE refill"


@pytest.fixture
def job(engine: Engine) -> NewJob:
    """A job of a user with 50 credits who wants 200 more whenever there are less than 100."""
    job = new_job(engine, [10] * 5, balance=50)
    with transaction(engine) as session:
        assert configure_refill(session, job.user_id, enabled=True, threshold=100, amount=200)
    return job


@pytest.fixture
def service() -> Iterator[PaymentService]:
    """A service that pays."""
    with PaymentService() as service:
        yield service


@pytest.fixture
def refiller(
    database_url: str, tmp_path: Path, service: PaymentService, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Refiller]:
    """A leader's refiller that looks at every call, and asks again at once."""
    for name in ("LOOK_SECONDS", "AGAIN_SECONDS"):
        monkeypatch.setattr(refills, name, 0)
    settings = read_settings(
        database_url=database_url.replace("+psycopg2", ""), payment_url=service.url, payment_secret=SECRET
    )
    with leadership(settings, threading.Event()) as leader:
        assert leader is not None
        yield Refiller(leader, open_payments(settings))


def open_one(engine: Engine, per_day_max: int = 3) -> Any:
    """Open refills; the only one that was wanted, or None."""
    with transaction(engine) as session:
        opened = open_refills(session, per_day_max)
    assert len(opened) <= 1
    return opened[0] if opened else None


def complete(engine: Engine, refill_id: Any, payment: str = "pay-1") -> bool:
    """Commit an answer."""
    with transaction(engine) as session:
        return complete_refill(session, refill_id, payment)


def decline(engine: Engine, refill_id: Any) -> bool:
    """Commit an answer."""
    with transaction(engine) as session:
        return decline_refill(session, refill_id, "the card has expired")


def told(engine: Engine) -> list[str]:
    """Titles of what the user was told."""
    return [title for (title,) in query(engine, "SELECT title FROM notifications ORDER BY id")]


# ------------------------------------------------------------------------------------------------- the arrows


def test_a_refill_counts_when_it_is_paid(engine, job):
    """Pending it is no credit; completed it is, once, and the owner is told."""
    refill_id = open_one(engine)
    assert (balance_of(engine, job), query(engine, ROWS)) == (50, [("pending", 200, 50, False)])
    check_books(engine)
    change(engine, "UPDATE credit_accounts SET refill_declines = 3, refill_after = now()")
    with ThreadPoolExecutor(5) as threads:
        assert list(threads.map(lambda _: complete(engine, refill_id), range(5))).count(True) == 1
    assert (balance_of(engine, job), query(engine, ROWS)) == (250, [("completed", 200, 250, True)])
    assert not decline(engine, refill_id)
    assert query(engine, "SELECT refill_declines, refill_after FROM credit_accounts") == [(0, None)]
    assert told(engine) == ["Credits refilled"]
    assert query(engine, "SELECT metadata->>'payment' FROM credit_transactions WHERE refill") == [("pay-1",)]
    check_books(engine)


@pytest.mark.parametrize(
    "state",
    [
        "auto_refill_enabled = false",
        "current_balance = 100, refill_threshold = 100",
        "closing_at = now()",
        "refill_after = now() + interval '1 min'",
        f"refill_amount = {CREDITS_MAX - 49}",
    ],
)
def test_when_there_is_no_refill(engine, job, state):
    """Off; enough on the account; being deleted; declined a moment ago; more than an account can hold."""
    change(engine, f"UPDATE credit_accounts SET {state}")
    assert open_one(engine) is None


def test_held_credits_count_as_spent(engine, job):
    """Chunks under way hold what is on the account: it is refilled now, and not when they come back."""
    change(engine, "UPDATE credit_accounts SET refill_threshold = 45")
    assert open_one(engine) is None
    start_next(engine)
    assert open_one(engine) is not None


def test_a_job_that_waits_for_credits_wants_a_refill(engine, job):
    """A job whose images cost more than the threshold would wait for ever. One that the balance covers again and
    that is not unblocked yet does not wait, nor one that is paused, cancelled or ended, or waits for the month.
    """
    change(engine, "UPDATE credit_accounts SET refill_threshold = 1")
    with transaction(engine) as session:
        block_job(session, job.id, BlockedReason.OUT_OF_CREDITS)
    assert open_one(engine) is None
    change(engine, "UPDATE crawl_jobs SET unit_price = 51")
    for state in (
        "paused_at = now()",
        "cancelled_at = now()",
        "status = 'failed', completed_at = now()",
        "blocked_reason = 'monthly_limit'",
    ):
        change(engine, f"UPDATE crawl_jobs SET {state}")
        assert open_one(engine) is None
        change(
            engine,
            """UPDATE crawl_jobs SET paused_at = NULL, cancelled_at = NULL, status = 'running', completed_at = NULL,
                blocked_reason = 'out_of_credits'""",
        )
    assert open_one(engine) is not None


def test_one_at_a_time_for_each_account(engine, job):
    """However many schedulers open refills at once, an account has one that is pending."""
    new_job(engine)
    with ThreadPoolExecutor(8) as threads:
        opened = [each for each in threads.map(lambda _: open_one(engine), range(16)) if each is not None]
    assert len(opened) == 1
    assert open_one(engine) is None
    complete(engine, opened[0])
    change(engine, "UPDATE credit_accounts SET refill_threshold = 1000")
    assert open_one(engine) is not None


def test_a_refill_that_another_service_opens_meanwhile(engine, job):
    """It is the one; nothing fails."""
    opened = """INSERT INTO credit_transactions (account_id, user_id, type, amount, balance_after, status, refill)
        SELECT id, user_id, 'purchase', 200, 50, 'pending', true FROM credit_accounts"""
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            session.execute(text(opened))
            second = thread.submit(open_one, engine)
            wait_for_blocked(engine)
        assert second.result(10) is None


def test_an_account_whose_refill_is_pending_stands_in_nobodys_way(engine, job):
    """However few are opened at a time, the next look opens that of the next account."""
    other = new_job(engine, balance=1)
    with transaction(engine) as session:
        assert configure_refill(session, other.user_id, enabled=True)
    for _ in range(2):
        with transaction(engine) as session:
            assert len(open_refills(session, 3, limit=1)) == 1
    with transaction(engine) as session:
        assert {each.user_id for each in pending_refills(session)} == {job.user_id, other.user_id}


def test_a_day_has_so_many_refills(engine, job):
    """Paid ones count until the UTC day ends; the next day begins at nothing."""
    change(engine, "UPDATE credit_accounts SET refill_threshold = 10000")
    for _ in range(2):
        complete(engine, open_one(engine, per_day_max=2))
    assert open_one(engine, per_day_max=2) is None
    with transaction(engine) as session:
        session.connection().exec_driver_sql("SET LOCAL session_replication_role = replica")
        session.connection().exec_driver_sql(
            "UPDATE credit_transactions SET created_at = date_trunc('day', now() AT TIME ZONE 'utc') "
            "AT TIME ZONE 'utc' - interval '1 us'"
        )
    assert open_one(engine, per_day_max=2) is not None


def test_declines_pause_longer_each_time_and_are_told_once(engine, job):
    """15 minutes, 30, an hour, up to a day; the owner hears of the first, and ends the pause by a change."""
    pauses = []
    for _ in range(9):
        assert decline(engine, open_one(engine))
        [(pause,)] = query(
            engine, "SELECT round(extract(epoch FROM refill_after - now())) FROM credit_accounts"
        )
        pauses.append(round(float(pause) / 60))
        assert open_one(engine) is None
        change(engine, "UPDATE credit_accounts SET refill_after = now()")
    assert pauses == [15, 30, 60, 120, 240, 480, 960, 1440, 1440]
    assert told(engine) == ["Auto-refill declined"]
    assert balance_of(engine, job) == 50
    decline(engine, open_one(engine))
    with transaction(engine) as session:
        assert configure_refill(session, job.user_id, enabled=True)
    complete(engine, open_one(engine))
    assert query(engine, "SELECT refill_declines, refill_after FROM credit_accounts") == [(0, None)]
    check_books(engine)


def test_a_pending_refill_keeps_its_room(engine, job):
    """A grant that would leave no room for what is being paid is refused."""
    refill_id = open_one(engine)
    with transaction(engine) as session, pytest.raises(CreditError):
        grant(session, job.user_id, CREDITS_MAX - 249, description="Too many")
    with transaction(engine) as session:
        grant(session, job.user_id, CREDITS_MAX - 250, description="Just enough")
    assert complete(engine, refill_id)
    assert balance_of(engine, job) == CREDITS_MAX


def test_an_operator_may_answer(engine, job):
    """A refill that was never paid is given up: cancelled, without a pause."""
    refill_id = open_one(engine)
    with transaction(engine) as session:
        assert give_up_refill(session, refill_id)
        assert not give_up_refill(session, refill_id)
    assert query(engine, ROWS) == [("cancelled", 200, 50, True)]
    assert open_one(engine) is not None


def give_up(engine: Engine, refill_id: Any) -> bool:
    """Commit an answer."""
    with transaction(engine) as session:
        return give_up_refill(session, refill_id)


ANSWERS = [complete, decline, give_up]


@pytest.mark.parametrize("ended", ANSWERS)
def test_only_a_pending_refill_is_answered(engine, job, ended):
    """An answer to a refill that has ended, or to a hold, changes nothing."""
    start_next(engine)
    [(hold_id,)] = query(engine, "SELECT id FROM credit_transactions WHERE status = 'pending'")
    refill_id = open_one(engine)
    assert ended(engine, refill_id)
    before = (
        query(engine, "SELECT * FROM credit_transactions"),
        query(engine, "SELECT * FROM credit_accounts"),
    )
    for answer in ANSWERS:
        assert not answer(engine, refill_id)
        assert not answer(engine, hold_id)
    after = query(engine, "SELECT * FROM credit_transactions"), query(engine, "SELECT * FROM credit_accounts")
    assert after == before


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_beside_another_line_of_the_ledger(engine, job, answer):
    """It waits for that one, and its balance is the one after it."""
    refill_id = open_one(engine)
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            grant(session, job.user_id, 7, description="Meanwhile")
            answered = thread.submit(answer, engine, refill_id)
            wait_for_blocked(engine)
        assert answered.result(10)
    [(_, _, balance, _)] = query(engine, ROWS)
    assert balance == balance_of(engine, job)
    check_books(engine)


def test_an_account_that_closes_meanwhile_buys_nothing(engine, job):
    """It is passed over without waiting: what it bought would vanish with it."""
    change(engine, "UPDATE crawl_jobs SET cancelled_at = now()")
    with transaction(engine) as session:
        assert close_account(session, job.user_id)
        assert open_one(engine) is None


# ------------------------------------------------------------------------------------------------ the scheduler


def refill_until(refiller: Refiller, condition: Any, what: str) -> None:
    """Let the leader look again and again."""

    def looked() -> Any:
        refiller.refill()
        return condition()

    until(looked, what)


def statuses(engine: Engine) -> list[str]:
    """Statuses of the refills, the oldest first."""
    return [row[0] for row in query(engine, f"{ROWS} ORDER BY created_at")]


def test_an_account_that_runs_low_is_refilled(engine, job, refiller, service):
    """One request, one charge, the credits are there, and a job that waited goes on."""
    with transaction(engine) as session:
        block_job(session, job.id, BlockedReason.OUT_OF_CREDITS)
    change(engine, "UPDATE crawl_jobs SET unit_price = 60")
    refill_until(refiller, lambda: statuses(engine) == ["completed"], "the refill")
    assert (balance_of(engine, job), service.credits) == (250, [200])
    with transaction(engine) as session:
        assert unblock_jobs(session) == [job.id]
    assert read_job(engine, job.id)["blocked_reason"] is None
    check_books(engine)


@pytest.mark.parametrize("lost", ["lost", "error", "pending", "nonsense", "redirect"])
def test_an_unknown_answer_is_asked_again_with_the_same_key(engine, job, refiller, service, lost):
    """Three times nobody knows; the fourth time it is paid: one key, one charge, and nothing was decided before."""
    service.answers = [lost] * 3 + ["paid"]
    refill_until(refiller, lambda: statuses(engine) == ["completed"], "the refill")
    assert (len({asked["key"] for asked in service.asked}), len(service.asked)) == (1, 4)
    assert (service.charged.total(), balance_of(engine, job)) == (1, 250)
    check_books(engine)


def test_questions_become_rarer(engine, job, refiller, service, monkeypatch):
    """5 s at first, twice as long each time, 10 minutes at most."""
    monkeypatch.setattr(refills, "AGAIN_SECONDS", 5.0)
    [refill] = (open_one(engine), pending(engine))[1]
    waits = []
    for _ in range(9):
        refiller.wait(refill, ValueError("no answer"))
        waits.append(refiller.waits[refill.id].seconds)
    assert waits == [5, 10, 20, 40, 80, 160, 320, 600, 600]
    for _ in range(3):
        refiller.refill()
    assert service.asked == []


def pending(engine: Engine) -> Any:
    """The refills that are pending."""
    with transaction(engine) as session:
        return pending_refills(session)


def test_a_decline_fails_the_refill(engine, job, refiller, service):
    """Nothing is added, and nothing is asked for until the pause is over."""
    service.answers = ["declined"]
    refill_until(refiller, lambda: statuses(engine) == ["failed"], "the decline")
    for _ in range(5):
        refiller.refill()
    assert (statuses(engine), balance_of(engine, job), len(service.asked)) == (["failed"], 50, 1)


def test_a_slow_payment_holds_nobody_up(engine, job, refiller, service):
    """While a payment takes its time, the leader's calls return at once, and at most a few are under way."""
    for _ in range(6):
        other = new_job(engine, balance=1)
        with transaction(engine) as session:
            configure_refill(session, other.user_id, enabled=True)
    service.answers = ["stuck"]
    started = time.monotonic()
    refill_until(refiller, lambda: len(service.asked) == refills.CALLS_MAX, "four questions")
    for _ in range(20):
        refiller.refill()
    assert time.monotonic() - started < 10
    assert len(service.asked) == refills.CALLS_MAX
    service.answers = ["paid"]
    service.released.set()
    refill_until(refiller, lambda: statuses(engine) == ["completed"] * 7, "all refills")
    assert service.charged.total() == 7
    check_books(engine)


def test_without_a_provider_nothing_happens(engine, job, refiller):
    """Auto-refill that nobody can pay opens nothing."""
    Refiller(refiller.leader, None).refill()
    assert statuses(engine) == []


def test_a_provider_that_breaks_is_not_known(engine, job, refiller, service):
    """Whatever a provider raises, the refill stays pending and is asked for again."""

    class Broken(HTTPPayments):
        def charge(self, request: Any) -> Any:
            super().charge(request)
            raise RuntimeError("after the charge")

    broken = Refiller(refiller.leader, Broken(refiller.leader.settings))
    refill_until(broken, lambda: len(service.asked) >= 2, "two questions")
    assert statuses(engine) == ["pending"]
    refill_until(refiller, lambda: statuses(engine) == ["completed"], "the refill")
    assert service.charged.total() == 1


def test_an_account_that_goes_meanwhile_is_logged(engine, job, refiller, service, capsys):
    """A payment whose account was deleted under it leaves an error in the log, with the payment's name."""
    open_one(engine)
    [refill] = pending(engine)
    change(engine, "DELETE FROM profiles")
    refiller.write(refill, Paid("pay-9"))
    logged = capsys.readouterr().out
    assert "error" in logged
    assert "pay-9" in logged
    assert "credited=False" in logged


# ------------------------------------------------------------------------------------------- with real processes


@pytest.fixture
def shell(
    services: Any, database_url: str, service: PaymentService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    """The environment of an operator who has set up the service."""
    given = {"database_url": database_url.replace("+psycopg2", ""), "redis_url": services.redis_url}
    payment = {"payment_url": service.url, "payment_secret": SECRET}
    store = {"store_url": (tmp_path / "store").as_uri()}
    shell = environment(tmp_path / "home", **given, **payment, **store)
    for name, value in shell.items():
        monkeypatch.setenv(name, value)
    return shell


def test_a_scheduler_killed_before_the_answer_charges_once(engine, job, service, shell, tmp_path):
    """The service has charged when the scheduler is killed; the next one asks with the same key, and credits once.

    While the first waits for the answer it dispatches: a payment stops nobody.
    """
    service.answers = ["stuck"]
    change(engine, "INSERT INTO workers (name, slots, version, seen_at) VALUES ('w', 1, '0', 'infinity')")
    with Command(tmp_path / "first", shell, "scheduler") as first:
        until(lambda: service.charged, "the charge")
        change(engine, "UPDATE workers SET slots = 2")
        until(
            lambda: query(engine, "SELECT count(*) FROM job_chunks WHERE queued_at IS NOT NULL") == [(4,)],
            "chunks queued meanwhile",
        )
        first.process.kill()
        first.wait()
    assert statuses(engine) == ["pending"]
    service.answers = ["paid"]
    with Command(tmp_path / "second", shell, "scheduler"):
        until(lambda: statuses(engine) == ["completed"], "the credits")
    assert (service.charged.total(), len({asked["key"] for asked in service.asked})) == (1, 1)
    assert balance_of(engine, job) == 50 - 40 + 200
    with transaction(engine) as session:
        assert list(differences(session)) == []


def test_a_scheduler_stops_while_a_payment_is_under_way(engine, job, service, shell, tmp_path):
    """It waits for no answer: the refill stays pending."""
    service.answers = ["stuck"]
    with Command(tmp_path / "scheduler", shell, "scheduler") as scheduler:
        until(lambda: service.charged, "the charge")
        scheduler.interrupt(signal.SIGTERM)
        assert scheduler.wait(8) == 0
    assert statuses(engine) == ["pending"]


# -------------------------------------------------------------------------------------------------- the commands


def printed(capsys: Any, *arguments: str) -> Any:
    """What a command prints as JSON."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_commands(engine, job, shell, monkeypatch, capsys):
    """Refill, purchase, refund, limit and answer: what they print and refuse."""
    [(email,)] = query(engine, "SELECT email FROM profiles")
    monkeypatch.setenv("PIXTRAWL_USER", email)
    wish = printed(capsys, "credits", "refill", "--on", "--threshold", "10", "--amount", "30")
    assert wish == {
        "enabled": True,
        "threshold": 10,
        "amount": 30,
        "declines": 0,
        "pending": None,
        "paid_today": 0,
    }
    assert main(["credits", "refill", "--off"]) == 0
    assert capsys.readouterr().out == "auto-refill: off (it would buy 30 credits under a balance of 10)\n"
    bought = [printed(capsys, "credits", "purchase", "70", "--reference", "charge-7") for _ in range(2)]
    assert [(each["balance"], each["repeated"]) for each in bought] == [(120, False), (120, True)]
    assert main(["credits", "purchase", "71", "--reference", "charge-7"]) == 2
    assert "belongs to another purchase, of 70 credits" in capsys.readouterr().err
    assert main(["credits", "purchase", "7", "--reference", " "]) == 2
    assert printed(capsys, "credits", "limit", "77")["monthly_limit"] == 77
    assert main(["credits", "refund", str(job.id), "--reason", "Blurred"]) == 2
    assert f"Nothing was ever charged for a job {job.id}" in capsys.readouterr().err
    assert main(["credits", "refund", "1", "--reason", "x", "--amount", "1", "--images", "1"]) == 2
    assert main(["credits", "refund", "1", "--reason", " "]) == 2
    assert "Say why with --reason" in capsys.readouterr().err
    change(engine, "UPDATE credit_accounts SET auto_refill_enabled = true, refill_threshold = 1000")
    refill_id = str(open_one(engine))
    assert printed(capsys, "credits", "show")["auto_refill"]["pending"] == refill_id
    assert main(["credits", "refill", "--off"]) == 0
    assert f"); one is being paid ({refill_id})\n" in capsys.readouterr().out, "it is paid all the same"
    change(engine, "UPDATE credit_accounts SET auto_refill_enabled = true")
    assert main(["credits", "answer", refill_id]) == 2
    assert main(["credits", "answer", refill_id, "--paid", " "]) == 2
    assert printed(capsys, "credits", "answer", refill_id, "--paid", "pay-7")["status"] == "completed"
    assert printed(capsys, "credits", "history", "--limit", "1")[0]["payment"] == "pay-7"
    assert main(["credits", "answer", refill_id, "--unpaid"]) == 2
    assert "No refill" in capsys.readouterr().err
    assert balance_of(engine, job) == 150
    assert main(["credits", "show"]) == 0
    assert "auto-refill: 30 credits under a balance of 1,000\n" in capsys.readouterr().out
    monkeypatch.setenv("PIXTRAWL_REFILLS_PER_DAY_MAX", "1")
    assert main(["credits", "show"]) == 0
    assert "1,000; 1 bought today, the next comes tomorrow (UTC)\n" in capsys.readouterr().out
    monkeypatch.delenv("PIXTRAWL_PAYMENT_URL")
    assert main(["credits", "refill", "--on"]) == 0
    assert "No payment provider is set" in capsys.readouterr().err


def test_a_refund_on_the_command_line(engine, shell, capsys):
    """By images or whole, with the sums of the job."""
    job = new_job(engine, [10], unit_price=3)
    chunk = start_next(engine)
    with transaction(engine) as session:
        settle_chunk(session, chunk.fence, [accepted(each.position) for each in chunk.candidates])
    done = printed(capsys, "credits", "refund", str(job.id), "--images", "2", "--reason", "Blurred")
    assert (done["amount"], done["charged"], done["refunded"]) == (6, 30, 6)
    assert main(["credits", "refund", str(job.id), "--reason", "Blurred", "--reference", "ticket"]) == 0
    out = capsys.readouterr().out
    assert out == f"Refunded 24 credits of job {job.id}: 30 of 30 charged are refunded now\n"
    assert printed(capsys, "credits", "refund", str(job.id), "--reason", "Blurred", "--reference", "ticket")[
        "repeated"
    ]
    assert main(["credits", "refund", str(job.id), "--reason", "Blurred"]) == 2
    assert "nothing left to refund" in capsys.readouterr().err


def test_a_user_is_not_deleted_while_a_payment_is_unknown(engine, job, shell, capsys):
    """The row is all that tells of the payment: the ledger stays until its answer is there, then all goes."""
    [(email,)] = query(engine, "SELECT email FROM profiles")
    refill_id = open_one(engine)
    assert main(["users", "delete", email, "--yes"]) == 1
    told = capsys.readouterr().err
    assert "A refill of 200 credits is being paid" in told
    assert f"`pixtrawl credits answer {refill_id}`" in told
    assert statuses(engine) == ["pending"]
    assert open_one(engine) is None
    assert complete(engine, refill_id), "money that was charged is written, also for an account that closes"
    assert main(["users", "delete", email, "--yes"]) == 0
    assert query(engine, "SELECT id FROM credit_transactions") == []


def test_doctor_says_what_auto_refill_lacks(engine, job, database_url):
    """No provider, a secret without TLS, a payment nobody knows the answer of; or nothing."""
    plain = read_settings(database_url=database_url)
    assert (state(engine, plain), state(engine, paying(database_url, "http"))) == ("warning", "warning")
    assert state(engine, paying(database_url, "https")) == "ok"
    here = read_settings(database_url=database_url, payment_url="http://127.0.0.1:9/")
    assert state(engine, here) == "ok", "what stays on this machine needs no TLS"
    open_one(engine)
    assert state(engine, paying(database_url, "https")) == "ok"
    with transaction(engine) as session:
        session.connection().exec_driver_sql("SET LOCAL session_replication_role = replica")
        session.connection().exec_driver_sql(
            "UPDATE credit_transactions SET created_at = now() - interval '2 hours'"
        )
    assert state(engine, paying(database_url, "https")) == "warning"
    change(engine, "UPDATE credit_accounts SET auto_refill_enabled = false")
    assert check_refills(engine, plain).found.startswith("1 without an answer")


def paying(database_url: str, scheme: str) -> Settings:
    """Settings with a payment service."""
    return read_settings(database_url=database_url, payment_url=f"{scheme}://pay.example.invalid/")


def state(engine: Engine, settings: Settings) -> str:
    """How the check of auto-refill comes out."""
    return check_refills(engine, settings).state.value
