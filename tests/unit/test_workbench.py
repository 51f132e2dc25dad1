"""A thread that does one call after the other for an event loop."""

import asyncio
import threading

import pytest

from worker.workbench import Workbench


def test_calls_are_made_in_their_order_and_their_outcomes_come_back() -> None:
    """In one thread, whatever they return or raise."""

    async def run() -> None:
        bench = Workbench(asyncio.get_running_loop(), "bench")
        try:
            made: list[int] = []

            def call(number: int) -> str:
                made.append(number)
                if number == 3:
                    raise KeyError(number)
                return threading.current_thread().name

            outcomes = await asyncio.gather(
                *(bench.do(call, number) for number in range(100)), return_exceptions=True
            )
            assert made == list(range(100))
            assert isinstance(outcomes.pop(3), KeyError)
            assert set(outcomes) == {"bench"}
        finally:
            bench.close()

    asyncio.run(run())


@pytest.mark.parametrize("made_first", [False, True])
def test_what_has_begun_is_waited_for_and_what_has_not_is_not_made(made_first: bool) -> None:
    """Also when the call ends between its cancellation and the moment in which whoever waits hears of that."""

    async def run() -> None:
        bench = Workbench(asyncio.get_running_loop(), "bench")
        begun, go_on = threading.Event(), threading.Event()
        made: list[str] = []

        def call(name: str) -> str:
            begun.set()
            go_on.wait(20)
            made.append(name)
            return name

        first, second = (asyncio.ensure_future(bench.do(call, name)) for name in ("first", "second"))
        await asyncio.sleep(0)
        begun.wait(20)
        if made_first:
            go_on.set()
            while not bench._made:  # It is done, and the loop has not heard of it.
                pass
        first.cancel()
        second.cancel()
        if not made_first:
            with pytest.raises(asyncio.CancelledError):
                await second
            assert not first.done()
            go_on.set()
        assert await first == "first"
        await asyncio.wait([second])
        bench.close()
        assert made[0] == "first"
        assert second.cancelled() == (made == ["first"])

    asyncio.run(run())


def test_a_second_cancellation_is_heard() -> None:
    """Whoever insists need not wait for what hangs."""

    async def run() -> None:
        bench = Workbench(asyncio.get_running_loop(), "bench")
        begun, go_on = threading.Event(), threading.Event()
        call = asyncio.ensure_future(bench.do(lambda: (begun.set(), go_on.wait(20))))
        await asyncio.sleep(0)
        begun.wait(20)
        call.cancel()
        await asyncio.sleep(0)
        assert not call.done()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        go_on.set()
        bench.close()

    asyncio.run(run())


def test_the_thread_is_woken_at_once_and_then_for_all_that_came_in_the_meantime(monkeypatch) -> None:
    """What is asked for soon after another call waits for the pause to end; a bench that is closed makes it."""

    async def run() -> None:
        made: list[int] = []
        bench = Workbench(asyncio.get_running_loop(), "bench")
        for number in range(10):
            await bench.do(made.append, number)
        monkeypatch.setattr("worker.workbench.PAUSE_SECONDS", 3600)
        await asyncio.sleep(0.01)
        await bench.do(made.append, 10)
        waiting = [asyncio.ensure_future(bench.do(made.append, number)) for number in (11, 12)]
        unwanted = asyncio.ensure_future(bench.do(made.append, 13))
        await asyncio.sleep(0)
        assert made == list(range(11))
        unwanted.cancel()
        await asyncio.wait([unwanted])
        bench.close()
        await asyncio.gather(*waiting)
        assert made == list(range(13))

    asyncio.run(run())
