"""The client of what workers share: every way in which Redis can be named leads to the same server."""

import asyncio
from pathlib import Path

import pytest

from models.settings import Settings, read_settings
from scheduler.embedded_valkey import find_valkey
from tests.support.processes import free_port, started
from worker.shared import AWAY, close_redis, open_redis, read_sentinels


def ask(settings: Settings, seconds: float = 20) -> bytes:
    """Write a value and read it, as soon as the server is there."""

    async def run() -> bytes:
        redis = open_redis(settings)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        await redis.set("pixtrawl:test", b"\xffvalue", ex=60)
                        return await redis.get("pixtrawl:test") or b""
                    except AWAY:
                        await asyncio.sleep(0.05)
        finally:
            await close_redis(redis)

    return asyncio.run(run())


def test_the_embedded_server_is_reached_by_its_socket(services, database_url) -> None:
    """As kombu names it, redis+socket://."""
    assert services.redis_url.startswith("redis+socket://")
    assert ask(read_settings(database_url=database_url, redis_url=services.redis_url)) == b"\xffvalue"


def test_a_server_is_reached_by_address_and_by_its_sentinel(database_url, tmp_path: Path) -> None:
    """redis:// with a password, and sentinel:// that names its master."""
    port, guard_port = free_port(), free_port()
    configuration = tmp_path / "sentinel.conf"
    configuration.write_text(
        f"port {guard_port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {port} 1\n"
        "sentinel auth-pass main secret\n"
    )
    server = [find_valkey(), "--port", port, "--bind", "127.0.0.1", "--requirepass", "secret", "--save", ""]
    guard = [find_valkey(), configuration, "--sentinel"]
    with (
        (tmp_path / "log").open("wb") as log,
        started(*server, stdout=log, cwd=tmp_path),
        started(*guard, stdout=log, cwd=tmp_path),
    ):
        by_address = read_settings(database_url=database_url, redis_url=f"redis://:secret@127.0.0.1:{port}/0")
        assert ask(by_address) == b"\xffvalue"
        by_sentinel = read_settings(
            database_url=database_url,
            redis_url=f"sentinel://:secret@127.0.0.1:{guard_port}/0",
            redis_sentinel_master="main",
        )
        assert ask(by_sentinel) == b"\xffvalue"


def test_a_silent_server_is_away(database_url) -> None:
    """No command waits for long, and none is sent twice."""
    with pytest.raises(TimeoutError):
        ask(read_settings(database_url=database_url, redis_url=f"redis://127.0.0.1:{free_port()}"), 0.5)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("sentinel://a:1", ([("a", 1)], 0, None)),
        ("sentinel://:s%40@a:1/3;sentinel://b:2", ([("a", 1), ("b", 2)], 3, "s@")),
        ("sentinel://a", ([("a", 26379)], 0, None)),
    ],
)
def test_sentinels_are_named_as_kombu_names_them(url, parts) -> None:
    """Several, parted by semicolons; the first path is the database."""
    assert read_sentinels(url) == parts
