"""The ledger on real PostgreSQL: holds, settlements, months; and the books after any mixture of operations."""

import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from models.accounts import TransactionType
from models.credits import CREDITS_MAX, CreditError, Hold, grant, hold, hold_all, settle, spendable
from models.database import transaction
from models.ending import drain_cancelled, drain_paused, rescue_chunk
from models.job_lifecycle import cancel_job, close_job, pause_job, resume_job, unblock_jobs
from models.jobs import BlockedReason
from models.lifecycle import (
    Fence,
    checkpoint_chunk,
    hand_back_chunk,
    settle_chunk,
    settle_short_chunk,
)
from models.outcomes import Candidate, Outcome, Reason
from models.queueing import Message, publish_again
from models.reopening import RetryError
from models.retrying import ALL_FAILURES, TRANSIENT_FAILURES, Selection, retry_chunks
from tests.support.crawling import (
    ACCOUNTS,
    LEASE_SECONDS,
    NewJob,
    accepted,
    balance_of,
    change,
    check_books,
    check_money,
    expire_lease,
    new_job,
    query,
    queue_ready,
    read_job,
    refused,
    settle_run,
    start,
    start_next,
    wait_for_blocked,
)

THIS_MONTH = "to_char(now() AT TIME ZONE 'utc', 'YYYY-MM')"


def hold_for(job: NewJob, chunk: int = 0, candidates: int = 10, unit_price: int = 1) -> Hold:
    """The hold of a job's chunk."""
    amount = candidates * unit_price
    return Hold(job.account_id, job.user_id, job.id, job.chunk_ids[chunk], amount, unit_price)


def take(engine: Engine, wanted: Hold) -> bool:
    """Commit one hold."""
    with transaction(engine) as session:
        return hold(session, wanted)


def finish(engine: Engine, wanted: Hold, accepted_images: int) -> int | None:
    """Commit one settlement."""
    with transaction(engine) as session:
        return settle(session, wanted.chunk_id, accepted_images)


def lines(engine: Engine) -> list[tuple[object, ...]]:
    """The ledger, in order: (type, status, amount, balance after, settled)."""
    return query(
        engine,
        """SELECT type, status, amount, balance_after, settled_at IS NOT NULL FROM credit_transactions
        ORDER BY created_at, coalesce(settled_at, 'infinity')""",
    )


def pass_month(engine: Engine, number: int = 1) -> None:
    """Let everything that was counted in this month have been counted in an earlier one."""
    with transaction(engine) as session:
        # Time passes for the ledger, too, whose trigger lets nobody change the past.
        session.execute(text("SET LOCAL session_replication_role = replica"))
        for table, column in (("credit_accounts", "usage_period"), ("credit_transactions", "period")):
            past = text(f"UPDATE {table} SET {column} = :month WHERE {column} = {THIS_MONTH}")
            session.execute(past, {"month": f"{1900 + number}-01"})


def usage_of(engine: Engine, job: NewJob) -> tuple[int, bool]:
    """(monthly usage of the job's owner, whether it is this month's)."""
    [row] = query(
        engine,
        f"SELECT monthly_usage, usage_period = {THIS_MONTH} FROM credit_accounts WHERE id = :id",
        id=job.account_id,
    )
    return row[0], row[1]


def test_a_grant_is_one_line_of_the_ledger(engine):
    """Granted credits are free to spend, and a grant without an account is refused."""
    job = new_job(engine, balance=5)
    with transaction(engine) as session:
        assert grant(session, job.user_id, 7, kind=TransactionType.PURCHASE, description="Card") == 12
    assert lines(engine) == [("bonus", "completed", 5, 5, True), ("purchase", "completed", 7, 12, True)]
    with transaction(engine) as session, pytest.raises(CreditError, match="has no credit account"):
        grant(session, uuid.uuid4(), 7, description="Nobody's")
    check_money(engine, ACCOUNTS)


