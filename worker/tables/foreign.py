"""Files that are no tables of ours, told by their first bytes, each with the way out."""

import re
from typing import NamedTuple

from worker.tables.errors import UnfitTableError

BEGINNING_BYTES = 512
SHEET = "save the sheet as CSV in UTF-8, and give that"
PARQUET = "write it as Parquet, and give that"


class Foreign(NamedTuple):
    """How a file begins (a regular expression), what it is then, and what to do with it."""

    beginning: bytes
    what: str
    way_out: str


def _archive(beginning: bytes, kind: str, command: str) -> Foreign:
    return Foreign(beginning, f"a {kind} archive", f"`{command}` it, and give the files that it has")


def _compressed(beginning: bytes, program: str) -> Foreign:
    return Foreign(
        beginning, f"compressed with {program}", f"`{program} -d` it; gzip and zstd are read as they are"
    )


FOREIGN = (
    Foreign(
        rb"PK\x03\x04.{26}(\[Content_Types\]|_rels/|docProps/|xl/|mimetypeapplication/vnd)",
        "an office document",
        SHEET,
    ),
    Foreign(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an office document", SHEET),
    _archive(rb"PK(\x03\x04|\x05\x06)", "zip", "unzip"),
    _archive(rb"7z\xbc\xaf\x27\x1c", "7z", "7z x"),
    _archive(rb"Rar!\x1a\x07", "rar", "unrar x"),
    _archive(rb".{257}ustar[\0 ]", "tar", "tar -xf"),
    _compressed(rb"BZh[1-9]1AY&SY", "bzip2"),
    _compressed(rb"\xfd7zXZ\0", "xz"),
    _compressed(rb"\x04\x22\x4d\x18", "lz4"),
    Foreign(rb"ARROW1\0\0", "an Arrow file", PARQUET),
    Foreign(rb"Obj\x01", "an Avro file", PARQUET),
    Foreign(rb"SQLite format 3\0", "an SQLite database", "export the table as CSV, and give that"),
)
TABLES = (
    Foreign(rb"PAR1", "a Parquet file", "say so with --format parquet"),
    Foreign(rb"\x1f\x8b", "compressed with gzip", "`gzip -d` it first, or name the file itself"),
    Foreign(
        rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",
        "compressed with zstd",
        "`zstd -d` it first, or name the file itself",
    ),
)
"""What a table may be, and a list that is kept as it is may not."""


def check_beginning(beginning: bytes, *, of_list: bool = False) -> None:
    """Refuse what begins like something else, before anybody looks for URLs in it. Raises UnfitTableError."""
    for foreign in FOREIGN + (TABLES if of_list else ()):
        if re.match(foreign.beginning, beginning, re.DOTALL):
            raise UnfitTableError(f"is {foreign.what}: {foreign.way_out}")


def begins_as_table(beginning: bytes) -> bool:
    """Whether a file that is called a list is none that can be kept as it is, and a table that can be read."""
    return any(re.match(table.beginning, beginning) for table in TABLES)
