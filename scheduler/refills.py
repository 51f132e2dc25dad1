"""Auto-refill: opens refills, asks the payment service in threads of its own, writes the answers as the leader.

A call may take as long as it likes: dispatch never waits for it. Whatever dies in between, the refill is still
pending and is asked for again with the same key. Nothing here decides what an unknown answer was.
"""

import random
import threading
import time
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

import structlog

from models.refills import Refill, complete_refill, decline_refill, open_refills, pending_refills
from scheduler.leader import Leader
from worker.payments import Answer, Paid, PaymentRequest, Payments

CALLS_MAX = 4
LOOK_SECONDS = 2.0
AGAIN_SECONDS, AGAIN_SECONDS_MAX = 5.0, 600.0

if TYPE_CHECKING:
    from uuid import UUID

log = structlog.get_logger()


@dataclass(slots=True)
class Wait:
    """When to ask for a refill again whose answer is not known, and how long to wait the next time."""

    until: float
    seconds: float


class Refiller:
    """Refills for one leader. What it remembers may be lost with it: it only saves questions."""

    def __init__(self, leader: Leader, payments: Payments | None) -> None:
        self.leader = leader
        self.payments = payments
        self.answers: SimpleQueue[tuple[Refill, Answer | Exception]] = SimpleQueue()
        self.asking: set[UUID] = set()
        self.waits: dict[UUID, Wait] = {}
        self.look_at = 0.0

    def refill(self) -> None:
        """Write what was answered; now and then look for accounts that run low, and ask."""
        if self.payments is None:
            return
        self.write_answers()
        if time.monotonic() < self.look_at:
            return
        self.look_at = time.monotonic() + LOOK_SECONDS
        with self.leader.transaction() as session:
            opened = open_refills(session, self.leader.settings.refills_per_day_max)
        for refill_id in opened:
            log.info("refill_opened", refill=str(refill_id))
        with self.leader.transaction() as session:
            pending = pending_refills(session)
        self.waits = {refill.id: self.waits[refill.id] for refill in pending if refill.id in self.waits}
        for refill in pending:
            self.ask(self.payments, refill)

    def ask(self, payments: Payments, refill: Refill) -> None:
        """Ask for one refill in a thread, unless that is under way, not due, or enough are asked for.

        The threads are daemons: a scheduler that leaves does not wait for a payment.
        """
        wait = self.waits.get(refill.id)
        due = wait is None or time.monotonic() >= wait.until
        if due and refill.id not in self.asking and len(self.asking) < CALLS_MAX:
            self.asking.add(refill.id)
            threading.Thread(target=call, args=(payments, refill, self.answers), daemon=True).start()

    def write_answers(self) -> None:
        """Each answer that has come, in a transaction of its own."""
        while True:
            try:
                refill, answer = self.answers.get_nowait()
            except Empty:
                return
            self.asking.discard(refill.id)
            if isinstance(answer, Exception):
                self.wait(refill, answer)
            else:
                self.write(refill, answer)

    def write(self, refill: Refill, answer: Answer) -> None:
        """pending → completed or failed."""
        with self.leader.transaction() as session:
            if isinstance(answer, Paid):
                written = complete_refill(session, refill.id, answer.payment)
            else:
                written = decline_refill(session, refill.id, answer.reason)
        if isinstance(answer, Paid):
            # Somebody may have deleted the account: then this line is all that is left of the payment.
            (log.info if written else log.error)(
                "refill_paid",
                refill=str(refill.id),
                payment=answer.payment,
                credited=written,
                user=refill.email,
            )
        else:
            log.warning("refill_declined", refill=str(refill.id), reason=answer.reason)

    def wait(self, refill: Refill, error: Exception) -> None:
        """Not known: ask again with the same key, less often each time."""
        last = self.waits.get(refill.id)
        seconds = AGAIN_SECONDS if last is None else min(2 * last.seconds, AGAIN_SECONDS_MAX)
        pause = seconds * random.uniform(0.5, 1)
        self.waits[refill.id] = Wait(time.monotonic() + pause, seconds)
        log.warning("refill_unknown", refill=str(refill.id), error=str(error), again_in_seconds=round(pause))


def call(
    payments: Payments, refill: Refill, answers: "SimpleQueue[tuple[Refill, Answer | Exception]]"
) -> None:
    """Ask the service; whatever goes wrong means that the answer is not known."""
    request = PaymentRequest(
        str(refill.id), str(refill.account_id), str(refill.user_id), refill.email, refill.credits
    )
    try:
        answer: Answer | Exception = payments.charge(request)
    except Exception as error:  # noqa: BLE001 - a provider of somebody else's may raise anything
        answer = error
    answers.put((refill, answer))
