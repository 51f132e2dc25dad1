"""What a worker's children learn of its end."""

import pytest
from celery.signals import worker_shutting_down

from worker.presence import LEAVING, leaving


@pytest.fixture(autouse=True)
def staying():
    """Afterwards as before: nobody leaves."""
    yield
    LEAVING[0] = 0


def test_children_are_told_by_the_signal_handler_itself():
    """A parent that waits for Redis runs nothing but its signal handler: that tells them already."""
    assert not leaving()
    worker_shutting_down.send(sender="worker@test", sig="SIGTERM", how="Warm", exitcode=0)
    assert leaving()
