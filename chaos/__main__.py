"""``make chaos``: every fault, seeded, each with the end check; a table of what happened."""

import argparse
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from chaos import report
from chaos.processes import ChaosError
from chaos.registry import Fault, load
from chaos.runner import Result, run
from chaos.system import System
from scheduler.interrupts import INTERRUPTED


def main() -> int:
    """Run, print, and write the page if asked to; 1 when a promise was broken."""
    faults = load()
    options = parse_arguments(sorted(faults))
    # SIGTERM unwinds as Ctrl-C does, so that whatever was started is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = [fault for name, fault in faults.items() if not options.only or name in options.only]
    results: list[Result] = []
    code = 0
    try:
        for result in run_all(chosen, options):
            results.append(result)
            if options.record:
                report.record(result, options.record)
            print(report.line(result), flush=True)
            for difference in result.differences:
                print(f"    {difference}", flush=True)
    except ChaosError as error:
        print(f"chaos: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    print("", *report.table(results), sep="\n")
    if options.write and results:
        report.write(results)
    return code or int(not all(result.good for result in results))


def parse_arguments(names: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__.partition(":")[0])
    parser.add_argument("--seed", type=int, default=7, help="of every choice that chance makes [7]")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="these faults [all]")
    parser.add_argument("--times", type=int, help="injections of each fault [as many as its own number]")
    parser.add_argument("--short", action="store_true", help="as briefly as in make test")
    parser.add_argument(
        "--minutes", type=float, help="faults in random order, briefly, until so much time is over"
    )
    parser.add_argument("--keep", action="store_true", help="keep the folder of a system that failed")
    parser.add_argument(
        "--record", type=Path, help="add each run to a file that `python -m chaos.report` reads"
    )
    parser.add_argument("--write", action="store_true", help="write docs/reliability.md")
    return parser.parse_args()


def run_all(chosen: Sequence[Fault], options: argparse.Namespace) -> Iterator[Result]:
    """Run the faults on one system after the other: a system whose check failed serves no other fault."""
    waiting = list(order(chosen, options))
    waiting.reverse()
    deadline = time.monotonic() + options.minutes * 60 if options.minutes else float("inf")
    while waiting:
        with System(full=not (options.short or options.minutes), keep=options.keep) as system:
            while waiting and time.monotonic() < deadline:
                number, fault = waiting.pop()
                brief = options.short or options.minutes
                times = options.times or (1 if brief else fault.full)
                result = run(system, fault, options.seed + number, times)
                system.failed = not result.good
                yield result
                if not result.good:
                    break
        for sentence in system.reluctant:
            print(f"    {sentence}", flush=True)
        if time.monotonic() >= deadline:
            return


def order(chosen: Sequence[Fault], options: argparse.Namespace) -> Iterator[tuple[int, Fault]]:
    """(round, fault): each once as they stand, or in rounds of random order, more than any time is enough for."""
    if not options.minutes:
        yield from ((0, fault) for fault in chosen)
        return
    chance = random.Random(options.seed)
    for number in range(int(options.minutes * 60)):
        yield from ((number, fault) for fault in chance.sample(chosen, len(chosen)))


if __name__ == "__main__":
    sys.exit(main())
