"""What a quote says, as JSON has it: figures, and in whole sentences what to know about them. Asks nobody."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from models.jobs import SourceKind
from models.outcomes import Accepted, Outcome, Reason, Refused
from scheduler.enqueue import Supply, Wanted
from scheduler.estimate import CONFIDENCE, Counts, estimate
from scheduler.printing import counted
from worker.sample import Sampled
from worker.sources.drawing import Drawn


@dataclass(frozen=True, slots=True)
class Means:
    """What there is for the job: credits that may be spent now, and pool children that would work."""

    email: str
    balance: int
    monthly_left: int
    workers: int
    slots: int
    unit_price: int

    @property
    def images(self) -> int:
        """So many can be paid for."""
        return max(0, min(self.balance, self.monthly_left)) // self.unit_price


@dataclass(frozen=True, slots=True)
class Trial:
    """What was drawn and what became of it; ``outcomes`` with their duplicates."""

    drawn: Drawn
    sampled: Sampled
    outcomes: list[Outcome] = field(default_factory=list)
    stopped: bool = False

    @property
    def failures(self) -> Counter[str]:
        """How often each reason was seen, the most frequent first."""
        reasons = Counter(outcome.reason.value for outcome in self.outcomes if isinstance(outcome, Refused))
        return Counter(dict(reasons.most_common()))

    @property
    def counts(self) -> Counts:
        """What the arithmetic needs."""
        accepted = [outcome for outcome in self.outcomes if isinstance(outcome, Accepted)]
        return Counts(
            accepted=len(accepted),
            failures=self.failures,
            unanswered=len(self.sampled.unanswered),
            wire_bytes=sum(outcome.wire_bytes for outcome in self.outcomes),
            stored_bytes=sum(outcome.file_size for outcome in accepted),
            slot_seconds=self.sampled.slot_seconds,
            host_seconds=self.sampled.host_seconds,
        )


def describe(supply: Supply, wanted: Wanted, trial: Trial, means: Means) -> dict[str, Any]:
    """Everything that is known, as JSON has it."""
    drawn, sampled, counts = trial.drawn, trial.sampled, trial.counts
    max_images = wanted.max_images or supply.max_images
    found = estimate(counts, drawn.population, max_images, means.slots)
    statuses = Counter(
        outcome.http_status
        for outcome in trial.outcomes
        if isinstance(outcome, Refused) and outcome.reason is Reason.HTTP_STATUS
    )
    sample = {
        "size": counts.size,
        "at_random": supply.kind is not SourceKind.KEYWORDS,
        "accepted": counts.accepted,
        "failures": counts.failures,
        "statuses": {str(status): number for status, number in statuses.most_common()},
        "unanswered": counts.unanswered,
        "not_tried": len(sampled.unasked),
        "repeated_urls": sum(outcome.position in drawn.repeated for outcome in trial.outcomes),
        "seconds": round(sampled.seconds, 2),
    }
    quote = {
        "name": wanted.name,
        "source_kind": supply.kind.value,
        "candidates": drawn.population,
        "at_least": drawn.open_ended,
        "max_images": max_images,
        "sample": sample,
        "images": asdict(found.images) | {"confidence": CONFIDENCE},
        "candidates_used": found.candidates,
        "failures": found.failures,
        "unanswered": found.unanswered,
        "wire_bytes": found.wire_bytes,
        "bytes": found.stored_bytes,
        "seconds": None if found.seconds is None else round(found.seconds, 2),
        "pace": {
            "workers": means.workers,
            "slots": means.slots,
            "slowest_host": sampled.slowest_host
            if sampled.host_seconds > sampled.slot_seconds / means.slots
            else None,
        },
        "credits": asdict(found.images.times(means.unit_price))
        | {
            "per_image": means.unit_price,
            "user": means.email,
            "balance": means.balance,
            "monthly_left": means.monthly_left,
            "images_covered": means.images,
        },
        "interrupted": trial.stopped,
        "detail": "; ".join(filter(None, (supply.detail, drawn.detail))) or None,
    }
    return quote | {"notes": list(notes(quote))}


def notes(quote: Mapping[str, Any]) -> Iterator[str]:
    """What to know about these figures."""
    if quote["interrupted"]:
        yield "It was interrupted: this is what is known so far."
    if quote["detail"]:
        yield f"The source: {quote['detail']}."
    if quote["sample"]["size"]:
        yield from _about_source(quote)
        yield from _about_sample(quote)
        yield from _about_credits(quote)
    else:
        yield "No candidate was tried, so nothing can be said."
    yield "Nothing was stored and nothing was charged."


def _about_source(quote: Mapping[str, Any]) -> Iterator[str]:
    if not quote["sample"]["at_random"]:
        yield "The first results were tried; those behind them may be of another kind."
    if quote["at_least"]:
        yield "Only the pages that it begins with were read: what others bring is not in these figures."
    if quote["candidates"] is None:
        yield "Nobody says how many candidates there are: there may be fewer images than that."


def _about_sample(quote: Mapping[str, Any]) -> Iterator[str]:
    sample = quote["sample"]
    if sample["unanswered"]:
        yield (
            f"{counted(sample['unanswered'], 'candidate')} had no outcome when the time was over: the range "
            "takes them for images at its end, and for none at its beginning."
        )
    if sample["not_tried"]:
        yield (
            f"{counted(sample['not_tried'], 'more candidate')} could not be tried in time, as their hosts want "
            "to be asked slowly: hosts that are quicker have more weight than they should."
        )
    duplicates = sample["failures"].get(Reason.DUPLICATE, 0)
    if duplicates > sample["repeated_urls"] and sample["size"] != quote["candidates"]:
        yield "Equal pictures at different URLs were seen even in the sample: there are more of them in the whole."


def _about_credits(quote: Mapping[str, Any]) -> Iterator[str]:
    price = quote["credits"]
    if price["images_covered"] < quote["images"]["expected"]:
        yield (
            f"The credits are enough for {counted(price['images_covered'], 'image')}: the job would wait there. "
            f"`pixtrawl credits grant AMOUNT --user {price['user']}` adds some, `pixtrawl credits limit` raises "
            "the month's limit."
        )
