"""What may hang in a thread, and since when."""

import pytest

from worker.watchdog import Watchdog, Work


def test_a_call_is_overdue_once_its_time_is_over():
    """Only while it is under way, and by its own bound."""
    now = [0.0]
    watchdog = Watchdog(lambda: now[0])
    with watchdog.timing(Work.STORE, 10), watchdog.timing(Work.DECODE, 3):
        assert watchdog.running() == {Work.STORE, Work.DECODE}
        now[0] = 3
        assert watchdog.overdue() is None
        now[0] = 3.1
        overdue = watchdog.overdue()
        assert overdue is not None
        assert (overdue.work, overdue.seconds_max) == (Work.DECODE, 3)
    assert watchdog.running() == set()
    assert watchdog.overdue() is None


def test_a_call_that_fails_is_over():
    """An exception ends the time, too."""
    watchdog = Watchdog()
    with pytest.raises(OSError, match="disk"), watchdog.timing(Work.STORE, 10):
        raise OSError("disk")
    assert watchdog.running() == set()
