"""A door and a fetch for tests, with a sleep that does not wait and a random source that repeats."""

import contextlib
import time
from random import Random

import pytest

from models.outcomes import Candidate
from tests.support.hostile_server import loopback_settings
from worker.errors import CandidateError
from worker.fetch import NO_HOOKS, admit, step
from worker.transport import GuardedTransport
from worker.visit import Visit

PIXELS = bytes(range(256)) * 40


class Sleeps(list):
    """A sleep that only writes down how long it was asked to wait."""

    async def __call__(self, seconds):
        """Note the wait."""
        self.append(seconds)


async def fetch(
    transport, url, settings, *, random=None, sleep=None, clock=time.monotonic, hooks=NO_HOOKS, lease=None
):
    """Fetch a URL to the end, request by request, as a worker does but for waiting for turns."""
    visit = Visit(Candidate(0, url, 1), lease or transport.memory.lease())
    random, sleep = random or Random(7), Sleeps() if sleep is None else sleep
    try:
        while True:
            try:
                admitted = await admit(visit, hooks)
                fetched = (
                    await step(transport, visit, settings, clock=clock, hooks=hooks) if admitted else None
                )
            except CandidateError as error:
                delay_seconds = visit.again_in(error, settings, random)
                if delay_seconds is None:
                    raise
                await sleep(delay_seconds)
            else:
                if fetched is not None:
                    return fetched
    finally:
        if lease is None:
            visit.lease.release()


@contextlib.asynccontextmanager
async def door(**overrides):
    """Open a transport and give a function that fetches through it."""
    settings = loopback_settings(**overrides)
    async with GuardedTransport(settings) as transport:

        async def get(url, **named):
            return await fetch(transport, url, settings, **named)

        get.transport = transport
        yield get


async def failure(awaitable):
    """Await what must fail, and give its CandidateError."""
    with pytest.raises(CandidateError) as caught:
        await awaitable
    return caught.value
