"""A door and a fetch for tests, with a sleep that does not wait and a random source that repeats."""

import contextlib
import random

import pytest

from tests.support.hostile_server import loopback_settings
from worker.errors import CandidateError
from worker.fetch import fetch
from worker.transport import GuardedTransport

PIXELS = bytes(range(256)) * 40


class Sleeps(list):
    """A sleep that only writes down how long it was asked to wait."""

    async def __call__(self, seconds):
        """Note the wait."""
        self.append(seconds)


@contextlib.asynccontextmanager
async def door(**overrides):
    """Open a transport and give a function that fetches through it."""
    settings = loopback_settings(**overrides)
    async with GuardedTransport(settings) as transport:

        async def get(url, **named):
            named = {"random": random.Random(7), "sleep": Sleeps(), **named}
            return await fetch(transport, url, settings, **named)

        get.transport = transport
        yield get


async def failure(awaitable):
    """Await what must fail, and give its CandidateError."""
    with pytest.raises(CandidateError) as caught:
        await awaitable
    return caught.value
