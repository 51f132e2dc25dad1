"""What workers share beside the queue: an asyncio client of the same Redis. Whatever is kept there may vanish.

Chunks, images and money never depend on it: without it every child goes by what it knows itself.
"""

from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from models.settings import Settings

AWAY = (RedisError, OSError, TimeoutError)
"""What a command raises while Redis is away, full, or not in a state to answer."""
ANSWER_SECONDS_MAX = 2.0
SENTINEL_PORT = 26379


def open_redis(settings: Settings) -> Redis:
    """A client for the loop that runs; it connects on first use. Answers are bytes. A command raises one of AWAY
    after ANSWER_SECONDS_MAX at the latest, and is never repeated. Closed by ``close_redis``.
    """
    options: dict[str, Any] = {
        "socket_timeout": ANSWER_SECONDS_MAX,
        "socket_connect_timeout": ANSWER_SECONDS_MAX,
        "retry": Retry(NoBackoff(), 0),
        "health_check_interval": 0,
    }
    scheme, _, rest = settings.broker_url.partition("://")
    if scheme == "sentinel":
        sentinel, database, password = read_sentinels(settings.broker_url)
        guards = Sentinel(  # type: ignore[no-untyped-call]
            sentinel, sentinel_kwargs=options, password=password, db=database, **options
        )
        master: Redis = guards.master_for(settings.redis_sentinel_master or "")
        return master
    url = f"unix://{rest.partition('?')[0]}" if scheme == "redis+socket" else settings.broker_url
    return Redis.from_url(url, **options)


async def close_redis(redis: Redis) -> None:
    """Close a client, and those by which it asked sentinels."""
    await redis.aclose()
    for guard in getattr(getattr(redis.connection_pool, "sentinel_manager", None), "sentinels", ()):
        await guard.aclose()


def read_sentinels(url: str) -> tuple[list[tuple[str, int]], int, str | None]:
    """(addresses, database, password) of kombu's form, ``sentinel://:password@host:port/0;sentinel://host:port``."""
    parts = [urlsplit(part) for part in url.split(";")]
    addresses = [(part.hostname or "localhost", part.port or SENTINEL_PORT) for part in parts]
    database = next((int(part.path[1:]) for part in parts if part.path[1:].isdigit()), 0)
    password = next((unquote(part.password) for part in parts if part.password), None)
    return addresses, database, password
