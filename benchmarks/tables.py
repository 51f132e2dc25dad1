"""How fast a table becomes a job's chunks: submitted and split, rows a second and memory, for each format.

``python -m benchmarks.tables --rows 1000000``. Each part runs in a process of its own, so that its peak is its own.
"""

import argparse
import csv
import gzip
import itertools
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("URL", "TEXT", "WIDTH", "HEIGHT", "similarity", "LICENSE")
FORMATS = ("csv.gz", "jsonl", "json", "parquet", "txt")
ROW_GROUP = 1_000_000


def rows(number: int) -> Iterator[tuple[Any, ...]]:
    """Rows as LAION's tables have them."""
    for n in range(number):
        url = f"https://images-{n % 5000}.photos.example/birds/{n:010}.jpg"
        text = f"a photo of bird number {n} in the garden, été and so on"
        yield url, text, 320 + n % 700, 240 + n % 500, 0.3 + n % 100 / 1000, None if n % 3 == 0 else "CC-BY"


def write(path: Path, kind: str, number: int) -> None:
    """A table of so many rows."""
    if kind == "parquet":
        import pyarrow as arrow
        from pyarrow import parquet

        given = rows(number)
        writer = None
        while part := list(itertools.islice(given, ROW_GROUP)):
            columns = zip(COLUMNS, zip(*part, strict=True), strict=True)
            table = arrow.table({name: list(values) for name, values in columns})
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table, row_group_size=ROW_GROUP)
        assert writer is not None
        writer.close()
        return
    with gzip.open(path, "wt", 1, encoding="utf-8") if kind == "csv.gz" else path.open("w") as file:
        if kind == "csv.gz":
            csv.writer(file).writerows(itertools.chain([COLUMNS], rows(number)))
        elif kind == "txt":
            file.writelines(f"{row[0]}\n" for row in rows(number))
        else:
            ends = ("[", ",\n", "]\n") if kind == "json" else ("", "\n", "\n")
            for n, row in enumerate(rows(number)):
                file.write(ends[1 if n else 0] + json.dumps(dict(zip(COLUMNS, row, strict=True))))
            file.write(ends[2])


def submit(path: Path, folder: Path) -> dict[str, Any]:
    """Copy a table into a store, as ``pixtrawl submit`` does; the job's source."""
    from models.settings import read_settings
    from scheduler.copying import copy_of
    from worker.store import open_store
    from worker.tables.formats import TableOptions

    copy = copy_of(read_settings(home=folder), [str(path)], TableOptions())
    open_store(folder.as_uri()).put_stream(copy.name, copy.blocks())
    return copy.source


def split(source: dict[str, Any], folder: Path) -> int:
    """Read it back step by step, and pack chunks, as the scheduler does; how many candidates."""
    from models.candidates import pack_candidates
    from models.cutting import cut
    from worker.sources import url_list, url_table
    from worker.store import open_store

    read = url_list.read_step if source["object"].endswith(".txt") else url_table.read_step
    store = open_store(folder.as_uri())
    cursor: dict[str, int] = {}
    total, exhausted = 0, False
    while not exhausted:
        candidates, cursor, exhausted = read(store, source, cursor, 10_000)
        for chunk in cut(candidates, 100, 500):
            pack_candidates(chunk.candidates)
        total += len(candidates)
    return total


def part(name: str, folder: Path, path: Path, number: int) -> None:
    """Run one part here, and print what it took."""
    began = time.perf_counter()
    source = folder / "source.json"
    if name == "write":
        write(path, path.name.partition(".")[2], number)
    elif name == "submit":
        source.write_text(json.dumps(submit(path, folder)))
    else:
        split(json.loads(source.read_text()), folder)
    seconds = time.perf_counter() - began
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "megabytes": megabytes}))


def main() -> None:
    """Measure every format."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--formats", nargs="*", default=FORMATS, choices=FORMATS)
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        name, folder, path = arguments.part
        part(name, Path(folder), Path(path), arguments.rows)
        return
    print(f"{'format':8} {'part':7} {'rows/s':>10} {'seconds':>8} {'peak MB':>8}")
    for kind in arguments.formats:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"table.{kind}")
            for name in ("write", "submit", "split"):
                command = [sys.executable, "-m", "benchmarks.tables", "--rows", str(arguments.rows)]
                command += ["--part", name, folder, str(path)]
                done = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                if name == "write":
                    continue
                rate = arguments.rows / done["seconds"]
                print(
                    f"{kind:8} {name:7} {rate:10,.0f} {done['seconds']:8.1f} {done['megabytes']:8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
