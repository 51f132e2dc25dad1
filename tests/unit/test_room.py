"""Memory for large pictures is one for all processes that were forked behind it, and comes back from the dead."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import started, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks waiting locks up in /proc")

# Forks a process for each line of units, of four there are; it says that it has them, and keeps them.
PROGRAM = """
import os, signal, sys
from worker.room import UNIT_BYTES, Room
room = Room()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while line := sys.stdin.readline():
    process = os.fork()
    if process:
        os.write(1, b"%d\\n" % process)
    else:
        with room.taken(int(line) * UNIT_BYTES, 4 * UNIT_BYTES):
            os.write(2, b"%d\\n" % os.getpid())
            signal.pause()
"""


def waits(process: int) -> bool:
    """Whether a process waits for a lock."""
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and str(process) in line.split() for line in lines)


def test_room_is_one_for_all_and_in_order():
    """Three of four units are held: who wants two waits, and who wants one waits behind it. The holder is killed,
    and both have theirs; who wants more than there is has all of it in the end.
    """
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    asked = []
    with started(sys.executable, "-c", PROGRAM, text=True, bufsize=1, **pipes) as program:

        def ask(units: int) -> int:
            program.stdin.write(f"{units}\n")
            asked.append(int(program.stdout.readline()))
            return asked[-1]

        try:
            first = ask(3)
            assert int(program.stderr.readline()) == first
            second = ask(2)
            until(lambda: waits(second), "a wait for a unit")
            third = ask(1)
            until(lambda: waits(third), "a wait behind it")
            os.kill(first, signal.SIGKILL)
            assert {int(program.stderr.readline()) for _ in range(2)} == {second, third}
            all_of_it = ask(9)
            until(lambda: waits(all_of_it), "a wait for all of it")
            os.kill(second, signal.SIGKILL)
            os.kill(third, signal.SIGKILL)
            assert int(program.stderr.readline()) == all_of_it
        finally:
            for process in asked:
                if Path(f"/proc/{process}").exists():
                    os.kill(process, signal.SIGKILL)
