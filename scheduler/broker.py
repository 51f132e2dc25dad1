"""The scheduler's side of the message queue: send doorbells, count those that nobody has taken.

A message that cannot be sent is not an error here: its row says 'queued', and the rescue sends it again.
"""

from collections.abc import Iterable
from typing import Any

import structlog
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from models.queueing import Message
from models.settings import Settings
from worker.app import CRAWL_CHUNK, QUEUE, app, celery_priority, configuration

AWAY = (OperationalError, RedisError, OSError)
RETRY_ONCE = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
SOON = {**RETRY_ONCE, "interval_max": 0, "socket_timeout": 2, "socket_connect_timeout": 2}
"""How a leader waits for Redis: less, in all, than its session in PostgreSQL may be idle."""

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
            try:
                app.send_task(
                    CRAWL_CHUNK,
                    args=(message.chunk_id, message.attempt),
                    task_id=f"chunk-{message.chunk_id}.{message.attempt}",
                    argsrepr=f"job={message.job_id} chunk={message.chunk_id} attempt={message.attempt}",
                    priority=celery_priority(message.priority),
                    retry_policy=RETRY_ONCE,
                )
            except AWAY as error:
                log.warning("message_not_sent", chunk=message.chunk_id, error=str(error))
                self.reachable = False
                return

    def close(self) -> None:
        """Close the connections."""
        app.close()


def ping_broker(settings: Settings) -> None:
    """Raise kombu's OperationalError when Redis is not there."""
    options = configuration(settings)["broker_transport_options"] | SOON
    with Connection(settings.broker_url, transport_options=options) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0)
