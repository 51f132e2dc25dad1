"""Runs one fault on a system: users at work, injections at random moments, recovery, the end check."""

import random
import time
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
    chance = random.Random(f"{fault.name}/{seed}")
    result = Result(fault, seed)
    began = time.monotonic()
    system.acknowledged.clear()
    with Crowd(system, random.Random(f"crowd/{seed}"), poison=fault.poison) as crowd, Watch(system) as watch:
        try:
            for _ in range(times):
                in_flight = crowd.wait_until_at_work()
                time.sleep(chance.uniform(0, fault.gap_seconds))
                fault.inject(system, chance)
                result.injected += 1
                watch.injected(in_flight)
            result.differences += endcheck.broken_rules(system)
        except (BrokenPromiseError, ChaosError) as error:
            result.differences.append(str(error))
        try:
            crowd.stop()
            system.mend()
            until(lambda: endcheck.all_ended(system), "the end of all jobs", fault.deadline_seconds)
        except ChaosError as error:
            result.differences.append(str(error))
        until(lambda: len(watch.recoveries) == result.injected or result.differences, "the watch", 10)
        result.recoveries = watch.recoveries
    result.differences += endcheck.differences(system, system.acknowledged)
    result.jobs, result.refused = len(system.acknowledged), crowd.refused
    result.orphans = len(endcheck.orphans(system))
    result.seconds = time.monotonic() - began
    return result
