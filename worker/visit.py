"""A candidate on its way to a body: where it stands, what that took, if it is tried again. It never connects."""

import random as randomness

from models.outcomes import Candidate, Reason
from models.settings import Settings
from worker.address import parse_url
from worker.body_memory import Lease
from worker.errors import CandidateError

BACKOFF_SECONDS = 0.5
BACKOFF_SECONDS_MAX = 5.0
LONG = frozenset({Reason.TIMEOUT, Reason.TOO_SLOW})
REFUSALS_MAX = 10
"""So often a candidate is tried at a host that says it is asked too often."""


class Visit:
    """A candidate on its way to a body: where it stands, and what that took so far. One for one chunk's attempt."""

    __slots__ = (
        "attempts",
        "candidate",
        "latency_seconds",
        "lease",
        "redirects",
        "refusals",
        "seconds",
        "seen",
        "start",
        "straggler",
        "target",
        "tries",
        "wire_bytes",
    )

    def __init__(self, candidate: Candidate, lease: Lease) -> None:
        """Begin at the candidate's URL. Raises AddressError."""
        self.candidate = candidate
        self.lease = lease
        """Memory of its body, reserved until the caller releases it."""
        self.start = parse_url(candidate.url)
        self.attempts = self.refusals = self.wire_bytes = 0
        self.tries = 0
        """Attempts that were begun, counted or not."""
        self.straggler = False
        """Whether its whole chunk waits for it: then it is not tried again after what took long."""
        self.seconds = 0.0
        """Of all its requests together; waiting for turns is not among them."""
        self.latency_seconds: float | None = None
        """Of the last request until its answer began; None: there was no answer."""
        self.restart()

    def restart(self) -> None:
        """Go back to the first URL, for another attempt."""
        self.lease.release()
        self.target = self.start
        self.redirects = 0
        self.seen = {self.target.url}

    def again_in(self, error: CandidateError, settings: Settings, random: randomness.Random) -> float | None:
        """Prepare for another attempt after ``error``: in how many seconds; None: it was the last.

        A host that asks to wait is waited for by politeness: such an attempt is not counted with the others, though
        there are not endlessly many.
        """
        error.wire_bytes = self.wire_bytes
        error.final_url = error.final_url or self.target.url
        if self.tries:
            error.attempts, error.elapsed_ms = self.tries, round(1000 * self.seconds)
        if error.reason is Reason.RATE_LIMITED:
            self.refusals += 1
            delay_seconds = error.retry_after_seconds or 0.0
            spent = self.refusals >= REFUSALS_MAX or delay_seconds > settings.host_patience_seconds
        else:
            self.attempts += 1
            cap_seconds = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2.0 ** (self.attempts - 1))
            delay_seconds = cap_seconds * random.uniform(0.5, 1.0)
            spent = (
                not error.transient
                or self.attempts >= settings.transfer_attempts
                or (self.straggler and error.reason in LONG)
            )
        if spent:
            return None
        self.restart()
        return delay_seconds