def test_an_account_never_holds_more_than_fits(engine):
    """A grant that would overflow the balance once open holds come back is refused, and changes nothing."""
    job = new_job(engine, balance=10)
    with pytest.raises(CreditError, match="2,147,483,647 at most"), transaction(engine) as session:
        grant(session, job.user_id, CREDITS_MAX - 9, description="Too many")
    with transaction(engine) as session:
        assert grant(session, job.user_id, CREDITS_MAX - 10, description="Just enough") == CREDITS_MAX


def test_chunks_are_held_together_or_none_of_an_account(engine):
    """Each hold has its line, with the balance after it in their order; an account that cannot pay for all of its
    chunks pays for none of them, and others do all the same.
    """
    rich, poor = new_job(engine, [5] * 3, balance=100), new_job(engine, [5] * 2, balance=9)
    wanted = [hold_for(rich, 2, 7), hold_for(poor, 0, 5), hold_for(rich, 0, 10), hold_for(poor, 1, 5)]
    with transaction(engine) as session:
        assert hold_all(session, wanted) == {rich.chunk_ids[2], rich.chunk_ids[0]}
        assert hold_all(session, [hold_for(poor, 1, 5)]) == {poor.chunk_ids[1]}
        assert hold_all(session, [hold_for(rich, 1, candidates=10, unit_price=CREDITS_MAX)]) == set()
        assert hold_all(session, []) == set()
    usage = (
        "SELECT chunk_id, amount, balance_after, description FROM credit_transactions WHERE type = 'usage'"
    )
    assert set(query(engine, usage)) == {
        (rich.chunk_ids[2], -7, 93, f"Job {rich.id}, chunk {rich.chunk_ids[2]}"),
        (rich.chunk_ids[0], -10, 83, f"Job {rich.id}, chunk {rich.chunk_ids[0]}"),
        (poor.chunk_ids[1], -5, 4, f"Job {poor.id}, chunk {poor.chunk_ids[1]}"),
    }
    assert (usage_of(engine, rich), usage_of(engine, poor)) == ((17, True), (5, True))
    check_money(engine, ACCOUNTS)


def test_accounts_are_locked_in_order_of_id(engine):
    """So two transactions that hold for the same accounts never wait for each other."""
    first, last = sorted((new_job(engine), new_job(engine)), key=lambda job: job.account_id)
    lock = "SELECT FROM credit_accounts WHERE id = :id FOR UPDATE"

    def hold_both() -> set[int]:
        with transaction(engine) as other:
            return hold_all(other, [hold_for(last), hold_for(first)])

    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            session.execute(text(lock), {"id": first.account_id})
            both = thread.submit(hold_both)
            wait_for_blocked(engine)
            session.execute(text(f"{lock} NOWAIT"), {"id": last.account_id})
        assert both.result(10) == {first.chunk_ids[0], last.chunk_ids[0]}


def test_a_settlement_charges_what_was_accepted_and_gives_back_the_rest(engine):
    """The hold's own line becomes the charge; a second settlement finds nothing to settle."""
    job = new_job(engine, balance=100, unit_price=3)
    wanted = hold_for(job, unit_price=3)
    assert take(engine, wanted)
    assert balance_of(engine, job) == 70
    assert finish(engine, wanted, 4) == 12
    assert finish(engine, wanted, 4) is None
    assert lines(engine)[1:] == [("usage", "completed", -12, 88, True)]
    assert usage_of(engine, job) == (12, True)
    check_money(engine, ACCOUNTS)


def test_a_settlement_without_images_charges_nothing(engine):
    """The hold is cancelled, and the whole of it is free again."""
    job = new_job(engine, balance=100)
    wanted = hold_for(job)
    assert take(engine, wanted)
    assert finish(engine, wanted, 0) == 0
    assert lines(engine)[1:] == [("usage", "cancelled", -10, 100, True)]
    assert usage_of(engine, job) == (0, True)
    check_money(engine, ACCOUNTS)


