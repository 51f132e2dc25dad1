"""A worker's subscription to its controls: what has nothing to say does not hold the worker up."""

import contextlib
import time

import pytest
from kombu import Connection, Exchange, Queue

from models.settings import read_settings
from worker.app import PixtrawlCelery
from worker.pubsub import READ_SECONDS_MAX, Channel


@pytest.fixture
def connection(redis_url: str):
    """The broker as a worker reaches it."""
    app = PixtrawlCelery("test", set_as_current=False)
    app.settings = read_settings(redis_url=redis_url)
    with app.connection_for_read() as connection:
        yield connection


def test_a_subscription_without_news_is_left(connection: Connection) -> None:
    """kombu's own would read on until somebody writes, deaf to SIGTERM meanwhile."""
    channel = connection.default_channel
    assert isinstance(channel, Channel)
    heard: list[object] = []
    queue = Queue("ours", Exchange("controls", type="fanout"), auto_delete=True)
    with connection.Consumer(queue, callbacks=[lambda body, _: heard.append(body)], no_ack=True):
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.5)
        before = time.monotonic()
        assert not channel._receive()
        assert time.monotonic() - before < READ_SECONDS_MAX + 2
        connection.Producer().publish("shutdown", exchange="controls", serializer="json")
        connection.drain_events(timeout=10)
    assert heard == ["shutdown"]
