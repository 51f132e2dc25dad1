"""Several questions to one provider, a few at once; answers count as far as they came. It never connects."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from worker.sources.provider import ProviderWait

SECONDS_MAX = 20.0

Key = TypeVar("Key")
Record = TypeVar("Record")


async def ask_each(
    keys: Sequence[Key], one: Callable[[Key], Awaitable[Record]], at_once: int
) -> list[Record]:
    """The records of the keys, in their order, up to the first for which the provider asked to wait, or until
    SECONDS_MAX are over.

    So a step goes on where the provider had enough of it, instead of beginning anew for ever. Raises ProviderWait
    when that was the very first one, and whatever else ``one`` raises.
    """
    records: list[Record] = []
    ends_at = time.monotonic() + SECONDS_MAX
    for start in range(0, len(keys), at_once):
        answers = await asyncio.gather(
            *(one(key) for key in keys[start : start + at_once]), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, ProviderWait) and records:
                return records
            if isinstance(answer, BaseException):
                raise answer
            records.append(answer)
        if time.monotonic() >= ends_at:
            break
    return records
