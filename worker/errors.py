"""Why one candidate could not become an image: the worker's only exception tree.

CandidateError            reason, transient, http_status, retry_after_seconds
├── AddressError          the URL or the address it leads to is refused
├── OptOutError           its owner does not want it collected; evidence
├── TransferError         the network or the server failed
└── PictureError          the body is no picture that we store
"""

from models.opt_outs import Evidence
from models.outcomes import TRANSIENT, Reason


class CandidateError(Exception):
    """One candidate ends here, or is tried again when ``transient``.

    ``wire_bytes`` counts what was received, ``attempts`` and ``elapsed_ms`` the transfers.
    """

    evidence: Evidence | None = None

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        transient: bool | None = None,
        http_status: int | None = None,
        final_url: str | None = None,
        retry_after_seconds: float | None = None,
        wire_bytes: int = 0,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.transient = reason in TRANSIENT if transient is None else transient
        self.http_status = http_status
        self.final_url = final_url
        self.retry_after_seconds = retry_after_seconds
        self.wire_bytes = wire_bytes
        self.attempts: int | None = None
        self.elapsed_ms: int | None = None


class AddressError(CandidateError):
    """``invalid_url`` or ``blocked_address``: nothing was sent, and nothing would change by another try."""


class OptOutError(CandidateError):
    """``robots`` or ``opt_out``, with what it rests on. Another attempt of this transfer would find the same."""

    def __init__(self, reason: Reason, detail: str, evidence: Evidence) -> None:
        super().__init__(reason, detail, transient=False)
        self.evidence = evidence


class TransferError(CandidateError):
    """The network or the server failed, from ``dns`` to ``too_large``."""


class PictureError(CandidateError):
    """``not_an_image``, ``corrupt``, ``mismatch`` or ``too_many_pixels``."""
