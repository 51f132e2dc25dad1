"""Parts of a command: started again when they die, stopped with it, and gone however it ends."""

import fcntl
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from models.settings import Settings
from scheduler import parts
from scheduler.devstack import Layout
from scheduler.interrupts import Interrupts
from scheduler.parts import Parts
from tests.support.processes import Command, environment, processes_of, until

PROGRAMS = {
    # Runs until told to leave, and leaves with its command.
    "steady": """
import signal, sys
from scheduler.parts import follow_command
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
follow_command(int(sys.argv[sys.argv.index("--lifeline") + 1]))
print("steady", *sys.argv[1:-2], flush=True)
signal.pause()
""",
    # Heeds no SIGTERM and has a child that does not, either.
    "stubborn": """
import os, signal, sys, time
from scheduler import parts
parts.ORPHAN_SECONDS = 0.3
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
parts.follow_command(int(sys.argv[-1])) if child else None
os.write(1, b"%d\\n" % os.getpid())  # In one piece: both write to one log.
while True:
    time.sleep(60)
""",
    "mortal": "import sys; sys.exit('There is no hope.')",
}
COMMAND = """
import signal, sys
from models.settings import read_settings
from scheduler.parts import Parts
with Parts(read_settings(), print) as parts:
    parts.start("steady", module="steady")
    parts.start("stubborn", module="stubborn")
    print("started", flush=True)
    signal.pause()
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings of a home, with the programs above where Python finds them."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(parts, "RESTART_SECONDS", (0.05,))
    return Settings(home=tmp_path / "home")


def alive(pid: int) -> bool:
    """Whether a process lives; what nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def lines(settings: Settings, name: str) -> list[str]:
    """What a part has written."""
    path = Layout(settings.home).log(name)
    return path.read_text().split("\n")[:-1] if path.exists() else []


def test_a_part_that_dies_is_started_again_and_it_is_said(settings) -> None:
    """The same arguments, another process, one sentence; and SIGTERM ends it in the end."""
    said: list[str] = []
    with Parts(settings, said.append) as running:
        part = running.start("steady", "one", "two", module="steady")
        until(lambda: lines(settings, "steady") == ["steady one two"])
        first = part.process.pid
        os.kill(first, signal.SIGKILL)
        until(lambda: lines(settings, "steady") == ["steady one two"] * 2)
        assert part.process.pid != first
    assert part.process.returncode == 0
    assert said == ["The steady was killed by SIGKILL; it is started again in 0.05 s."]


def test_a_part_that_dies_again_and_again_is_given_up_with_its_last_words(settings) -> None:
    """The failure names the part, how it ended, and what its log says."""
    failed = threading.Event()
    with Parts(settings, lambda _: None, deaths_max=3, on_failure=failed.set) as running:
        running.start("mortal", module="mortal")
        assert failed.wait(30)
    assert running.failure.startswith(
        "The mortal ended with exit code 1 3 times in a row: There is no hope ("
    )
    assert lines(settings, "mortal") == ["There is no hope."] * 3


def test_lines_of_a_part_are_shown_under_its_name(settings) -> None:
    """With ``show`` nothing goes to a log."""
    shown: list[tuple[str, str]] = []
    with Parts(settings, lambda _: None, show=lambda *line: shown.append(line)) as running:
        running.start("steady", "here", module="steady")
        until(lambda: shown)
    assert shown == [("steady", "steady here")]
    assert lines(settings, "steady") == []


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
@pytest.mark.parametrize("hurried", [False, True])
def test_what_does_not_leave_is_killed_with_its_children(settings, hurried) -> None:
    """After the grace, or at once for somebody in a hurry, SIGKILL goes to the whole group."""
    with Parts(settings, lambda _: None) as running:
        running.start("stubborn", module="stubborn")
        until(lambda: len(lines(settings, "stubborn")) == 2)
        if hurried:
            running.hurry()
        running.stop(60 if hurried else 0.2)
    until(lambda: not any(alive(int(pid)) for pid in lines(settings, "stubborn")))


@pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")
def test_kill_9_of_the_command_ends_every_part(settings, tmp_path) -> None:
    """A part leaves by itself at the end of its lifeline; one that does not is killed with its children."""
    shell = environment(settings.home)
    with Command(tmp_path / "run", shell, "-P", "-c", COMMAND, program=[sys.executable]) as command:
        until(lambda: len(lines(settings, "stubborn")) == 2 and lines(settings, "steady"))
        pids = [int(pid) for pid in lines(settings, "stubborn")]
        assert all(alive(pid) for pid in pids)
        command.process.kill()
        command.wait()
        until(lambda: not any(alive(pid) for pid in pids), "the end of the stubborn part")
        until(lambda: not steady_left(settings), "the end of the steady part")


def steady_left(settings: Settings) -> list[str]:
    """Processes that run the steady program for this home."""
    return [words for words in processes_of(settings.home).values() if "-m steady" in words]


def test_a_part_keeps_the_services_of_a_command_that_was_killed(settings) -> None:
    """Parts share the users' lock: as long as one lives, nobody can take it exclusively."""
    layout = Layout(settings.home)
    layout.run.mkdir(parents=True)
    with Parts(settings, lambda _: None, home=settings.home) as running:
        running.home = None  # There is no guardian to look after.
        part = running.start("steady", module="steady")
        until(lambda: lines(settings, "steady"))
        os.close(running._users)
        running._users = None
        other = layout.lock("users")
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.signal(signal.SIGTERM)
        part.process.wait(10)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)


def test_once_is_a_clean_stop_twice_is_now() -> None:
    """Before there is anything to hand back the first signal ends the command; then they grow more urgent."""
    said: list[str] = []
    hurried = threading.Event()
    with pytest.raises(KeyboardInterrupt), Interrupts("Stopping.", said.append):
        signal.raise_signal(signal.SIGTERM)
    with Interrupts("Stopping.", said.append) as interrupts:
        interrupts.gentle, interrupts.hurry = True, hurried.set
        signal.raise_signal(signal.SIGINT)
        assert interrupts.stop.is_set()
        assert said == ["Stopping."]
        assert not hurried.is_set()
        signal.raise_signal(signal.SIGINT)
        assert hurried.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
