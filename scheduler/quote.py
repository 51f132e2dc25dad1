"""What a job would bring and cost, before it is made: some of its candidates are tried, and nothing is written.

The candidates are drawn (worker/sources/drawing.py), crawled (worker/sample.py) and reckoned with (estimate.py);
what was drawn from and what was fetched lies in a folder that is thrown away.
"""

import os
import random as randomness
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Engine

from models.database import transaction
from models.jobs import SourceKind
from models.members import Owner
from models.reports import account_report, live_workers
from models.settings import Settings
from models.workers import live_slots
from scheduler.copying import Copy, RequestError
from scheduler.enqueue import Supply, Wanted
from scheduler.estimate import count_duplicates, sample_size
from scheduler.quote_report import Means, Trial, describe
from scheduler.split import READERS
from worker.child import Child
from worker.helper import HelperError
from worker.sample import SampleRun
from worker.sources.drawing import Drawn, draw, first_found, on_start_pages
from worker.store import open_store

SECONDS_MAX = 60.0
ASKING_SECONDS_MAX = 20.0
"""Of these for asking a source that asks the web."""


@dataclass(frozen=True, slots=True)
class Ears:
    """What a quote listens to and whom it tells, while it takes its time: ``stop`` ends it early, from the moment
    when ``asking`` was called; ``begun`` hears how many of how many are tried, ``done`` how many have an outcome.
    """

    stop: Callable[[], bool] = lambda: False
    asking: Callable[[], None] = lambda: None
    begun: Callable[[int, int | None], None] = lambda _size, _population: None
    done: Callable[[int], None] = lambda _: None


def make_quote(
    settings: Settings,
    engine: Engine,
    supply: Supply,
    wanted: Wanted,
    owner: Owner,
    *,
    random: randomness.Random,
    seconds_max: float = SECONDS_MAX,
    ears: Ears = Ears(),
) -> dict[str, Any]:
    """The object of ``submit --quote --json``. Takes ``seconds_max`` at most once the input is read.

    Raises RequestError and StoreError as ``submit`` does, and StuckError when this process has to end.
    """
    means = find_means(settings, engine, owner)
    with TemporaryDirectory(prefix="pixtrawl-quote-") as folder:
        place = Path(folder).as_uri()
        try:
            trial = try_some(settings, supply, wanted, place, random, seconds_max, ears)
        except HelperError as error:
            raise RequestError(f"No picture can be looked at here, because {error}.") from None
    return describe(supply, wanted, trial, means)


def find_means(settings: Settings, engine: Engine, owner: Owner) -> Means:
    """What there is now. Without any worker it is what ``pixtrawl run`` would start here."""
    with transaction(engine) as session:
        account = account_report(session, owner.email)
        workers, slots = live_workers(session), live_slots(session)
    if account is None:
        raise RequestError(f"{owner.email} has no credit account, so nothing can be paid for.")
    return Means(
        email=owner.email,
        balance=account["balance"],
        monthly_left=account["monthly_limit"] - account["monthly_usage"],
        workers=workers,
        slots=slots if workers else os.cpu_count() or 1,
        unit_price=settings.credits_per_image,
    )


def try_some(
    settings: Settings,
    supply: Supply,
    wanted: Wanted,
    place: str,
    random: randomness.Random,
    seconds_max: float,
    ears: Ears,
) -> Trial:
    """Draw and crawl, with everything in ``place``."""
    drawn = draw_from(supply, place, random) if isinstance(supply, Copy) else None
    ears.asking()
    began = time.monotonic()
    child = Child(settings, in_pool=False)
    try:
        if drawn is None:
            asking_ends = began + min(ASKING_SECONDS_MAX, seconds_max)
            drawn = child.run(ask_for(child, supply, wanted, random, asking_ends, ears.stop))
        ears.begun(len(drawn.candidates), drawn.population)
        run = child.run(_open(child, drawn, place, wanted))
        left = max(1.0, began + seconds_max - time.monotonic())
        sampled = child.run(run.run(left, ears.stop, ears.done))
    finally:
        child.close()
    outcomes = count_duplicates(sampled.outcomes, drawn.repeated)
    return Trial(drawn, sampled, outcomes, stopped=ears.stop())


def draw_from(copy: Copy, place: str, random: randomness.Random) -> Drawn:
    """Some candidates of inputs, which are read as ``submit`` reads them."""
    store = open_store(place)
    store.put_stream(copy.name, copy.blocks())
    size = sample_size(copy.candidates)
    return draw(READERS[copy.kind], store, copy.source, copy.candidates, size, random)


async def ask_for(
    child: Child,
    supply: Supply,
    wanted: Wanted,
    random: randomness.Random,
    ends: float,
    stop: Callable[[], bool],
) -> Drawn:
    """The candidates of a source that asks the web that come first."""
    if supply.kind is SourceKind.PAGES:
        return await on_start_pages(
            child, supply.source, wanted.ignored_opt_outs, sample_size, random, ends, stop
        )
    size = sample_size(wanted.max_images or supply.max_images)
    return await first_found(child, supply.kind, supply.source, size, ends, stop)


async def _open(child: Child, drawn: Drawn, place: str, wanted: Wanted) -> SampleRun:
    """Inside the running loop, where a child's parts are made."""
    return SampleRun(
        child,
        drawn.candidates,
        place,
        verification=wanted.verification,
        ignored_opt_outs=wanted.ignored_opt_outs,
    )