def test_two_settlements_at_once_settle_a_hold_once(engine):
    """The second waits for the first, finds the hold ended, and is refused as a whole."""
    job = new_job(engine, balance=100)
    wanted = hold_for(job)
    assert take(engine, wanted)
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            assert settle(session, wanted.chunk_id, 4) == 4
            second = thread.submit(finish, engine, wanted, 4)
            wait_for_blocked(engine)
        with pytest.raises(CreditError, match=f"hold of chunk {wanted.chunk_id}"):
            second.result(10)
    assert balance_of(engine, job) == 96
    check_money(engine, ACCOUNTS)


def test_a_chunk_has_one_open_hold(engine):
    """The database refuses a second hold while the first is open, and the balance stays."""
    job = new_job(engine, balance=100)
    assert take(engine, hold_for(job))
    with pytest.raises(IntegrityError, match="uq_credit_transactions_open_hold"):
        take(engine, hold_for(job))
    assert balance_of(engine, job) == 90


def test_a_second_hold_charges_only_what_is_new(engine):
    """A chunk that was charged before and runs again pays for the images since, not for all."""
    job = new_job(engine, balance=100)
    wanted = hold_for(job)
    assert take(engine, wanted)
    assert finish(engine, wanted, 4) == 4
    assert take(engine, replace(wanted, amount=6))
    assert finish(engine, wanted, 7) == 3
    assert take(engine, replace(wanted, amount=3))
    assert finish(engine, wanted, 7) == 0
    assert balance_of(engine, job) == 93


@pytest.mark.parametrize("images", [11, -1])
def test_a_hold_that_does_not_cover_the_charge_is_left_as_it_is(engine, images):
    """A settlement for more than was held, or for less than nothing, raises and writes nothing."""
    job = new_job(engine, balance=100)
    assert take(engine, hold_for(job))
    with pytest.raises(CreditError, match=f"is 10 credits and {images} are due"):
        finish(engine, hold_for(job), images)
    assert lines(engine)[1:] == [("usage", "pending", -10, 90, False)]
    check_money(engine, ACCOUNTS)


def test_twenty_holds_at_once_with_funds_for_ten(engine):
    """Exactly as many holds succeed as the balance covers."""
    job = new_job(engine, [10] * 20, balance=109)
    with ThreadPoolExecutor(20) as threads:
        taken = list(threads.map(lambda chunk: take(engine, hold_for(job, chunk)), range(20)))
    assert taken.count(True) == 10
    assert balance_of(engine, job) == 9
    with ThreadPoolExecutor(20) as threads:
        list(threads.map(lambda chunk: finish(engine, hold_for(job, chunk), 1), range(20)))
    assert balance_of(engine, job) == 99
    check_money(engine, ACCOUNTS)


def test_what_is_spendable_stays_so(engine):
    """Until the transaction that asked ends, nobody else takes of it."""
    job = new_job(engine, [15, 10], balance=15)
    with ThreadPoolExecutor(1) as thread:
        with transaction(engine) as session:
            assert spendable(session, job.account_id) == (15, BlockedReason.OUT_OF_CREDITS)
            other = thread.submit(take, engine, hold_for(job, 1))
            wait_for_blocked(engine)
            assert hold(session, hold_for(job, 0, candidates=15))
        assert not other.result(10)
    check_money(engine, ACCOUNTS)


def test_the_monthly_limit_bounds_what_is_held(engine):
    """Holds count against the limit while open, settlements give back, and the limit names itself."""
    job = new_job(engine, [10] * 3, balance=100, monthly_limit=25)
    assert [take(engine, hold_for(job, chunk)) for chunk in range(3)] == [True, True, False]
    with transaction(engine) as session:
        assert spendable(session, job.account_id) == (5, BlockedReason.MONTHLY_LIMIT)
    assert finish(engine, hold_for(job, 0), 2) == 2
    assert take(engine, hold_for(job, 2))
    change(engine, "UPDATE credit_accounts SET monthly_limit = 1")
    with transaction(engine) as session:
        assert spendable(session, job.account_id) == (0, BlockedReason.MONTHLY_LIMIT)
    change(engine, "UPDATE credit_accounts SET monthly_limit = 1000")
    with transaction(engine) as session:
        assert spendable(session, job.account_id) == (78, BlockedReason.OUT_OF_CREDITS)


