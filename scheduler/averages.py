"""Once a UTC day, every account's average daily usage: a short walk in each second's upkeep until all are done."""

import datetime
import time

from models.averages import FIRST, average_page
from scheduler.leader import Leader

PAGE = 100
ROUND_SECONDS = 0.1


class Averager:
    """The walk of one leader. The mark that counts is in each account: another leader goes on."""

    def __init__(self, leader: Leader) -> None:
        self.leader = leader
        self.begin()
        self.done: datetime.date | None = None

    def begin(self) -> None:
        """Go to the first account."""
        self.after, self.skipped = FIRST, 0
        self.begun: datetime.date | None = None

    def average(self) -> None:
        """Some pages, for ROUND_SECONDS, unless today's are done."""
        until = time.monotonic() + ROUND_SECONDS
        while self.done != datetime.datetime.now(datetime.UTC).date() and time.monotonic() < until:
            with self.leader.transaction() as session:
                page = average_page(session, self.after, PAGE)
            self.begun = self.begun or page.today
            self.skipped += page.skipped
            if page.last is not None:
                self.after = page.last
                continue
            if not self.skipped:
                self.done = self.begun  # Midnight may have passed on the way: then it begins anew.
            self.begin()
            return
