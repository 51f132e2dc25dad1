"""The figures of benchmarks/bloat.py in words: what each table became, and at which speed. It measures nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from string import Template

from benchmarks.report import machine
from models.database import REVISION

TEMPLATE = Path(__file__).with_name("bloat.template.md")
HOT = ("job_chunks", "crawl_jobs", "credit_accounts", "credit_transactions", "usage_metrics", "workers")


@dataclass(frozen=True, slots=True)
class Table:
    """One table at one moment: bytes of rows and of indexes, rows alive and dead by PostgreSQL's count, and its
    updates so far, of which ``hot`` touched no index.
    """

    heap: int
    indexes: int
    live: int
    dead: int
    updates: int
    hot: int
    vacuums: int

    @property
    def bytes(self) -> int:
        """Rows and indexes."""
        return self.heap + self.indexes


@dataclass(frozen=True, slots=True)
class Sample:
    """All hot tables after so many settled chunks; time, dispatch and write-ahead log since the last sample."""

    settled: int
    seconds: float
    dispatch_milliseconds: float
    wal_bytes: int
    tables: Mapping[str, Table]


@dataclass(frozen=True, slots=True)
class Run:
    """One database from its first settle to its last. Between ``held`` settled chunks one transaction was open."""

    samples: Sequence[Sample]
    held: tuple[int, int] | None = None

    def phase(self, first: int, last: int) -> list[tuple[Sample, Sample]]:
        """Pairs of neighbours between two counts of settled chunks; a count may be passed by a few."""
        marked = [sample for sample in self.samples if first <= sample.settled <= last + 50]
        return list(pairwise(marked))


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the figures depend on."""

    settles: int
    writers: int
    users: int
    jobs: int
    candidates: int
    load: float
    date: str


def sizes(run: Run) -> list[str]:
    """What each table became: kilobytes at the marks that tell, and its updates."""
    assert run.held is not None
    moments = [0, run.samples[1].settled, *run.held, run.samples[-1].settled]
    chosen = [next(sample for sample in run.samples if sample.settled >= moment) for moment in moments]
    lines = [
        "| kB, rows + indexes | "
        + " | ".join(f"{sample.settled:,}" for sample in chosen)
        + " | updates that touched no index | vacuums |",
        "|---" * (len(chosen) + 3) + "|",
    ]
    for name in HOT:
        tables = [sample.tables[name] for sample in chosen]
        cells = [f"{table.heap / 1024:,.0f} + {table.indexes / 1024:,.0f}" for table in tables]
        lines.append(f"| {name} | {' | '.join(cells)} | {share(tables[-1])} | {tables[-1].vacuums} |")
    return lines


def share(table: Table) -> str:
    """Updates that touched no index, of all."""
    return f"{100 * table.hot / max(1, table.updates):.1f} % of {table.updates:,}"


def speeds(run: Run) -> list[str]:
    """How fast chunks were settled before, while and after the transaction was open: medians of the samples."""
    assert run.held is not None
    first, last = run.held
    phases = {
        "before": run.phase(0, first),
        "one transaction open": run.phase(first, last),
        "after": run.phase(last, run.samples[-1].settled),
    }
    lines = ["| | chunks/s | dispatch of up to 16 | log a chunk |", "|---|---|---|---|"]
    for name, pairs in phases.items():
        rate = median((later.settled - earlier.settled) / later.seconds for earlier, later in pairs)
        milliseconds = median(later.dispatch_milliseconds for _, later in pairs)
        wal = median(later.wal_bytes / (later.settled - earlier.settled) for earlier, later in pairs)
        lines.append(f"| {name} | {rate:.0f} | {milliseconds:.0f} ms | {wal / 1024:.1f} kB |")
    return lines


def comparison(runs: Mapping[str, Run]) -> list[str]:
    """Our options beside PostgreSQL's own, and beside fewer indexes, after the same number of settled chunks."""
    names = {
        "ours": "as it is",
        "own": "PostgreSQL's own options",
        "lean": "without three indexes of job_chunks",
    }
    samples = {name: runs[name].samples[1] for name in names}
    lines = [
        f"| after {samples['ours'].settled:,} | {' | '.join(names.values())} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for table in HOT[:-1]:
        of_each = [sample.tables[table] for sample in samples.values()]
        cells = [f"{each.bytes / 1024:,.0f} kB, {share(each)}" for each in of_each]
        lines.append(f"| {table} | {' | '.join(cells)} |")
    logs = [f"{sample.wal_bytes / sample.settled / 1024:.1f} kB" for sample in samples.values()]
    lines.append(f"| log a chunk | {' | '.join(logs)} |")
    return lines


def kept_table(measured: Sequence[tuple[str, float]]) -> list[str]:
    """Inserting 500 images beside so many versions of their job's row."""
    return [
        f"| updates of the job since the transaction began | {' | '.join(name for name, _ in measured)} |",
        "|---" * (len(measured) + 1) + "|",
        f"| 500 images inserted, ms | {' | '.join(f'{value:.0f}' for _, value in measured)} |",
    ]


def page(runs: Mapping[str, Run], kept: Sequence[tuple[str, float]], circumstances: Circumstances) -> str:
    """docs/database_bloat.md, from the template beside this file."""
    ours = runs["ours"]
    assert ours.held is not None
    return Template(TEMPLATE.read_text("utf-8")).substitute(
        machine=machine(),
        load=f"{circumstances.load:.1f}",
        date=circumstances.date,
        settles=f"{circumstances.settles:,}",
        writers=circumstances.writers,
        revision=REVISION,
        users=f"{circumstances.users:,}",
        jobs=circumstances.jobs,
        candidates=circumstances.candidates,
        held_from=f"{ours.held[0]:,}",
        held_to=f"{ours.held[1]:,}",
        sizes="\n".join(sizes(ours)),
        speeds="\n".join(speeds(ours)),
        comparison="\n".join(comparison(runs)),
        kept="\n".join(kept_table(kept)),
    )
