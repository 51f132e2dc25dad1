"""A transaction that is taken again for a while when others keep a row locked that it needs."""

import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.database import connection_lost, transaction, transient

BUSY_SECONDS_MAX = 60
"""How long it is taken again."""

Result = TypeVar("Result")


def patiently(engine: Engine, act: Callable[[Session], Result], say: Callable[[str], None]) -> Result:
    """What ``act`` returns, once its transaction is committed. ``say`` hears once that there is something to wait
    for. Raises DBAPIError when the connection is lost, or the lock outlasts all tries: nothing was written then.
    """
    deadline = time.monotonic() + BUSY_SECONDS_MAX
    told = False
    while True:
        try:
            with transaction(engine) as session:
                return act(session)
        except DBAPIError as error:
            if connection_lost(error) or not transient(error) or time.monotonic() > deadline:
                raise
            if not told:
                say("Others keep the job locked: trying again for a minute.")
            told = True
