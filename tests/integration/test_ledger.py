"""The ledger after any operations in any order, one by one and at once, with retries: the audit finds nothing."""

import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy.orm import Session

from models.accounts import TransactionType
from models.averages import FIRST, average_page
from models.closing import close_account
from models.credits import CreditError, add_credits, grant, hold
from models.database import transaction
from models.ending import drain_cancelled
from models.job_lifecycle import cancel_job, unblock_jobs
from models.members import set_monthly_limit
from models.refills import (
    complete_refill,
    configure_refill,
    decline_refill,
    give_up_refill,
    open_refills,
    pending_refills,
)
from models.refunds import refund_job
from tests.integration.test_credits import CHOICE, OUTCOMES, Operations, hold_for, take
from tests.support.crawling import NewJob, balance_of, change, check_books, new_job, query, queue_ready

AMOUNT = st.integers(1, 9)
REFERENCE = st.sampled_from(["one", "two", "three"])
PER_DAY_MAX = 1_000_000
ENDED = """SELECT id, type, status, amount, held, balance_after, settled_at, reference, job_id, chunk_id
    FROM credit_transactions WHERE status <> 'pending'"""


class Ledger(Operations):
    """What moves chunks and credits (``Operations``), and every other way in which credits come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.bought: dict[str, int] = {}
        self.paid: dict[uuid.UUID, int] = {}
        self.ended: dict[uuid.UUID, tuple[Any, ...]] = {}
        self.other = self.somebody_else()

    def somebody_else(self) -> NewJob:
        """Another user, with an open hold for a paused job, which no dispatch touches."""
        job = new_job(self.engine, [3], balance=5)
        change(self.engine, "UPDATE crawl_jobs SET paused_at = now() WHERE id = :id", id=job.id)
        assert take(self.engine, hold_for(job, candidates=3))
        return job

    def commit(self, step: Callable[[Session], Any]) -> Any:
        """One transaction; None when the ledger refuses."""
        try:
            with transaction(self.engine) as session:
                return step(session)
        except CreditError:
            return None

    @property
    def user_id(self) -> uuid.UUID:
        """Whose account it is all about."""
        return self.jobs[0].user_id

    def buy(self, amount: int, reference: str) -> Any:
        """A payment service says that credits were paid for."""
        return self.commit(
            lambda session: add_credits(
                session, self.user_id, amount, TransactionType.PURCHASE, "Card", reference
            )
        )

    @rule(amount=AMOUNT, reference=REFERENCE, times=st.integers(1, 3))
    def purchase(self, amount: int, reference: str, times: int) -> None:
        """It says so once or, not having heard, again; credits come once, and only for the first amount."""
        known = self.bought.setdefault(reference, amount)
        for _ in range(times):
            added = self.buy(amount, reference)
            assert (added is not None) == (amount == known)

    @rule(amount=st.none() | AMOUNT, reference=st.none() | REFERENCE, choice=CHOICE)
    def refund(self, amount: int | None, reference: str | None, choice: int) -> None:
        """An operator gives credits back, sometimes twice with one name."""
        job_id = self.jobs[choice % len(self.jobs)].id
        before = balance_of(self.engine, self.jobs[0])
        first, again = (
            self.commit(lambda session: refund_job(session, job_id, amount, "Why", reference=reference))
            for _ in range(2)
        )
        after = balance_of(self.engine, self.jobs[0])
        if reference is not None and first is not None:
            assert (again.added.id, again.added.repeated) == (first.added.id, True)
            assert after - before == (0 if first.added.repeated else first.amount)
        assert after >= before

    @rule(choice=CHOICE, kinds=OUTCOMES)
    def month_turns_over_a_hold(self, choice: int, kinds: list[str]) -> None:
        """A chunk is under way when a month begins, another is held in the new one, and then the first ends."""
        self.grant(9)
        self.dispatch(1)
        if self.messages:
            self.start(choice, "a@test")
        self.pass_month()
        self.dispatch(1)
        if self.runs:
            self.settle(choice, kinds)

    @rule(limit=st.integers(1, 60))
    def limit(self, limit: int) -> None:
        """The owner spends less, or more."""
        assert self.commit(lambda session: set_monthly_limit(session, self.user_id, limit))

    @rule(enabled=st.booleans(), threshold=AMOUNT, amount=AMOUNT)
    def wish(self, enabled: bool, threshold: int, amount: int) -> None:
        """The owner wants refills, or none."""
        wishes = {"enabled": enabled, "threshold": threshold, "amount": amount}
        assert self.commit(lambda session: configure_refill(session, self.user_id, **wishes))

    @rule()
    def open_refill(self) -> None:
        """The scheduler looks for accounts that run low."""
        self.commit(lambda session: open_refills(session, PER_DAY_MAX))

    def pending(self) -> list[uuid.UUID]:
        """Refills whose answer is not known."""
        return [refill.id for refill in self.commit(pending_refills)]

    @rule(
        answers=st.lists(st.sampled_from(["paid", "declined", "unpaid", "unknown"]), min_size=1, max_size=3)
    )
    def answer(self, answers: list[str]) -> None:
        """The payment service answers, perhaps several times, perhaps differently: the first answer counts."""
        for refill_id in self.pending():
            for word in answers:
                self.write(refill_id, word)

    def write(self, refill_id: uuid.UUID, word: str) -> None:
        """One answer."""
        if word == "paid" and self.commit(lambda session: complete_refill(session, refill_id, "pay")):
            assert refill_id not in self.paid
            [(self.paid[refill_id],)] = query(
                self.engine, "SELECT amount FROM credit_transactions WHERE id = :id", id=refill_id
            )
        if word == "declined":
            self.commit(lambda session: decline_refill(session, refill_id, "No"))
        if word == "unpaid":
            self.commit(lambda session: give_up_refill(session, refill_id))

    @rule()
    def pause_ends(self) -> None:
        """Time passes after a decline."""
        change(self.engine, "UPDATE credit_accounts SET refill_after = now()")

    @rule()
    def night(self) -> None:
        """Averages are computed, and jobs looked at."""
        self.commit(lambda session: average_page(session, FIRST, 10))
        self.commit(unblock_jobs)

    @rule(amounts=st.lists(AMOUNT, min_size=2, max_size=4), reference=REFERENCE, choice=CHOICE)
    def at_once(self, amounts: list[int], reference: str, choice: int) -> None:
        """Everybody does something at the same time: grants, purchases with one reference, refunds, answers,
        the dispatch of a chunk.
        """
        known = self.bought.setdefault(reference, amounts[0])
        job_id = self.jobs[choice % len(self.jobs)].id
        refills = self.pending()
        steps: list[Callable[[], Any]] = [lambda: self.buy(known, reference) for _ in amounts]
        steps += [lambda: queue_ready(self.engine, 1)]
        for amount in amounts:
            steps += [
                lambda amount=amount: self.commit(
                    lambda session: grant(session, self.user_id, amount, description="More")
                ),
                lambda amount=amount: self.commit(lambda session: refund_job(session, job_id, amount, "Why")),
                lambda: [self.write(refill_id, "paid") for refill_id in refills],
                lambda: self.commit(lambda session: open_refills(session, PER_DAY_MAX)),
            ]
        with ThreadPoolExecutor(len(steps)) as threads:
            done = [future.result(30) for future in [threads.submit(step) for step in steps]]
        assert len({added.id for added in done[: len(amounts)]}) == 1
        self.messages += done[len(amounts)]

    @precondition(lambda self: self.other is not None)
    @rule(refill=st.booleans())
    def close_other(self, refill: bool) -> None:
        """Another user is deleted: from the first moment on nothing moves but what was under way."""
        other = self.other
        with transaction(self.engine) as session:
            if refill:
                configure_refill(session, other.user_id, enabled=True, threshold=9, amount=7)
                assert open_refills(session, PER_DAY_MAX)
            cancel_job(session, other.id)
        assert self.commit(lambda session: close_account(session, other.user_id))
        for refused in (
            lambda session: grant(session, other.user_id, 5, description="More"),
            lambda session: refund_job(session, other.id, None, "Why"),
            lambda session: hold(session, replace(hold_for(other, candidates=1), chunk_id=10**9)),
            lambda session: configure_refill(session, other.user_id, enabled=True),
            lambda session: set_monthly_limit(session, other.user_id, 5),
        ):
            assert not self.commit(refused)
        theirs = self.refills_of_other()
        self.commit(lambda session: open_refills(session, PER_DAY_MAX))
        assert self.refills_of_other() == theirs
        with transaction(self.engine) as session:
            assert drain_cancelled(session, other.id) == 1
        paid = [refill_id for refill_id in self.pending() if refill_id in theirs]
        for refill_id in paid:
            assert self.commit(lambda session, key=refill_id: complete_refill(session, key, "pay"))
        assert len(paid) == refill
        assert balance_of(self.engine, other) == 5 + 7 * len(paid)
        change(self.engine, "DELETE FROM profiles WHERE id = :id", id=other.user_id)
        self.ended = {
            key: row for key, row in self.ended.items() if row[-2] != other.id and key in self.rows()
        }
        self.other = self.somebody_else()

    def refills_of_other(self) -> set[uuid.UUID]:
        """Refills of the user who is being deleted."""
        statement = "SELECT id FROM credit_transactions WHERE refill AND user_id = :id"
        return {row[0] for row in query(self.engine, statement, id=self.other.user_id)}

    def rows(self) -> dict[uuid.UUID, tuple[Any, ...]]:
        """Every transaction that has ended."""
        return {row[0]: row for row in query(self.engine, ENDED)}

    @invariant()
    def what_has_ended_stays(self) -> None:
        """No transaction that has ended is changed or gone."""
        now = self.rows()
        assert {key: now.get(key) for key in self.ended} == self.ended
        self.ended = now

    @invariant()
    def nothing_comes_twice(self) -> None:
        """Each reference and each payment added its credits once; nobody has less than nothing."""
        sums = """SELECT coalesce(sum(amount) FILTER (WHERE reference IS NOT NULL), 0),
                coalesce(sum(amount) FILTER (WHERE refill AND status = 'completed'), 0)
            FROM credit_transactions WHERE type = 'purchase' AND user_id = :id"""
        assert query(self.engine, sums, id=self.user_id) == [
            (sum(self.bought.values()), sum(self.paid.values()))
        ]
        assert query(self.engine, "SELECT id FROM credit_accounts WHERE current_balance < 0") == []

    def teardown(self) -> None:
        """Answers come, then everything comes to its end."""
        self.answer(["paid"])
        self.wish(enabled=False, threshold=1, amount=1)
        if self.other is not None:
            self.close_other(refill=False)
            change(self.engine, "DELETE FROM profiles WHERE id = :id", id=self.other.user_id)
        super().teardown()


def test_the_audit_is_silent_after_any_operations(engine):
    """Whatever is done in whatever order, at once and twice, the audit finds nothing and what has ended stays."""

    class OnThisDatabase(Ledger):
        pass

    OnThisDatabase.engine = engine
    run_state_machine_as_test(
        OnThisDatabase,
        settings=settings(
            max_examples=int(os.environ.get("TEST_LEDGER_RUNS", "3")),
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # A failing run is printed as it was: shrinking it takes minutes.
        ),
    )
    check_books(engine)


def test_fifty_debits_at_once_with_funds_for_thirty(engine):
    """Fifty threads hold 10 credits each from an account with 309: exactly thirty succeed, and 9 are left."""
    job = new_job(engine, [10] * 50, balance=309)
    pooled = engine.execution_options()
    with ThreadPoolExecutor(50) as threads:
        taken = list(threads.map(lambda chunk: take(pooled, hold_for(job, chunk)), range(50)))
    assert taken.count(True) == 30
    assert balance_of(engine, job) == 9
    assert query(engine, "SELECT count(*), sum(held) FROM credit_transactions WHERE status = 'pending'") == [
        (30, 300)
    ]
