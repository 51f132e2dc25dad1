"""The scheduler's side of the message queue: send doorbells, count those that nobody has taken, withdraw some.

A message that cannot be sent is not an error here: its row says 'queued', and the rescue sends it again.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import structlog
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from models.discovery import StepMessage
from models.queueing import Message
from models.settings import Settings
from worker.app import CRAWL_CHUNK, DISCOVER, PRIORITIES, QUEUE, app, celery_priority, configuration

AWAY = (OperationalError, RedisError, OSError)
RETRY_ONCE = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
SOON = {**RETRY_ONCE, "interval_max": 0, "socket_timeout": 2, "socket_connect_timeout": 2}
"""How a leader waits for Redis: less, in all, than its session in PostgreSQL may be idle."""
PAGE = 500
TASK_ID = re.compile(r"chunk-(\d{1,18})\.\d+")

log = structlog.get_logger()


class Broker:
    """Redis as the scheduler sees it. ``reachable`` is what the last ``waiting`` found."""

    def __init__(self, settings: Settings) -> None:
        app.settings = settings
        app.conf.broker_transport_options = app.conf.broker_transport_options | SOON
        self.reachable = True

    def waiting(self) -> int | None:
        """Messages in the queue; None while Redis is away (said once, and once when it is back)."""
        try:
            with app.connection_for_write() as connection:
                channel: Any = connection.default_channel
                count = int(channel.queue_declare(queue=QUEUE).message_count)
        except AWAY as error:
            if self.reachable:
                log.warning("broker_away", error=str(error))
            self.reachable = False
            return None
        if not self.reachable:
            log.info("broker_back")
        self.reachable = True
        return count

    def send(self, messages: Iterable[Message]) -> None:
        """Ring for each chunk, after its row was committed."""
        for message in messages:
            task_id = f"chunk-{message.chunk_id}.{message.attempt}"
            words = f"job={message.job_id} chunk={message.chunk_id} attempt={message.attempt}"
            if not self._ring(
                CRAWL_CHUNK, (message.chunk_id, message.attempt), task_id, words, message.priority
            ):
                return

    def ask(self, messages: Iterable[StepMessage]) -> None:
        """Ring for each step of a source, after its row was committed."""
        for message in messages:
            task_id = f"discover-{message.job_id}.{message.step}"
            words = f"job={message.job_id} step={message.step}"
            if not self._ring(DISCOVER, (message.job_id, message.step), task_id, words, message.priority):
                return

    def _ring(self, task: str, arguments: tuple[int, int], task_id: str, words: str, priority: int) -> bool:
        """Send one message; ``words`` make it readable in Flower. False: Redis is away."""
        try:
            app.send_task(
                task,
                args=arguments,
                task_id=task_id,
                argsrepr=words,
                priority=celery_priority(priority),
                retry_policy=RETRY_ONCE,
            )
        except AWAY as error:
            log.warning("message_not_sent", task_id=task_id, error=str(error))
            self.reachable = False
        return self.reachable

    def close(self) -> None:
        """Close the connections."""
        app.close()


def ping_broker(settings: Settings) -> None:
    """Raise kombu's OperationalError when Redis is not there."""
    with _connection(settings) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)


def count_waiting(settings: Settings) -> int:
    """Messages in the queue. Raises one of AWAY when Redis is not there."""
    with _connection(settings) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        channel: Any = connection.default_channel
        return int(channel.queue_declare(queue=QUEUE).message_count)


def withdraw_messages(
    settings: Settings, existing: Callable[[Collection[int]], Collection[int]], page: int = PAGE
) -> int:
    """Take the messages of chunks without a row out of the queue; how many.

    ``existing`` says which chunks have a row; it is asked once a message was seen, which is sent after its row
    was committed. A message in a worker's hands is left: the worker finds no row and drops it.
    Raises kombu's OperationalError or RedisError when Redis is away.
    """
    with _connection(settings) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
        channel: Any = connection.default_channel
        keys = [QUEUE if not priority else f"{QUEUE}{channel.sep}{priority}" for priority in PRIORITIES]
        return sum(_withdraw_from(channel.client, key, existing, page) for key in keys)


def _withdraw_from(
    client: Any, key: str, existing: Callable[[Collection[int]], Collection[int]], page: int
) -> int:
    """The same for one list. Senders push to its left and workers pop from its right: a walk from the left may
    meet a message twice, and misses none.
    """
    withdrawn = first = 0
    while messages := client.lrange(key, first, first + page - 1):
        chunks = {message: _chunk_of(message) for message in messages}
        there = existing({chunk for chunk in chunks.values() if chunk is not None})
        stale = {message for message, chunk in chunks.items() if chunk is not None and chunk not in there}
        withdrawn += sum(client.lrem(key, 0, message) for message in stale)
        first += sum(message not in stale for message in messages)
    return withdrawn


def _chunk_of(message: bytes) -> int | None:
    """The chunk that a message rings for; None if it is not one of ours."""
    try:
        headers = json.loads(message)["headers"]
        found = TASK_ID.fullmatch(headers["id"]) if headers["task"] == CRAWL_CHUNK else None
    except (ValueError, LookupError, TypeError):
        return None
    return int(found[1]) if found else None


def _connection(settings: Settings) -> Connection:
    options = configuration(settings)["broker_transport_options"] | SOON
    return Connection(settings.broker_url, transport_options=options)
