"""Redis transports of kombu whose reading of a subscription ends.

kombu reads a subscription without any limit of time. When there is nothing to be read after all, because the
connection was made anew in between or half a message came, the whole worker stands still in it: it takes no message
and hears no signal.
"""

from functools import partial
from typing import Any

from kombu.transport import redis
from kombu.utils.objects import cached_property

READ_SECONDS_MAX = 2


class _Bounded:
    """Of a channel: nothing to read is nothing after a moment, and half a message is a lost connection."""

    @cached_property
    def subclient(self) -> Any:
        """kombu's client of the subscription, which waits no longer than READ_SECONDS_MAX."""
        client = super().subclient  # type: ignore[misc] # Of kombu's channel, the other base.
        client.parse_response = partial(client.parse_response, block=False, timeout=READ_SECONDS_MAX)
        return client


class Channel(_Bounded, redis.Channel):
    """For one Redis."""


class SentinelChannel(_Bounded, redis.SentinelChannel):
    """For Redis behind sentinels."""


class Transport(redis.Transport):
    """For ``redis://``, ``rediss://`` and ``redis+socket://``."""

    Channel = Channel


class SentinelTransport(redis.SentinelTransport):
    """For ``sentinel://``."""

    Channel = SentinelChannel
