"""Tables in every format and compression, as people's programs write them, and as they break."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as arrow
from backports import zstd
from pyarrow import parquet

from worker.tables.formats import Format

Record = Mapping[str, Any]

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}


def write_table(kind: Format, records: Sequence[Record]) -> bytes:
    """A file of ``records``, which all have the same columns; a list has only the first."""
    names = list(records[0])
    if kind is Format.TXT:
        return "".join(f"{record[names[0]]}\n" for record in records).encode()
    if kind is Format.JSON:
        return json.dumps(list(records)).encode()
    if kind is Format.JSONL:
        return "".join(json.dumps(record) + "\n" for record in records).encode()
    if kind is Format.PARQUET:
        return parquet_of({name: [record[name] for record in records] for name in names}, row_group_size=10)
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter="\t" if kind is Format.TSV else ",")
    writer.writerows([names, *(record.values() for record in records)])
    return text.getvalue().encode()


def parquet_of(columns: Mapping[str, Any], **options: Any) -> bytes:
    """A Parquet file with these columns: lists, or arrays of arrow."""
    file = io.BytesIO()
    parquet.write_table(arrow.table(dict(columns)), file, **options)
    return file.getvalue()
