"""One candidate to its outcome in a real child, as in a chunk, but for the turns of politeness and for owners."""

import asyncio

from models.outcomes import Candidate, Outcome
from worker.candidate import Decoder, PlainFetcher, begin_visit, crawl_visit
from worker.child import Child
from worker.host import Host
from worker.store import Store
from worker.visit import Visit


async def crawl_candidate(child: Child, store: Store, candidate: Candidate, decoder: Decoder) -> Outcome:
    """Crawl it, request by request, without a pause."""
    begun = begin_visit(child, candidate)
    if not isinstance(begun, Visit):
        return begun
    fetcher = PlainFetcher(child.transport, child.settings, child.opt_outs, frozenset())
    host = Host("any", asyncio.Event(), lambda _: None, slots=1)
    while True:
        turn = host.begin()
        outcome = await crawl_visit(child, store, begun, turn, decoder, fetcher)
        turn.close()
        if not isinstance(outcome, float):
            return outcome
