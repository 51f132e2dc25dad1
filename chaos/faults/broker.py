"""Messages that are lost, doubled, reordered or late, and a Redis that is gone, full or silent."""

import random
import time
from typing import Any

import redis

from chaos.processes import until
from chaos.registry import fault
from chaos.servers import start
from chaos.system import System
from worker.app import QUEUE

COPIES = 5
WAITING_MAX = 50


def _client(system: System) -> Any:
    """A client of the harness's own, past the proxy."""
    return redis.Redis(unix_socket_path=str(system.valkey.socket))


def _queues(client: Any) -> list[bytes]:
    """Keys of the lists in which messages wait, one for each priority."""
    return [key for key in client.keys(f"{QUEUE}*") if client.type(key) == b"list"]


def _messages(client: Any) -> list[tuple[bytes, bytes]]:
    """(list, message) of every message that waits."""
    return [(key, message) for key in _queues(client) for message in client.lrange(key, 0, -1)]


def _wait_for_messages(client: Any) -> set[tuple[bytes, bytes]]:
    """Messages that wait, each once; first what earlier faults added must have been dropped."""
    until(lambda: len(_messages(client)) < WAITING_MAX, "the end of the copies")
    return until(lambda: set(_messages(client)), "a message that waits")


@fault(full=50)
def lose_messages(system: System, _chance: random.Random) -> None:
    """Every message that waits is lost."""
    with _client(system) as client:
        for key, message in _wait_for_messages(client):
            client.lrem(key, 0, message)


@fault(full=20)
def duplicate_messages(system: System, _chance: random.Random) -> None:
    """Every message that waits is there five times more."""
    with _client(system) as client:
        for key, message in _wait_for_messages(client):
            client.lpush(key, *[message] * COPIES)


@fault(full=20)
def reorder_messages(system: System, chance: random.Random) -> None:
    """The messages that wait change places, whatever their priority."""
    with _client(system) as client:
        waiting = sorted(_wait_for_messages(client))
        keys = [key for key, _ in waiting]
        chance.shuffle(keys)
        for (key, message), other in zip(waiting, keys, strict=True):
            if client.lrem(key, 1, message):
                client.lpush(other, message)


@fault(full=20)
def redeliver_messages(system: System, _chance: random.Random) -> None:
    """Messages come again when their chunks have begun or ended, as after too short a visibility timeout."""
    with _client(system) as client:
        seen = _wait_for_messages(client)
        messages = {message for _, message in seen}
        until(lambda: not any(message in messages for _, message in _messages(client)), "their delivery")
        for key, message in seen:
            client.lpush(key, message)


@fault(full=20)
def flush_all(system: System, _chance: random.Random) -> None:
    """FLUSHALL."""
    with _client(system) as client:
        client.flushall()


@fault(full=50)
def restart_redis(system: System, chance: random.Random) -> None:
    """Redis is stopped, forgets everything, and is started again after up to a second."""
    system.valkey.stop()
    time.sleep(chance.random())
    start(system.valkey)


@fault(full=2, deadline_seconds=120)
def black_hole_redis(system: System, chance: random.Random) -> None:
    """Redis is silent for two minutes (short: seconds), and no connection survives that."""
    with system.broker.black_hole():
        time.sleep(120 if system.full else chance.uniform(3, 5))


@fault(full=20)
def reset_redis_connections(system: System, _chance: random.Random) -> None:
    """Every connection to Redis is reset."""
    system.broker.reset()


@fault(full=5)
def fill_redis(system: System, chance: random.Random) -> None:
    """Redis is at its maxmemory for a while and refuses to store anything."""
    with _client(system) as client:
        client.config_set("maxmemory", "1")
        try:
            time.sleep(chance.uniform(5, 15) if system.full else 2)
        finally:
            client.config_set("maxmemory", "0")
