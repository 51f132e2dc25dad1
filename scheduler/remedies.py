"""What to do when one host fails for one reason: the end of a sentence for each reason and status."""

from models.outcomes import Reason

REFUSING = frozenset({401, 403, 406, 429, 451})
"""Statuses that say: you may not."""
GONE = frozenset({404, 410})
"""Statuses that say: there is nothing."""

LATER = "it may be down, try later with `pixtrawl retry {job}`."
GENTLY = "lower PIXTRAWL_HOST_TRANSFERS or PIXTRAWL_HOST_RATE, then `pixtrawl retry {job}`."
FILES = "look at what it serves, `pixtrawl failures {job}` lists the URLs."
REMEDIES = {
    Reason.INVALID_URL: "correct the list.",
    Reason.BLOCKED_ADDRESS: "if it is your own, set PIXTRAWL_ALLOWED_NETWORKS.",
    Reason.ROBOTS: "its robots.txt forbids it, ask its owner.",
    Reason.OPT_OUT: "its owner reserves the pictures, ask there.",
    Reason.DNS: "its name does not resolve, check it.",
    Reason.CONNECT: LATER,
    Reason.TLS: "its certificate is not valid, and is always verified.",
    Reason.PROTOCOL: LATER,
    Reason.TIMEOUT: LATER,
    Reason.TOO_SLOW: LATER,
    Reason.REDIRECTS: "open one in a browser, it may want a login.",
    Reason.HTTP_STATUS: FILES,
    Reason.RATE_LIMITED: GENTLY,
    Reason.TOO_LARGE: "raise PIXTRAWL_IMAGE_BYTES_MAX if you want them.",
    Reason.NOT_AN_IMAGE: FILES,
    Reason.CORRUPT: FILES,
    Reason.MISMATCH: "its pictures were changed, or the digests are of others.",
    Reason.TOO_MANY_PIXELS: "raise PIXTRAWL_IMAGE_PIXELS_MAX if you want them.",
    Reason.FILTERED: FILES,
    Reason.WORKER_LOST: "report it with the URLs, which `pixtrawl failures {job}` lists.",
}
"""What to do when one host fails for one reason: every reason but those that are no host's trouble."""


def remedy(reason: str, status: int | None) -> str:
    """What to do when one host fails for one reason."""
    if status in GONE:
        return "what it had is gone, no setting helps."
    if status in REFUSING:
        return "it refuses crawlers, ask its owner."
    return LATER if status is not None and status >= 500 else REMEDIES[Reason(reason)]
