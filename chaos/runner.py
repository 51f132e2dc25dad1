"""Runs one fault on a system: users at work, injections at random moments, recovery, the end check."""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from chaos import endcheck
from chaos.crowd import Crowd
from chaos.processes import ChaosError, until
from chaos.registry import BrokenPromiseError, Fault
from chaos.system import System
from chaos.watch import Watch


@dataclass(slots=True)
class Result:
    """What one run of a fault came to. ``recoveries`` in seconds; ``differences`` empty when all promises held."""

    fault: Fault
    seed: int = 0
    injected: int = 0
    recoveries: list[float] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    jobs: int = 0
    refused: int = 0
    orphans: int = 0
    seconds: float = 0

    @property
    def good(self) -> bool:
        """Whether the end check found nothing."""
        return not self.differences


def run(system: System, fault: Fault, seed: int, times: int) -> Result:
    """Inject a fault so many times while users are at work, wait until all has ended, and check.

    What goes wrong is in the result; only a bug of the harness itself is raised.
    """
    return run_in_turn(system, fault, [fault] * times, seed)


def run_short(system: System, noun: str, faults: Sequence[Fault], seed: int) -> Result:
    """The same for several faults of one noun, each once, with one end check for all."""
    whole = Fault(
        name=noun,
        noun=noun,
        sentence=f"Every fault of {noun}, one after another.",
        inject=lambda *_: None,
        full=1,
        gap_seconds=0,
        poison=max(fault.poison for fault in faults),
        deadline_seconds=max(fault.deadline_seconds for fault in faults),
    )
    return run_in_turn(system, whole, faults, seed)


def run_in_turn(system: System, whole: Fault, faults: Sequence[Fault], seed: int) -> Result:
    """Inject ``faults`` one after another, with the crowd, the deadline and the name of ``whole``."""
    chance = random.Random(f"{whole.name}/{seed}")
    result = Result(whole, seed)
    began = time.monotonic()
    system.acknowledged.clear()
    with Crowd(system, random.Random(f"crowd/{seed}"), poison=whole.poison) as crowd, Watch(system) as watch:
        try:
            for fault, before in zip(faults, [faults[0], *faults], strict=False):
                if fault is not before:
                    system.mend()
                in_flight = crowd.wait_until_at_work()
                time.sleep(chance.uniform(0, fault.gap_seconds))
                _inject(system, fault, chance)
                result.injected += 1
                watch.injected(in_flight)
            result.differences += endcheck.broken_rules(system)
        except (BrokenPromiseError, ChaosError) as error:
            result.differences.append(str(error))
        try:
            crowd.stop()
            system.mend()
            until(lambda: endcheck.all_ended(system), "the end of all jobs", whole.deadline_seconds)
        except ChaosError as error:
            result.differences.append(str(error))
        until(lambda: len(watch.recoveries) == result.injected or result.differences, "the watch", 10)
        result.recoveries = watch.recoveries
    result.differences += endcheck.differences(system, system.acknowledged)
    result.jobs, result.refused = len(system.acknowledged), crowd.refused
    result.orphans = len(endcheck.orphans(system))
    result.seconds = time.monotonic() - began
    return result


def _inject(system: System, fault: Fault, chance: random.Random) -> None:
    try:
        fault.inject(system, chance)
    except (BrokenPromiseError, ChaosError) as error:
        raise BrokenPromiseError(f"{fault.name}: {error}") from error
