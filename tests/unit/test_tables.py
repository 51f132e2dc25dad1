"""Tables of every format become rows; what is broken in them costs itself and nothing else."""

import bz2
import datetime
import decimal
import gzip
import io
import itertools
import json
import lzma
import re
import resource
import tarfile
import tracemalloc
import zipfile

import pyarrow as arrow
import pytest
from backports import zstd
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from models.settings import read_settings
from scheduler.copying import RequestError, copy_of
from tests.support.table_files import COMPRESSIONS, parquet_of, write_table
from worker.inputs import Input
from worker.tables import parquet as parquet_rows
from worker.tables import text
from worker.tables.compression import decompressed
from worker.tables.errors import BrokenTableError, UnfitTableError
from worker.tables.formats import Format, TableOptions
from worker.tables.json_rows import read_json, read_json_lines
from worker.tables.reading import read_rows
from worker.tables.separated import read_separated

A, B, C = (f"http://images.test/{name}.jpg" for name in "abc")
RECORDS = [
    {"url": f"http://images.test/{n}.jpg", "caption": f'Owl "{n}",\nété', "licence": "CC0" if n % 2 else ""}
    for n in range(25)
]


@pytest.fixture
def read(tmp_path):
    """Rows of a file with this name and content; as (url, line, what else is known)."""

    def read_file(name, content, **options):
        path = tmp_path / name
        path.write_bytes(content)
        table = Input(str(path), read_settings(home=tmp_path))
        rows = itertools.chain.from_iterable(read_rows(table, TableOptions(**options)))
        return [(row[0], row[1], row[2] if len(row) > 2 else {}) for row in rows]

    return read_file


def problems(rows):
    """{line: problem} of the rows that have one."""
    return {line: more["problem"] for _, line, more in rows if "problem" in more}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("kind", Format)
def test_every_format_says_the_same(read, kind, compression):
    """URL, metadata and licence come back, whatever they were written in; compression is told by the bytes."""
    content = COMPRESSIONS[compression](write_table(kind, RECORDS))
    for name in (f"table.{kind}{compression}", "table.dat"):
        rows = read(name, content, format=None if name != "table.dat" else kind)
        assert [row[0] for row in rows] == [record["url"] for record in RECORDS]
        if kind is Format.TXT:
            continue
        assert [row[2]["metadata"] for row in rows] == [{"caption": r["caption"]} for r in RECORDS]
        assert [row[2].get("licence") for row in rows] == [r["licence"] or None for r in RECORDS]


CELLS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=2, max_size=2
)


@given(
    st.lists(CELLS, min_size=1, max_size=20), st.integers(1, 50), st.sampled_from([Format.CSV, Format.TSV])
)
@example([["", "\r"]], len("url,a,b\r"), Format.CSV)
def test_any_cell_comes_back(records, size, kind):
    """Whatever stands in a cell, and wherever the blocks end, it is read as it was written."""
    written = [{"url": f"http://i.test/{n}", "a": a, "b": b} for n, (a, b) in enumerate(records)]
    content = write_table(kind, written)
    blocks = [content[start : start + size] for start in range(0, len(content), size)]
    rows = itertools.chain.from_iterable(read_separated(blocks, kind, TableOptions()))
    assert [row[2]["metadata"] for row in rows] == [{"a": a, "b": b} for a, b in records]