def test_usage_near_the_highest_limit_stops_nobody(engine):
    """A hold that would exceed what an integer holds is refused like any other, and does not fail the dispatch."""
    job = new_job(engine, [5], monthly_limit=CREDITS_MAX)
    other = new_job(engine, [5])
    usage = f"UPDATE credit_accounts SET monthly_usage = :usage, usage_period = {THIS_MONTH} WHERE id = :id"
    change(engine, usage, usage=CREDITS_MAX - 4, id=job.account_id)
    assert [message.job_id for message in queue_ready(engine)] == [job.id, other.id]
    assert balance_of(engine, job) == 1000 - 4


def test_usage_that_another_service_resets_keeps_no_chunk_from_its_end(engine):
    """Under an open hold the month may begin anew by another hand: it never falls below nothing."""
    job = new_job(engine, [5])
    chunk = start_next(engine)
    change(engine, "UPDATE credit_accounts SET monthly_usage = 0")
    assert settle_run(engine, chunk, [refused(place) for place in range(5)]) is not None
    assert balance_of(engine, job) == 1000
    assert query(engine, "SELECT monthly_usage FROM credit_accounts") == [(0,)]


def test_a_new_month_starts_at_nothing(engine):
    """What earlier months used does not count, whether it is settled or still held."""
    job = new_job(engine, [10] * 3, balance=100, monthly_limit=20)
    assert take(engine, hold_for(job, 0))
    assert finish(engine, hold_for(job, 0), 8) == 8
    assert take(engine, hold_for(job, 1))
    pass_month(engine)
    with transaction(engine) as session:
        assert spendable(session, job.account_id) == (20, BlockedReason.MONTHLY_LIMIT)
    assert take(engine, hold_for(job, 2))
    assert usage_of(engine, job) == (10, True)

    assert finish(engine, hold_for(job, 1), 3) == 3
    assert usage_of(engine, job) == (10, True)
    assert finish(engine, hold_for(job, 2), 1) == 1
    assert usage_of(engine, job) == (1, True)
    assert balance_of(engine, job) == 100 - 8 - 3 - 1
    check_money(engine, ACCOUNTS)


def test_a_clock_that_was_set_back_begins_no_month_anew(engine):
    """A hold counts in the latest month that was counted in, and so does what is given back of it."""
    job = new_job(engine, [10] * 2, balance=100, monthly_limit=25)
    change(engine, "UPDATE credit_accounts SET monthly_usage = 10, usage_period = '2999-12'")
    assert [take(engine, hold_for(job, chunk)) for chunk in range(2)] == [True, False]
    assert query(engine, "SELECT monthly_usage, usage_period FROM credit_accounts") == [(20, "2999-12")]
    assert finish(engine, hold_for(job, 0), 3) == 3
    assert query(engine, "SELECT monthly_usage, usage_period FROM credit_accounts") == [(13, "2999-12")]


def test_a_hold_settled_before_the_next_months_first_lowers_its_own_month(engine):
    """Until something new is held, the old month's figure goes on falling as its holds are released."""
    job = new_job(engine, balance=100)
    assert take(engine, hold_for(job))
    pass_month(engine)
    assert finish(engine, hold_for(job), 4) == 4
    assert usage_of(engine, job) == (4, False)
    check_money(engine, ACCOUNTS)


@dataclass
class Run:
    """One attempt that a worker believes to own. ``short``: its hold does not cover all."""

    fence: Fence
    left: list[Candidate]
    short: bool
    owned: bool = True


