"""When a provider may be asked: its published pace, kept by the whole cluster together (pace.lua decides).

Without Redis nobody is asked: providers' terms count all of us as one, and no child knows what the others do.
"""

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files

from redis.asyncio import Redis

from worker.shared import AWAY
from worker.sources.provider import Pace, ProviderWait

KEY = "pixtrawl:provider:"
HORIZON_SECONDS = 5.0
"""A start that is no further away is waited for; beyond, the step makes room for others."""
POLL_SECONDS = 0.1
LEASE_SECONDS = 90.0
"""A request whose child is silent for so long is over: longer than one may take."""
AWAY_SECONDS = 5.0
WHY = {
    "pace": "{name} is asked {rate:g} times a minute at most",
    "busy": "{name} is asked {at_once} times at once at most",
    "per_hour": "{name} is asked {per_hour:,} times an hour at most",
    "per_day": "{name} is asked {per_day:,} times a day at most",
}


class PaceWait(ProviderWait):
    """We keep to a provider's published pace: it was not asked."""


@dataclass(slots=True)
class Turn:
    """Leave to make one request. ``wait_seconds`` and ``why`` are what the provider asked for with its answer."""

    token: str
    wait_seconds: float = 0.0
    why: str = ""
    verdict: str = ""

    def left_alone(self, seconds: float, why: str) -> None:
        """It asks for that: nobody asks it for so long."""
        self.wait_seconds, self.why = seconds, why

    def failed(self, why: str) -> None:
        """It gave no answer, or none of use: nobody asks it for a second, and twice as long each further time."""
        self.verdict, self.why = "failed", why

    def answered(self) -> None:
        """It works."""
        self.verdict = "answered"


class Pacer:
    """One provider, for whoever shares this Redis and the provider's settings: another key has another pace."""

    def __init__(self, redis: Redis, name: str, pace: Pace, identity: str = "") -> None:
        self._name = name
        self._pace = pace
        self._decide = redis.register_script(files("worker").joinpath("pace.lua").read_text("utf-8"))
        key = f"{KEY}{name}:{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
        self._keys = [key, f"{key}:under_way", f"{key}:starts"]
        self._rules = {
            "interval": round(1000 / pace.requests_per_second),
            "at_once": pace.at_once,
            "per_hour": pace.per_hour or 0,
            "per_day": pace.per_day or 0,
            "horizon": round(HORIZON_SECONDS * 1000),
            "poll": round(POLL_SECONDS * 1000),
            "lease": round(LEASE_SECONDS * 1000),
        }

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Around one request, once it is its turn. Raises ProviderWait while the provider is to be left alone,
        PaceWait when no turn comes soon.
        """
        turn = Turn(uuid.uuid4().hex)
        try:
            await self._take(turn)
            yield turn
        finally:
            # Also of a cancelled step, which may have been given a turn without knowing it.
            await asyncio.shield(self._end(turn))

    async def _take(self, turn: Turn) -> None:
        deadline = time.monotonic() + HORIZON_SECONDS
        while True:
            try:
                answer = await self._decide(
                    keys=self._keys, args=["take", json.dumps(self._rules | {"token": turn.token})]
                )
            except AWAY as error:
                raise PaceWait(
                    AWAY_SECONDS, f"Redis is away, so nobody asks {self._name}: {error}"
                ) from error
            granted, seconds = answer[0], answer[1] / 1000
            if granted:
                await asyncio.sleep(seconds)
                return
            why = answer[2].decode()
            if why == "asked":
                raise ProviderWait(seconds, answer[3].decode())
            if why != "busy" or time.monotonic() >= deadline:
                raise PaceWait(seconds, self._say(why))
            await asyncio.sleep(seconds)

    async def _end(self, turn: Turn) -> None:
        told = {
            "token": turn.token,
            "wait": round(turn.wait_seconds * 1000),
            "why": turn.why,
            "verdict": turn.verdict,
        }
        with suppress(*AWAY):  # The lease of the request runs out.
            await self._decide(keys=self._keys, args=["end", json.dumps(told)])

    def _say(self, why: str) -> str:
        pace = self._pace
        return WHY[why].format(
            name=self._name,
            rate=60 * pace.requests_per_second,
            at_once=pace.at_once,
            per_hour=pace.per_hour,
            per_day=pace.per_day,
        )
