"""The Celery application. A message is a doorbell: what is to be done, and whether, stands in PostgreSQL.

``celery -A worker.app worker`` and ``pixtrawl worker`` are the same program. Holds configuration only.
"""

from typing import Any

import celery.signals
from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from models.logs import configure_logs
from models.settings import Settings, read_settings
from worker.outages import quieten_broker_outages

QUEUE = "pixtrawl"
CRAWL_CHUNK = "crawl_chunk"
DISCOVER = "discover"
"""Names of the tasks, so that a sender need not import what a worker needs."""
PRIORITIES = list(range(10))
# By the scheme of a URL, instead of kombu's own. Here, for kombu remembers what it has once looked up.
TRANSPORT_ALIASES.update(
    {
        "redis": "worker.pubsub:Transport",
        "rediss": "worker.pubsub:Transport",
        "sentinel": "worker.pubsub:SentinelTransport",
    }
)


class PixtrawlCelery(Celery):
    """Celery that takes its configuration from Settings: those given, or those of the environment."""

    _settings: Settings | None = None

    @property
    def settings(self) -> Settings:
        """Settings of this process, read from the environment unless given."""
        if self._settings is None:
            self._settings = read_settings()
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._settings = settings

    def on_configure(self) -> None:  # type: ignore[override] # Celery calls either a signal or a method.
        """Configure on first use, so that importing this module needs no services."""
        self.config_from_object(configuration(self.settings))


def configuration(settings: Settings) -> dict[str, Any]:
    """Celery's settings: early acknowledgement, no prefetch, ten priorities; docs/decisions.md says why."""
    transport = {
        "priority_steps": PRIORITIES,
        "queue_order_strategy": "priority",
        "socket_timeout": 10,
        "socket_connect_timeout": 10,
        "socket_keepalive": True,
        "health_check_interval": 10,
    }
    if settings.redis_sentinel_master:
        transport["master_name"] = settings.redis_sentinel_master
    return {
        "broker_url": settings.broker_url,
        "broker_transport_options": transport,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": 10,
        # A Redis that refuses a command (it is full, read-only, loading) is away; it must not end the worker.
        "broker_channel_error_retry": True,
        "task_default_queue": QUEUE,
        "task_default_priority": 4,
        "task_ignore_result": True,
        "task_acks_late": False,
        "task_send_sent_event": False,
        "worker_pool": "worker.pool:Pool",
        "worker_send_task_events": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "event_queue_expires": 60,
        "control_queue_expires": 60,
    }


def celery_priority(priority: int) -> int:
    """Celery's priority on Redis (0 most urgent, 9 least) for ours (10 most urgent, 0 least)."""
    return 9 - min(9, priority)


app = PixtrawlCelery("pixtrawl", include=["worker.tasks"], set_as_current=True)


@celery.signals.setup_logging.connect
def _setup_logging(**_: object) -> None:
    configure_logs(app.settings)
    quieten_broker_outages()
