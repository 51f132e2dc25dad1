"""What a worker's children learn of its end."""

import pytest
from celery.signals import worker_shutting_down
from kombu.asynchronous import Hub

from worker.presence import LEAVING, TellChildren, leaving


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


def test_a_loop_that_waits_is_woken():
    """Celery's own looks once a second whether a signal came; this one waits for longer."""
    step, hub = TellChildren(None), Hub()
    step.start(None)
    step.register_with_event_loop(None, hub)
    poll, events = hub.poller.poll, []

    def wait(_seconds: float) -> list[object]:
        events.extend(poll(10))
        return events

    hub.poller.poll = wait
    worker_shutting_down.send(sender="worker@test", sig="SIGTERM", how="Warm", exitcode=0)
    try:
        next(hub.create_loop())
    finally:
        hub.close()
    assert events
