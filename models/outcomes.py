"""The outcomes of a candidate: accepted with an image, or refused with one reason from a closed list.

Knows no database and no network: worker code makes these values, models/lifecycle.py writes them.
"""

import datetime
from dataclasses import dataclass
from enum import StrEnum

from models.about import About
from models.opt_outs import Evidence


class Reason(StrEnum):
    """Why a candidate has no image. The words are stored; docs/outcomes.md says what each means."""

    INVALID_URL = "invalid_url"
    BLOCKED_ADDRESS = "blocked_address"
    ROBOTS = "robots"
    OPT_OUT = "opt_out"
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    PROTOCOL = "protocol"
    TIMEOUT = "timeout"
    TOO_SLOW = "too_slow"
    REDIRECTS = "redirects"
    HTTP_STATUS = "http_status"
    RATE_LIMITED = "rate_limited"
    TOO_LARGE = "too_large"
    NOT_AN_IMAGE = "not_an_image"
    CORRUPT = "corrupt"
    MISMATCH = "mismatch"
    TOO_MANY_PIXELS = "too_many_pixels"
    FILTERED = "filtered"
    DUPLICATE = "duplicate"
    NOT_NEEDED = "not_needed"
    WORKER_LOST = "worker_lost"
    CANCELLED = "cancelled"


TRANSIENT = frozenset(
    {Reason.DNS, Reason.CONNECT, Reason.PROTOCOL, Reason.TIMEOUT, Reason.TOO_SLOW, Reason.RATE_LIMITED}
)
"""Reasons that may pass by themselves."""
TRANSIENT_STATUSES = frozenset({408, 425, 500, 502, 503, 504, 520, 521, 522, 523, 524})
"""Answers of which ``http_status`` may pass, too; 52x are Cloudflare's, for an origin that it cannot reach."""
FINAL = frozenset({Reason.DUPLICATE, Reason.NOT_NEEDED})
"""Reasons that no other try can change: the image is there, or is not wanted."""


WEB_PAGE = "a web page or other markup"
"""Detail of a ``not_an_image`` that is a page, for whoever counts them."""


class ImageFormat(StrEnum):
    """Formats that are stored. The value is what ``images.format`` holds."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    GIF = "gif"
    AVIF = "avif"

    @property
    def extension(self) -> str:
        """File name extension, without the dot."""
        return "jpg" if self is ImageFormat.JPEG else self.value


class Verification(StrEnum):
    """How closely a body is looked at before it is an image: every pixel decoded; the file walked from its header
    to its end, without a pixel; or its first bytes only.
    """

    FULL = "full"
    HEADER = "header"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of a source: its position in the job (from 0), the URL as given, and its line (from 1).

    ``duplicate_of`` is the position of an earlier candidate with the same URL: this one is not fetched. ``digest``
    (``sha256:…``, ``sha1:…`` or ``md5:…``, hexadecimal in small letters) is what its bytes must have. ``problem``
    says what is wrong with a row of a table that gives no URL, and which row it is.
    """

    position: int
    url: str
    line: int
    about: About | None = None
    duplicate_of: int | None = None
    digest: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """A stored image. ``sha256`` is 32 bytes; ``perceptual_hash`` a signed 64-bit integer; sizes in bytes and
    pixels; ``storage_url`` names the object that is already in the store. None: its job's verification does not
    look at it. ``attempts`` and ``elapsed_ms`` are of its transfers, see worker/visit.py.
    """

    position: int
    original_url: str
    final_url: str
    sha256: bytes
    perceptual_hash: int | None
    width: int | None
    height: int | None
    file_size: int
    format: ImageFormat
    orientation: int | None
    storage_url: str
    filename: str
    fetched_at: datetime.datetime
    wire_bytes: int
    http_status: int | None = None
    attempts: int | None = None
    elapsed_ms: int | None = None
    about: About | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A candidate without an image: one reason, the HTTP status if there was a response, and a detail.

    ``evidence`` is what its owner said against it.
    """

    position: int
    url: str
    reason: Reason
    detail: str
    http_status: int | None = None
    final_url: str | None = None
    downloaded: bool = False
    wire_bytes: int = 0
    evidence: Evidence | None = None
    attempts: int | None = None
    elapsed_ms: int | None = None


Outcome = Accepted | Refused
