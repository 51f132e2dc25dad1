"""How the pool of a worker's children ends."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from celery.concurrency import get_implementation
from kombu.asynchronous import Hub

from models.settings import read_settings
from tests.support.processes import until
from worker.app import configuration
from worker.pool import Pool, Processes
from worker.presence import LEAVING

SLEPT = 9
"""Exit code of a child that waits as billiard does."""


class Parent:
    """The parent of one child that waits for a task, and the loop in which it hears of it."""

    def __init__(self) -> None:
        self.hub = Hub()
        self.loop = self.hub.create_loop()
        self.pool = Processes(1, threads=False, enable_timeouts=True)
        self.pool.register_with_event_loop(self.hub)
        self.child = self.pool._pool[0]
        self.listen_until(lambda: self.pool._all_inqueues)

    def listen_until(self, condition: Callable[[], object]) -> None:
        """Run the loop until something holds."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline
            next(self.loop)


@pytest.fixture
def parent(monkeypatch) -> Iterator[Parent]:
    """A worker's parent; afterwards nobody leaves, and its child is gone."""
    monkeypatch.setattr("billiard.pool.time", SimpleNamespace(sleep=lambda _seconds: os._exit(SLEPT)))
    parent = Parent()
    yield parent
    LEAVING[0] = 0
    if parent.child.is_alive():
        os.kill(parent.child.pid, signal.SIGKILL)
        parent.child.join()
    parent.hub.close()


def test_a_task_that_nobody_confirmed_holds_nobody_up(parent: Parent) -> None:
    """A parent that leaves forgets it; its child would wait for half a minute to be told that it counts."""
    answer = parent.pool.apply_async(os.getpid)
    parent.listen_until(lambda: answer._write_to)
    assert not answer.accepted()
    LEAVING[0] = 1
    parent.pool.close()
    parent.pool.flush()
    parent.pool.join()
    assert parent.child.exitcode == 0


def test_a_child_that_has_ended_loses_no_result(parent: Parent) -> None:
    """What it has said is heard after its end, by a parent that had heard nothing of the task yet."""
    answer = parent.pool.apply_async(os.getpid)
    parent.listen_until(lambda: answer._write_to)
    LEAVING[0] = 1
    parent.pool.close()
    parent.pool._stop_task_handler(parent.pool._task_handler)
    until(lambda: not parent.child.is_alive(), "the end of the child")
    assert parent.child.exitcode == 0
    assert not answer.ready()
    parent.pool.join()
    assert answer.get(0) == parent.child.pid


def test_celery_is_told_to_use_it() -> None:
    """By its configuration, so whichever command starts the worker."""
    settings = read_settings(redis_url="redis://127.0.0.1:1/0")
    assert get_implementation(configuration(settings)["worker_pool"]) is Pool
