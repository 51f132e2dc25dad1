"""What a table may be written in, and what a request says of it."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Format(StrEnum):
    """A format, by the word that ``--format`` takes."""

    TXT = "txt"
    CSV = "csv"
    TSV = "tsv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"


EXTENSIONS = {
    "csv": Format.CSV,
    "tsv": Format.TSV,
    "tab": Format.TSV,
    "json": Format.JSON,
    "jsonl": Format.JSONL,
    "ndjson": Format.JSONL,
    "parquet": Format.PARQUET,
    "pq": Format.PARQUET,
}
COMPRESSED = re.compile(r"\.(gz|gzip|zst|zstd)$", re.IGNORECASE)


def format_of(name: str) -> Format:
    """The format that a file's name says; a list of URLs when it says none."""
    return EXTENSIONS.get(COMPRESSED.sub("", name).rpartition(".")[2].lower(), Format.TXT)


def is_compressed(name: str) -> bool:
    """Whether a file's name says that it is compressed."""
    return bool(COMPRESSED.search(name))


@dataclass(frozen=True, slots=True)
class TableOptions:
    """What a request says of its tables. None: the file's name, or the names of its columns, tell."""

    format: Format | None = None
    url_column: str | None = None
    hash_column: str | None = None
