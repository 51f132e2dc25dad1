"""The end of a process whose event loop stands still."""

import asyncio
import subprocess
import sys
import threading
import time

import pytest

from tests.support.processes import until
from worker.pulse import PULSES_MISSED_MAX, Pulse


@pytest.fixture
def loop():
    """An event loop that runs in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_loop_that_stands_still_ends_its_process_and_shows_where(loop, capfd) -> None:
    """Once it has missed its pulses, with what every thread was at."""
    ended, go_on = threading.Event(), threading.Event()

    def hang_here() -> None:
        go_on.wait()

    pulse = Pulse(loop, ended.set, seconds=0.01)
    try:
        loop.call_soon_threadsafe(hang_here)
        assert ended.wait(20)
    finally:
        go_on.set()
        pulse.close()
    assert "hang_here" in capfd.readouterr().err


def test_a_loop_that_answers_late_goes_on(loop) -> None:
    """However often it stands still for less than that: what counts are pulses missed in a row."""
    ended = threading.Event()
    pulse = Pulse(loop, ended.set, seconds=0.1)

    def stand_still(stood: threading.Event) -> None:
        while pulse._missed < PULSES_MISSED_MAX // 2:
            time.sleep(0.001)
        stood.set()

    try:
        for _ in range(5):
            stood = threading.Event()
            loop.call_soon_threadsafe(stand_still, stood)
            assert stood.wait(20)
            until(lambda: pulse._missed <= 1, "an answer")
        assert not ended.is_set()
    finally:
        pulse.close()


def test_a_child_of_a_pool_has_one() -> None:
    """A real child whose loop hangs is gone soon, with an exit code for its pool and the reason in its log."""
    script = """if True:
        import functools, threading, time
        from models.settings import Settings
        from worker import child, pulse
        child.Pulse = functools.partial(pulse.Pulse, seconds=0.05)
        opened = child.Child(Settings(database_url="postgresql://nobody@127.0.0.1:1/none"))
        opened.loop.call_soon_threadsafe(time.sleep, 600)
        threading.Event().wait()
    """
    ended = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "loop_stuck" in ended.stdout + ended.stderr
    assert "run_forever" in ended.stderr
