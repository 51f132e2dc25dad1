"""Log lines: an event word and fields, to standard error. Nothing here decides what is worth a line."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from models.settings import Settings

CHATTY = {
    "PIL": "INFO",
    "alembic": "WARNING",
    "celery.app.trace": "WARNING",
    "celery.worker.strategy": "WARNING",
    "flower.inspector": "ERROR",
    "kombu": "WARNING",
    "tornado.access": "WARNING",
}
"""Libraries that say at a lower level what nobody needs to read."""


def configure_logs(settings: Settings) -> None:
    """Send structlog's and the standard library's records through one formatter to standard error."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_json
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            pad_level=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name, level in CHATTY.items():
        logging.getLogger(name).setLevel(level)


@contextmanager
def hushed(settings: Settings) -> Iterator[None]:
    """Within a command that does a worker's work: its events go to standard error, and only for who debugs."""
    before = structlog.get_config()
    level = logging.DEBUG if settings.log_level == "debug" else logging.CRITICAL
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)
