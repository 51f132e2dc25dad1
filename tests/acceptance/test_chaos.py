"""The short version of every fault of ``make chaos``, each with the common end check; and the harness itself."""

import contextlib
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import pytest

from chaos import endcheck, report
from chaos.processes import ChaosError, owner_of_port
from chaos.proxy import Proxy
from chaos.registry import NOUNS, load
from chaos.runner import Result, run, run_short
from chaos.system import System

ROOT = Path(__file__).parents[2]
SEED = 7
Call = Callable[[bytes], tuple[socket.socket, bytes]]
FAULTS = load()

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks processes up in /proc")


@pytest.fixture(scope="module")
def systems() -> Iterator["Systems"]:
    """One running system for all faults, and another one after each failure."""
    systems = Systems(ExitStack())
    with systems.stack:
        yield systems
    assert systems.current is None or systems.current.reluctant == []


class Systems:
    """Starts a system when there is none that is whole."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.current: System | None = None

    def whole(self) -> System:
        """A system whose last end check found nothing."""
        if self.current is None or self.current.failed:
            self.stack.close()
            self.current = self.stack.enter_context(System())
        return self.current


@pytest.mark.slow
@pytest.mark.parametrize("noun", NOUNS)
def test_nothing_is_lost_and_nothing_is_twice(noun: str, systems: Systems) -> None:
    """Every fault happens while users are at work; all ends, and every row, object and credit is as it must be."""
    faults = [fault for fault in FAULTS.values() if fault.noun == noun]
    system = systems.whole()
    system.failed = True
    result = run_short(system, noun, faults, SEED)
    assert not result.differences, "\n".join(result.differences)
    system.failed = False
    assert result.injected == len(faults) > 0
    assert result.jobs


def test_no_fault_is_without_a_noun() -> None:
    """A fault in a new file would not be run otherwise."""
    assert {fault.noun for fault in FAULTS.values()} == set(NOUNS)


def test_every_fault_says_what_it_does() -> None:
    """A name, a sentence that ends, and at least one injection."""
    for fault in FAULTS.values():
        assert fault.sentence.endswith("."), fault.name
        assert fault.full >= 1


def test_every_promise_names_a_test_that_exists() -> None:
    """The page's template names files and functions; both are there."""
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", report.TEMPLATE.read_text("utf-8"))
    assert len(named) > 10
    for file, function in named:
        text = (ROOT / file).read_text("utf-8")
        assert not function or f"def {function}(" in text, f"{file} has no {function}"


def test_the_page_shows_every_run(tmp_path) -> None:
    """A run that differs stands out in the table; the times are of all runs of a fault; a record keeps them."""
    [fault, other, *_] = FAULTS.values()
    results = [
        Result(fault, injected=2, recoveries=[1.0, 3.0], jobs=4),
        Result(fault, injected=1, recoveries=[8.0], jobs=1, differences=["something"]),
        Result(other, injected=1, jobs=1),
    ]
    for result in results:
        report.record(result, tmp_path / "record")
    results = report.read(tmp_path / "record")
    table = report.table(results)[2:]
    assert [row.split(" | ")[1:] for row in table] == [
        ["3", "5", "3.0 s", "8.0 s", "**1 of 2 runs differ** |"],
        ["1", "1", "-", "-", "good |"],
    ]
    assert "$" not in report.page(results, "2026-01-01")


class Echo:
    """A server on a Unix socket that answers every piece with ``ok`` and remembers what it read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: list[bytes] = []

    def __enter__(self) -> Self:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while piece := connection.recv(1024):
                self.read.append(piece)
                connection.sendall(b"ok")


@pytest.fixture
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Echo]:
    """An echo with a short path."""
    with Echo(tmp_path_factory.mktemp("e") / "s") as echo:
        yield echo


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    """A proxy in front of it."""
    with Proxy(echo.path) as proxy:
        yield proxy


@pytest.fixture
def call(proxy: Proxy) -> Iterator[Call]:
    """Make a new connection and ask once: the connection and the answer, or what came instead of one."""
    with ExitStack() as stack:

        def call(words: bytes) -> tuple[socket.socket, bytes]:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.5)
            try:
                client.connect(("127.0.0.1", proxy.port))
                client.sendall(words)
                return client, client.recv(16)
            except TimeoutError:
                return client, b"silence"
            except ConnectionResetError:
                return client, b"reset"

        yield call


def test_the_proxy_resets_refuses_and_is_silent(proxy: Proxy, call: Call) -> None:
    """Each while it is asked to, and never after."""
    client, answer = call(b"first")
    assert answer == b"ok"
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with proxy.refusing():
        assert call(b"refused")[1] == b"reset"
    with proxy.black_hole():
        silent, answer = call(b"silent")
        assert answer == b"silence"
    with pytest.raises(ConnectionResetError):
        silent.recv(1)
    assert call(b"last")[1] == b"ok"


@pytest.mark.parametrize(("answered", "arrived"), [(True, [b"one", b"two COMMIT"]), (False, [b"one"])])
def test_the_proxy_cuts_at_a_pattern(
    proxy: Proxy, call: Call, echo: Echo, answered: bool, arrived: list[bytes]
) -> None:
    """Before the server reads it, or after the server has answered; only for who is meant, and once."""
    other, _ = call(b"other")
    with proxy.trap(b"COMMIT", who=b"one", answered=answered) as trap:
        other.sendall(b"COMMIT")
        assert other.recv(16) == b"ok"
        client, _ = call(b"one")
        client.sendall(b"two COMMIT")
        with pytest.raises(ConnectionResetError):
            client.recv(16)
        trap.wait(1)
        assert [piece for piece in echo.read if b"o" in piece and piece != b"other"] == arrived
        assert call(b"one COMMIT")[1] == b"ok"


def test_a_held_connection_goes_on(proxy: Proxy, call: Call) -> None:
    """It is silent while the trap is set, its owner can be found, and afterwards the answer comes."""
    with proxy.trap(b"COMMIT", held=True) as trap:
        client, answer = call(b"COMMIT")
        assert answer == b"silence"
        trap.wait(1)
        assert owner_of_port(trap.port) == int(Path("/proc/self").readlink().name)
    assert client.recv(16) == b"ok"
    with proxy.trap(b"never") as trap, pytest.raises(ChaosError, match="never"):
        trap.wait(0.01)


def test_the_end_check_finds_what_is_wrong(systems: Systems) -> None:
    """A balance, a counter, an outcome, an object: each that is changed by hand is named."""
    system = systems.whole()
    result = run(system, FAULTS["lose_messages"], SEED, 1)
    assert result.good
    jobs = list(system.acknowledged)
    [image, *_] = system.query("SELECT id, storage_url FROM images WHERE crawl_job_id = :id", id=jobs[0].id)
    path = Path(image.storage_url.removeprefix("file://"))
    body = path.read_bytes()
    system.failed = True
    path.write_bytes(body + struct.pack("d", 0))
    assert any("has other bytes" in line for line in endcheck.differences(system, jobs))
    path.unlink()
    assert any("has no object" in line for line in endcheck.differences(system, jobs))
    path.write_bytes(body)
    stray = path.with_name("0" * 64 + ".png")
    stray.touch()
    assert endcheck.orphans(system) == [stray]
    with system.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE credit_accounts SET current_balance = current_balance + 1")
        connection.exec_driver_sql(f"DELETE FROM images WHERE id = {image.id}")
    found = "\n".join(endcheck.differences(system, jobs))
    for words in ("nothing instead of accepted", "balance of an account", "images of a chunk"):
        assert words in found