OUTCOMES = st.lists(st.sampled_from(["alone", "a", "b", "c", Reason.DNS, Reason.CORRUPT]), max_size=4)
CHOICE = st.integers(0, 1000)


class Operations(RuleBasedStateMachine):
    """Everything that moves chunks and credits, in any order, with workers that do not know they were replaced."""

    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        change(self.engine, "DELETE FROM profiles")
        self.jobs = [new_job(self.engine, [3, 2], balance=6, monthly_limit=40, unit_price=2)]
        self.messages: list[Message] = []
        self.runs: list[Run] = []
        self.months = 0

    @rule(amount=st.integers(1, 9))
    def grant(self, amount: int) -> None:
        """The user gets more credits."""
        with transaction(self.engine) as session:
            grant(session, self.jobs[0].user_id, amount, description="More")
            unblock_jobs(session)

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3), unit_price=st.integers(1, 3))
    def submit(self, sizes: list[int], unit_price: int) -> None:
        """The user submits another job."""
        self.jobs.append(new_job(self.engine, sizes, owner=self.jobs[0], unit_price=unit_price))

    @rule(limit=st.integers(1, 4))
    def dispatch(self, limit: int) -> None:
        """The scheduler queues what is ready."""
        self.messages += queue_ready(self.engine, limit)

    @precondition(lambda self: self.messages)
    @rule(choice=CHOICE, worker=st.sampled_from(["a@test", "b@test"]))
    def start(self, choice: int, worker: str) -> None:
        """A worker takes a message, new or old."""
        chunk = start(self.engine, self.messages[-1 - choice % min(4, len(self.messages))], worker)
        if chunk is not None:
            self.runs.append(Run(chunk.fence, list(chunk.candidates), short=chunk.unpaid > 0))

    def pick(self, choice: int) -> Run:
        """One of the latest runs, owned or not."""
        return self.runs[-1 - choice % min(4, len(self.runs))]

    def outcomes(self, run: Run, kinds: list[str]) -> list[Outcome]:
        """An outcome of each kind for the next candidates of a run."""
        return [
            refused(candidate.position, kind)
            if isinstance(kind, Reason)
            else accepted(candidate.position, None if kind == "alone" else kind)
            for candidate, kind in zip(run.left, kinds, strict=False)
        ]

    @precondition(lambda self: self.runs)
    @rule(choice=CHOICE, kinds=OUTCOMES)
    def checkpoint(self, choice: int, kinds: list[str]) -> None:
        """A worker commits some outcomes."""
        run = self.pick(choice)
        outcomes = self.outcomes(run, kinds)
        with transaction(self.engine) as session:
            tally = checkpoint_chunk(session, run.fence, outcomes, LEASE_SECONDS)
        assert (tally is not None) == run.owned
        if run.owned:
            run.fence = replace(run.fence, checkpoint=run.fence.checkpoint + 1)
            run.left = run.left[len(outcomes) :]

    @precondition(lambda self: self.runs)
    @rule(choice=CHOICE, kinds=OUTCOMES)
    def settle(self, choice: int, kinds: list[str]) -> None:
        """A worker ends its chunk."""
        self.settle_run(self.pick(choice), kinds)

    def settle_run(self, run: Run, kinds: list[str]) -> None:
        """All that is left gets an outcome."""
        outcomes = self.outcomes(run, kinds + ["alone"] * len(run.left))
        arrow = settle_short_chunk if run.short else settle_chunk
        with transaction(self.engine) as session:
            assert (arrow(session, run.fence, outcomes) is not None) == run.owned
        run.owned = False

    @precondition(lambda self: self.runs)
    @rule(choice=CHOICE, kinds=OUTCOMES)
    def hand_back(self, choice: int, kinds: list[str]) -> None:
        """A worker leaves."""
        run = self.pick(choice)
        with transaction(self.engine) as session:
            outcomes = self.outcomes(run, kinds)
            assert (hand_back_chunk(session, run.fence, outcomes) is not None) == run.owned
        run.owned = False

    @precondition(lambda self: any(run.owned for run in self.runs))
    @rule(choice=CHOICE)
    def rescue(self, choice: int) -> None:
        """A worker was silent for too long."""
        owned = [run for run in self.runs if run.owned]
        lost = owned[choice % len(owned)]
        expire_lease(self.engine, lost.fence.chunk_id)
        with transaction(self.engine) as session:
            rescued = rescue_chunk(session, 1)
        assert rescued is not None
        assert rescued.chunk_id == lost.fence.chunk_id
        lost.owned = False

    @rule(choice=CHOICE)
    def pause(self, choice: int) -> None:
        """The user pauses a job."""
        with transaction(self.engine) as session:
            job = self.jobs[choice % len(self.jobs)]
            if pause_job(session, job.id):
                drain_paused(session, job.id)

    @rule()
    def resume(self) -> None:
        """The user resumes every job."""
        with transaction(self.engine) as session:
            for job in self.jobs:
                resume_job(session, job.id)

    @rule(choice=CHOICE)
    def cancel(self, choice: int) -> None:
        """The user cancels a job, now and then."""
        with transaction(self.engine) as session:
            job = self.jobs[choice % len(self.jobs)]
            if choice % 3 == 0 and cancel_job(session, job.id):
                drain_cancelled(session, job.id)

    @rule(choice=CHOICE, selection=st.sampled_from([TRANSIENT_FAILURES, ALL_FAILURES]))
    def retry(self, choice: int, selection: Selection) -> None:
        """The user wants a job's failures tried again, whether it runs or has ended."""
        job = self.jobs[choice % len(self.jobs)]
        with transaction(self.engine) as session, suppress(RetryError):
            retry_chunks(session, job.id, selection)

    @rule()
    def close(self) -> None:
        """The scheduler ends what is done."""
        with transaction(self.engine) as session:
            while close_job(session) is not None:
                pass

    @rule()
    def pass_month(self) -> None:
        """A month begins."""
        self.months += 1
        pass_month(self.engine, self.months)

    @invariant()
    def books_agree(self) -> None:
        """No rule of the promise is broken."""
        check_books(self.engine)

    def teardown(self) -> None:
        """With funds and without stops, what is left comes to its end."""
        change(self.engine, "UPDATE credit_accounts SET monthly_limit = 1000000")
        self.grant(1000)
        self.resume()
        for run in self.runs:
            if run.owned:
                self.settle_run(run, [])
        with transaction(self.engine) as session:
            for job in self.jobs:
                if read_job(self.engine, job.id)["cancelled_at"]:
                    drain_cancelled(session, job.id)
        with transaction(self.engine) as session:
            messages = publish_again(session, -1)
        while messages := messages + queue_ready(self.engine):
            for message in messages:
                chunk = start(self.engine, message)
                assert chunk is not None
                settle_run(self.engine, chunk, [accepted(place.position) for place in chunk.candidates])
            messages = []
        self.close()
        check_books(self.engine)
        assert query(self.engine, "SELECT id FROM crawl_jobs WHERE completed_at IS NULL") == []
        assert query(self.engine, "SELECT 1 FROM credit_transactions WHERE status = 'pending'") == []


def test_the_books_agree_after_any_operations(engine):
    """Whatever is done in whatever order, every rule of the promise holds after every step, and every job ends."""

    class OnThisDatabase(Operations):
        pass

    OnThisDatabase.engine = engine
    run_state_machine_as_test(
        OnThisDatabase,
        settings=settings(
            max_examples=int(os.environ.get("TEST_LEDGER_RUNS", "3")),
            stateful_step_count=25,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # A failing run is printed as it was: shrinking it takes minutes.
        ),
    )
