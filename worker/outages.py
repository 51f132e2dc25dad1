"""One clear line when Redis is away and one when it is back, instead of Celery's own paragraphs about it."""

import logging
import warnings

import structlog
from celery.exceptions import CPendingDeprecationWarning

CONSUMER = "celery.worker.consumer.consumer"
CONNECTION = "celery.worker.consumer.connection"

log = structlog.get_logger()


class BrokerOutage(logging.Filter):
    """Takes what Celery's consumer says about its connection, and says it once."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be written as it is."""
        words = record.getMessage()
        if "Cannot connect to" in words or "Connection to broker lost" in words:
            if not self.away:
                reason = record.args[1] if isinstance(record.args, tuple) else words
                log.warning("broker_away", error=str(reason).rstrip("."))
            self.away = True
            return False
        if words.startswith("Connected to") and self.away:
            log.info("broker_back")
            self.away = False
            return False
        if "Frequent restarts detected" in words:
            record.exc_info = None
        return "prefetch count" not in words


def quieten_broker_outages() -> None:
    """Put the filter before Celery's loggers; again does nothing. Retrying is the only way that we have set."""
    consumer = logging.getLogger(CONSUMER)
    if not any(isinstance(each, BrokerOutage) for each in consumer.filters):
        outage = BrokerOutage()
        consumer.addFilter(outage)
        logging.getLogger(CONNECTION).addFilter(outage)
    warnings.filterwarnings("ignore", message=r"\s*In Celery 5.1", category=CPendingDeprecationWarning)