BROKEN_ROWS = {
    "cells.csv": (
        f'url,caption\n{A},x\n{B}\n"{C}","two\nlines",z\n{C},y\n',
        {
            3: "line 3, row 2: it has 1 cells, and the header has 2",
            4: "line 4, row 3: it has 3 cells, and the header has 2",
        },
    ),
    "quote.csv": (f'url,caption\n{A},"never closed\n{B},x\n{C},"y"\n', {}),
    "bytes.csv": (
        f"url,caption\n{A},x\n{B},".encode() + b"\xff\xfe\n" + f"{C},y\n".encode(),
        {3: "line 3, row 2: it is not UTF-8"},
    ),
    "url.csv": (f"url,caption\n{A},x\n ,y\n{C},z\n", {3: "line 3, row 2: its url is empty"}),
    "json.jsonl": (
        f'{{"url": "{A}"}}\nno JSON\n\n{{"url": null}}\n{{"caption": 1}}\n7\n{{"url": 7}}\n{{"url": "{A}"}} x\n'
        '{"url": "' + A + '", "a": ' + "[" * 500 + "]" * 500 + "}\n",
        {
            2: "line 2: it is not JSON (Expecting value: line 1 column 1 (char 0))",
            4: "line 4: its url is missing",
            5: "line 5: its url is missing",
            6: "line 6: it is neither an object nor a URL",
            7: "line 7: its url is no text",
            8: "line 8: something follows its JSON",
            9: "line 9: it is nested more than 30 deep",
        },
    ),
    "deep.jsonl": (
        f'{{"url": "{A}"}}\n' + "[" * 100_000 + "\n",
        {2: "line 2: it is not JSON (nested too deep)"},
    ),
    "bytes.jsonl": (f'{{"url": "{A}"}}\n{{"url": "'.encode() + b'\xff"}\n', {2: "line 2: it is not UTF-8"}),
    "rows.json": (
        f'{{"about": {{"n": 1}}, "images": [{{"url": "{A}"}}, null, {{"url": []}}, {{}}], "end": 3}}',
        {
            2: "row 2: it is neither an object nor a URL",
            3: "row 3: its url is a list",
            4: "row 4: its url is missing",
        },
    ),
    "bytes.json": (f'["{A}", "'.encode() + b'\xff", "' + f'{B}"]'.encode(), {2: "row 2: it is not UTF-8"}),
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_a_broken_row_costs_itself(read, name):
    """It says where it is and what is wrong; every other row is read."""
    content, expected = BROKEN_ROWS[name]
    rows = read(name, content.encode() if isinstance(content, str) else content)
    assert problems(rows) == expected
    lines = {line for _, line, more in rows if "problem" not in more}
    assert lines == {row[1] for row in rows} - expected.keys()
    assert len(lines) == {"quote.csv": 3, "cells.csv": 2, "bytes.csv": 2, "url.csv": 2, "bytes.json": 2}.get(
        name, 1
    )


def test_a_digest_that_is_none_is_a_broken_row(read):
    """Digests are told by their length; a row without one is not held to any."""
    md5, sha1 = "D41D8CD98F00B204E9800998ECF8427E", "da39a3ee5e6b4b0d3255bfef95601890afd80709"
    rows = read("t.csv", f"url,sum\n{A},{md5}\n{B},sha1:{sha1}\n{C},abc\n{A},\n".encode(), hash_column="SUM")
    assert [more.get("digest") for _, _, more in rows] == [f"md5:{md5.lower()}", f"sha1:{sha1}", None, None]
    assert problems(rows) == {4: "line 4, row 3: its sum is no sha256, sha1 or md5"}
    raw = {"url": [A, B], "sum": [bytes.fromhex(sha1), md5.lower().encode()]}
    rows = read("t.parquet", parquet_of(raw), hash_column="sum")
    assert [more["digest"] for _, _, more in rows] == [f"sha1:{sha1}", f"md5:{md5.lower()}"]


REFUSED = {
    "empty.csv": (b"", "is empty"),
    "columns.csv": (
        b"name,caption\nx,y\n",
        "does not say which column has the URLs: name one with --url-column (it has name, caption)",
    ),
    "wide.csv": ("url\n".encode("utf-16"), "is UTF-16 text: save it as UTF-8"),
    "image.csv": (b"\x89PNG\r\n\x1a\n\0\0\0\r", "is not text"),
    "coco.json": (
        b'{"images": ["http://i.test/"], "categories": []}',
        "holds several arrays (images, categories)",
    ),
    "none.json": (b'{"a": 1}', "holds no array of rows"),
    "text.json": (b"birds", "is not JSON: it begins with neither [ nor {"),
    "cut.parquet": (parquet_of({"url": [A]})[:-20], "is no Parquet file that can be read"),
    "text.parquet": (b"url\n", "is no Parquet file that can be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_at_all_is_refused(read, name):
    """In the end of a sentence that begins with its name."""
    content, sentence = REFUSED[name]
    with pytest.raises(UnfitTableError) as refusal:
        read(name, content)
    assert str(refusal.value).startswith(sentence)


def zipped(*names):
    """A zip archive of files with these names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, f"url\n{A}\n")
    return file.getvalue()


def tarred():
    """A tar archive of one table."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("birds.csv"), io.BytesIO())
    return file.getvalue()


FOREIGN = {
    "a.csv.zip": (zipped("a.csv"), "is a zip archive: `unzip` it"),
    "named.csv": (zipped("a.csv"), "is a zip archive: `unzip` it"),
    "a.xlsx": (
        zipped("[Content_Types].xml", "xl/workbook.xml"),
        "is an office document: save the sheet as CSV",
    ),
    "a.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500, "is an office document"),
    "a.csv.bz2": (bz2.compress(b"url\n"), "is compressed with bzip2: `bzip2 -d` it; gzip and zstd are read"),
    "a.csv.xz": (lzma.compress(b"url\n"), "is compressed with xz: `xz -d` it"),
    "a.tar.gz": (gzip.compress(tarred()), "is a tar archive: `tar -xf` it"),
    "a.tar": (tarred(), "is a tar archive: `tar -xf` it"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_another_program_has_to_open_names_it(read, tmp_path, name):
    """Whatever it is called, as a table and as a list of URLs."""
    content, sentence = FOREIGN[name]
    with pytest.raises(UnfitTableError) as refusal:
        read(name, content)
    assert str(refusal.value).startswith(sentence)
    if not name.endswith(".gz"):
        copy = copy_of(read_settings(home=tmp_path), [str(tmp_path / name)], TableOptions(format=Format.TXT))
        with pytest.raises(RequestError, match=re.escape(f"{name} {sentence}")):
            list(copy.blocks())


def test_a_list_that_is_compressed_is_read_whatever_its_name(tmp_path):
    """A file that is called a list, and is gzip or Parquet, is a table; one that only begins alike is a list."""
    for content in (gzip.compress(A.encode()), zstd.compress(A.encode()), parquet_of({"url": [A]})):
        (tmp_path / "urls.txt").write_bytes(content)
        copy = copy_of(read_settings(home=tmp_path), [str(tmp_path / "urls.txt")], TableOptions())
        assert b"".join(copy.blocks())
        assert (copy.kind, copy.candidates) == ("url_table", 1)
    (tmp_path / "urls.txt").write_text(f"BZh is no URL\nPARrot\n{A}\n")
    copy = copy_of(read_settings(home=tmp_path), [str(tmp_path / "urls.txt")], TableOptions())
    assert b"".join(copy.blocks())
    assert (copy.kind, copy.candidates) == ("url_list", 3)


MANY = [{"url": f"http://images.test/{n}.jpg", "n": str(n * 7919)} for n in range(20_000)]


def broken_files():
    """{name: (content, the beginning of the reason)}: each has thousands of good rows first."""
    table = write_table(Format.CSV, MANY)
    parquet = bytearray(
        parquet_of({"url": [r["url"] for r in MANY]}, row_group_size=5000, compression="none")
    )
    parquet[len(parquet) // 2 : len(parquet) // 2 + 300] = b"\xff" * 300
    packed = gzip.compress(table)
    array = write_table(Format.JSON, MANY)
    return {
        "cut.csv.gz": (packed[: len(packed) // 2], "its gzip data is cut off"),
        "flipped.csv.gz": (packed[:40_000] + b"\0" * 99 + packed[40_099:], "its gzip data is damaged"),
        "cut.csv.zst": (zstd.compress(table)[:40_000], "its zstd data is cut off"),
        "cut.json": (array[: len(array) // 2], "it breaks off at row "),
        "comma.json": (
            array[:-1] + b' {"url": 1}]',
            "its array breaks off after row 20000: '{' stands where a comma",
        ),
        "group.parquet": (bytes(parquet), "its row group "),
    }


@pytest.mark.parametrize(
    "name", ["cut.csv.gz", "flipped.csv.gz", "cut.csv.zst", "cut.json", "comma.json", "group.parquet"]
)
def test_what_was_read_before_a_table_breaks_off_stays(tmp_path, name):
    """Its reason is told, and the rows so far are right."""
    content, reason = broken_files()[name]
    (tmp_path / name).write_bytes(content)
    rows = []
    table = read_rows(Input(str(tmp_path / name), read_settings(home=tmp_path)), TableOptions())
    with pytest.raises(BrokenTableError) as breach:
        rows.extend(row for batch in table for row in batch)
    assert str(breach.value).startswith(reason)
    right = [record["url"] for record in MANY]
    read = [row[0] for row in rows if len(row) < 3 or "problem" not in row[2]]
    assert len(read) >= 4000
    if name == "cut.json":  # Not one row before the break is lost.
        assert str(breach.value).startswith(f"it breaks off at row {len(read) + 1}: ")
    # Deflate makes something of most damage, and only its end shows what that was.
    sure = 4000 if name.startswith("flipped") else len(read)
    assert read[:sure] == right[:sure]


def test_columns_are_found(read):
    """By their name however it is written, by being the only one, by an option, or by the URL in a first row."""
    assert read("a.csv", f"id,Image_URL\n7,{A}\n".encode())[0][2] == {"metadata": {"id": "7"}}
    assert read("b.csv", f"anything\n{A}\n".encode()) == [(A, 2, {})]
    assert read("c.csv", f"url;there\n{B};{A}\n".encode(), url_column="There")[0][0] == A
    assert read("d.tsv", f"an owl\t{A}\na wren\t{B}\n".encode()) == [
        (A, 1, {"metadata": {"column 1": "an owl"}}),
        (B, 2, {"metadata": {"column 1": "a wren"}}),
    ]
    assert read("e.csv", f"\ufeffurl,a,a,\r\n{A},1,2,3\r\n".encode())[0][2]["metadata"] == {
        "a": "1",
        "a.1": "2",
        "column 4": "3",
    }
    assert read("f.json", f'{{"url": "{A}", "n": 1}}\n{{"url": "{B}", "m": [2]}}\n'.encode()) == [
        (A, 1, {"metadata": {"n": 1}}),
        (B, 2, {"metadata": {"m": [2]}}),
    ]
    assert read("g.json", f'["{A}", "{B}"]'.encode()) == [(A, 1, {}), (B, 2, {})]
    with pytest.raises(UnfitTableError, match=r"has no column here \(--url-column\): it has url, there"):
        read("c.csv", f"url;there\n{B};{A}\n".encode(), url_column="here")


def test_a_parquet_bomb_breaks_off(read):
    """A few kilobytes of a dictionary that stand for gigabytes of rows take no such memory, however often."""
    long = arrow.array([f"http://images.test/{'a' * 2_000_000}"])
    urls = arrow.DictionaryArray.from_arrays(arrow.array([0] * 2000, arrow.int32()), long)
    content = parquet_of({"url": urls}, compression="zstd")
    assert len(content) < 10_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BrokenTableError, match="its row group 1 of 1 takes too much memory behind row"):
        read("bomb.parquet", content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_200_000
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


def test_long_rows_of_parquet_are_read_a_few_at_a_time(monkeypatch):
    """As many as make up a bounded part of their row group."""
    monkeypatch.setattr(parquet_rows, "BATCH_BYTES", 100_000)
    columns = {"url": [A] * 2000, "text": [f"{n:01000}" for n in range(2000)]}
    file = io.BytesIO(parquet_of(columns, use_dictionary=False))
    sizes = [len(batch) for batch in parquet_rows.read_parquet(file, TableOptions())]
    assert sum(sizes) == 2000
    assert 80 < max(sizes) < 110


def test_parquet_with_one_name_twice(read):
    """As in CSV, the second column gets a name of its own."""
    file = io.BytesIO()
    both = arrow.table([arrow.array([A]), arrow.array([1]), arrow.array([2])], names=["url", "w", "w"])
    parquet.write_table(both, file)
    [row] = read("t.parquet", file.getvalue())
    assert (row[0], sorted(row[2]["metadata"].values())) == (A, [1, 2])


def test_parquet_with_odd_values_inside_a_list(read):
    """They are missing, and the row is not."""
    times = arrow.array([[1_764_316_800_000_000_001], None], arrow.list_(arrow.timestamp("ns")))
    assert [row[0] for row in read("t.parquet", parquet_of({"url": [A, A], "times": times}))] == [A, A]


def test_parquet_of_every_kind_of_column(read):
    """Nested, exact, dated and missing values are as JSON can hold them; the index of pandas is none."""
    day = datetime.date(2026, 11, 28)
    columns = {
        "URL": arrow.array([A, None]).dictionary_encode(),
        "TEXT": [b"owl", b"\xff"],
        "similarity": [0.5, float("nan")],
        "box": [{"at": [1, 2], "when": day}, None],
        "price": arrow.array([decimal.Decimal("1.10"), None]),
        "time": arrow.array([1_764_316_800_000_000_001, None], arrow.timestamp("ns", "UTC")),
        "author": ["Ann", None],
        "width": arrow.array([7, None], arrow.uint64()),
        "__index_level_0__": [3, 4],
    }
    first, second = read("t.parquet", parquet_of(columns))
    assert (first[0], first[2]["creator"]) == (A, "Ann")
    assert first[2]["metadata"] == {
        "TEXT": "owl",
        "similarity": 0.5,
        "box": {"at": [1, 2], "when": "2026-11-28"},
        "price": "1.10",
        "time": "2025-11-28T08:00:00+00:00",
        "width": 7,
    }
    assert second[2] == {"problem": "row 2: its URL is missing"}
    nulls = read("n.parquet", parquet_of(columns | {"URL": [A, B]}))[1][2]["metadata"]
    assert nulls == {
        "TEXT": "ff",
        "similarity": None,
        "box": None,
        "price": None,
        "time": None,
        "width": None,
    }


def huge_line():
    """300 MB without a line's end, and a good row behind it."""
    yield b"url,caption\n" + A.encode() + b',"'
    yield from itertools.repeat(b"x" * 1_000_000, 300)
    yield f'"\n{B},y\n'.encode()


def huge_element():
    """An array whose second string has 300 MB."""
    yield f'["{A}", "'.encode()
    yield from itertools.repeat(b"x" * 1_000_000, 300)


def bomb():
    """Zeros that were compressed a thousandfold, twice."""
    zeros = gzip.compress(b"#" * 4_000_000)
    yield from itertools.repeat(zeros, 50)
    yield gzip.compress(f"\n{A}\n".encode())


HOSTILE = {
    "csv": lambda: read_separated(huge_line(), Format.CSV, TableOptions()),
    "jsonl": lambda: read_json_lines(huge_line(), TableOptions()),
    "json": lambda: read_json(huge_element(), TableOptions()),
    "gzip": lambda: ([] for _ in decompressed(bomb())),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_sizes_take_no_memory(kind):
    """A cell, a line or an element of 300 MB, or a bomb, is never held whole."""
    rows, reason = [], ""
    tracemalloc.start()
    try:
        for batch in HOSTILE[kind]():
            rows += batch
    except BrokenTableError as error:
        reason = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert reason.endswith("no JSON in 1,048,576 characters" if kind == "json" else "")
    assert peak < 25_000_000
    if kind == "csv":
        assert rows[0][2]["problem"] == f"line 2, row 1: it is longer than {text.LINE_BYTES_MAX:,} bytes"
        assert rows[1][:2] == [B, 3]


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress])
@pytest.mark.parametrize("size", [7, 16 * 1024, 1024 * 1024])
def test_whatever_was_compressed_comes_back(compress, size):
    """Several members, pieces that are full to the byte, blocks of any size, zeros at the end; and with zstd
    frames to be skipped, before and between them.
    """
    parts = [b"", b"\0" * 2 * 1024 * 1024, b"owl", b"ab" * 1_500_000, bytes(range(256)) * 40]
    skipped = b"\x57\x2a\x4d\x18\5\0\0\0birds" if compress is zstd.compress else b""
    packed = b"".join(skipped + compress(part) for part in parts) + skipped + b"\0" * 512
    blocks = [packed[start : start + size] for start in range(0, len(packed), size)]
    assert b"".join(decompressed(blocks)) == b"".join(parts)


def test_a_metadata_value_of_json_is_kept_as_it_is(read):
    """Objects, lists and numbers of a row stay what they are."""
    more = {"box": {"a": [1, None, 2.5]}, "é": "🦉"}
    [(_, _, known)] = read("t.jsonl", json.dumps({"url": A, **more}).encode())
    assert known["metadata"] == more
