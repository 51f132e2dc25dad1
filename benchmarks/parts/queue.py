"""The scheduler alone: how long one dispatch decision takes while a million chunks of a thousand users wait."""

import time
from pathlib import Path
from statistics import median

from sqlalchemy import Connection, Engine, event, text

from benchmarks.databases import copied, filled
from benchmarks.filling import Size, fill
from benchmarks.hot_paths import Paths
from benchmarks.setting import Bench, Section, listed
from models.database import REVISION
from models.queueing import Message
from scheduler.dispatch import BATCH, dispatch
from scheduler.leader import Leader

DECISIONS = 500
IN_FLIGHT = 100
ASKED_MS = 50.0
"""Milliseconds of a decision at the 99th percentile."""
COLUMNS = ("", "times", "median ms", "p99 ms", "longest ms")
WHOLE = "**one dispatch decision**"
SHARES = {
    "WITH live AS (": "the claim: which sixteen, and their locks",
    "WITH wanted AS (": "holds of their accounts",
    "WITH queued AS (": "queueing them",
}
"""What a statement of a decision begins with, and what it is for."""
REST = "the rest, with the COMMIT's wait for the disk"


def measure(bench: Bench) -> Section:
    """Fill, unless a kept home has the rows, and decide on a copy."""
    size = size_of(bench.options.pending)
    name = f"waiting_{size.pending}_{REVISION}"
    filled(bench.services, name, lambda engine: fill(engine, size))
    with copied(bench.services, name, "deciding") as engine:
        decisions = Decisions(engine, bench)
        decisions.make(DECISIONS)
    late = percentile_99(decisions.taken[WHOLE])
    said = (
        f"{size.pending:,} chunks of {size.users:,} users and {size.jobs:,} jobs wait, about {IN_FLIGHT} are in "
        f"flight and are settled in between. A decision was {decisions.statements} statements and a COMMIT, "
        f"{median(decisions.worked):.1f} ms of work for PostgreSQL's process and {median(decisions.own):.1f} for "
        f"this one; asked for: less than {ASKED_MS:.0f} ms at p99{'' if late < ASKED_MS else ' (**missed**)'}."
    )
    rows = [timed(name, times) for name, times in decisions.taken.items()]
    return Section("\n".join([said, "", *listed(COLUMNS, rows)]))


def size_of(pending: int) -> Size:
    """The crowd of a thousand users, or a smaller one of the same shape; hardly anything beside it."""
    share = max(1, 1_000_000 // pending)
    return Size(
        chunks=10,
        transactions=1000,
        waiting=0,
        messages=10,
        ended_jobs=10,
        users=max(20, 1000 // share),
        jobs=max(20, 3000 // share),
        pending=pending,
        stopped=max(1, 1000 // share),
    )


class Decisions:
    """Decisions of one leader, one after another. ``taken`` has the milliseconds of each, whole and in shares;
    ``worked`` what PostgreSQL's process spent on a processor, ``own`` what this one did.
    """

    def __init__(self, engine: Engine, bench: Bench) -> None:
        self.engine = engine
        self.settings = bench.services
        self.paths = Paths(engine, 1, lambda _name, function: function())
        self.taken: dict[str, list[float]] = {name: [] for name in (WHOLE, *SHARES.values(), REST)}
        self.worked: list[float] = []
        self.own: list[float] = []
        self.statements = 0
        self._shares: dict[str, float] = {}
        self._began = 0.0

    def make(self, number: int) -> None:
        """So many; what was queued is settled between them."""
        flight: list[Message] = []
        self.paths.prepare("INSERT INTO workers (name, slots, version) VALUES ('benchmark', 64, '0')")
        with self.engine.connect() as connection:
            event.listen(connection, "before_cursor_execute", self._begin)
            event.listen(connection, "after_cursor_execute", self._end)
            pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            connection.commit()
            for _ in range(number):
                self.paths.prepare("UPDATE workers SET seen_at = now()")
                messages = self._decide(connection, pid)
                assert len(messages) == BATCH, "a decision found too few chunks"
                flight += messages
                while len(flight) > IN_FLIGHT:
                    self.paths.settle(flight.pop(0))

    def _decide(self, connection: Connection, pid: int) -> list[Message]:
        leader = Leader(connection, self.settings)
        self._shares = dict.fromkeys(SHARES.values(), 0.0)
        self.statements = 0
        worked, own, began = work_of(pid), time.process_time(), time.perf_counter()
        messages = dispatch(leader)
        whole = 1000 * (time.perf_counter() - began)
        self.own.append(1000 * (time.process_time() - own))
        self.worked.append(work_of(pid) - worked)
        shares = {WHOLE: whole, **self._shares, REST: whole - sum(self._shares.values())}
        for name, milliseconds in shares.items():
            self.taken[name].append(milliseconds)
        return messages

    def _begin(self, *_: object) -> None:
        self._began = time.perf_counter()

    def _end(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        self.statements += 1
        milliseconds = 1000 * (time.perf_counter() - self._began)
        for beginning, name in SHARES.items():
            if statement.lstrip().startswith(beginning):
                self._shares[name] += milliseconds


def work_of(pid: int) -> float:
    """Milliseconds that a process has had a processor; nothing where the kernel does not tell."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[0]) / 1_000_000
    except OSError:
        return float("nan")


def percentile_99(times: list[float]) -> float:
    """Of so many; the longest when there are few."""
    return sorted(times)[round(0.99 * (len(times) - 1))]


def timed(name: str, times: list[float]) -> tuple[str, ...]:
    """A row of milliseconds."""
    return name, f"{len(times)}", f"{median(times):.1f}", f"{percentile_99(times):.1f}", f"{max(times):.1f}"
