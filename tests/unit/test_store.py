"""Objects are written whole or not at all, read in ranges, and failures are clear sentences."""

import concurrent.futures
import errno
import http.server
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator

import pytest

from worker.store import MissingObjectError, StoreError, open_store, sweep_partial

NAME = "jobs/12/ab01cd.jpg"


@pytest.fixture
def folder(tmp_path):
    """A folder whose name needs percent-encoding, and that does not exist yet."""
    return tmp_path / "my store 100%41" / "objects"


@pytest.fixture
def store(folder):
    """A store in that folder."""
    return open_store(folder.as_uri())


class BucketHandler(http.server.BaseHTTPRequestHandler):
    """As much of S3's wire protocol as a store needs, in memory."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):  # noqa: A002 - the name is the library's
        """Stay silent."""

    def answer(self, status, body=b"", **headers):
        """Send one whole response."""
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self):
        """Answer one call of the protocol."""
        parts = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(parts.query, keep_blank_values=True)
        key = urllib.parse.unquote(parts.path).removeprefix("/bucket").removeprefix("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        objects, kinds = self.server.objects, self.server.kinds
        if self.server.refuse:
            self.answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        elif self.command == "PUT" and "partNumber" in query:
            self.server.parts[int(query["partNumber"][0])] = body
            self.answer(200, ETag='"part"')
        elif self.command == "PUT":
            objects[key], kinds[key] = body, self.headers.get("Content-Type")
            self.answer(200, ETag='"whole"')
        elif self.command == "POST" and "uploads" in query:
            xml = "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
            self.answer(200, xml.encode())
        elif self.command == "POST" and "uploadId" in query:
            objects[key] = b"".join(part for _, part in sorted(self.server.parts.items()))
            xml = "<CompleteMultipartUploadResult><ETag>whole</ETag></CompleteMultipartUploadResult>"
            self.answer(200, xml.encode())
        elif self.command == "POST":
            gone = re.findall(r"<Key>(.*?)</Key>", body.decode())
            deleted = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in gone if objects.pop(key, b""))
            self.answer(200, f"<DeleteResult>{deleted}</DeleteResult>".encode())
        elif self.command == "DELETE":
            self.answer(204)
        elif "list-type" in query:
            self.answer(200, self.listing(query.get("prefix", [""])[0]))
        elif key not in objects:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.send_object(objects[key])

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - the library's names

    def send_object(self, body):
        """Send an object, or the range of it that was asked for."""
        dated = {"Last_Modified": "Wed, 21 Oct 2026 07:28:00 GMT", "ETag": '"whole"'}
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(found[1]), min(int(found[2]), len(body) - 1)
            if first >= len(body):
                self.answer(416)
                return
            dated["Content_Range"] = f"bytes {first}-{last}/{len(body)}"
            self.answer(206, body[first : last + 1], **dated)
        else:
            self.answer(200, body, **dated)

    def listing(self, prefix):
        """Build one page with every object."""
        entries = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(body)}</Size>"
            "<LastModified>2026-10-21T07:28:00.000Z</LastModified></Contents>"
            for key, body in self.server.objects.items()
            if key.startswith(prefix)
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


@pytest.fixture
def bucket(monkeypatch) -> Iterator[http.server.ThreadingHTTPServer]:
    """A bucket server on loopback, to which the driver's own environment variables point."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BucketHandler) as server:
        server.objects, server.parts, server.kinds, server.refuse = {}, {}, {}, False
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "eu-central-1")
        yield server
        server.shutdown()
        thread.join()


def test_folder_round_trip(store, folder):
    """What is put is read back under a URL that names the file, in a folder with awkward characters."""
    url = store.put(NAME, b"0123456789")
    assert url == (folder / NAME).as_uri() == store.url(NAME)
    assert store.name(url) == NAME
    assert (folder / NAME).read_bytes() == b"0123456789"
    assert (store.size(NAME), store.exists(NAME), store.exists("jobs/12/none.jpg")) == (10, True, False)
    store.put(NAME, b"replaced")
    assert store.read(NAME, 0, 100) == b"replaced"
    store.sync()


def test_spaces_need_no_encoding(tmp_path):
    """A file URL typed with plain spaces means the same folder as the encoded one."""
    typed = open_store(f"file://{tmp_path}/a b")
    encoded = open_store(f"file://localhost{tmp_path}/a%20b/")
    typed.put("x.txt", b"same")
    assert encoded.read("x.txt", 0, 4) == b"same"
    assert typed.url("x.txt") == encoded.url("x.txt") == (tmp_path / "a b" / "x.txt").as_uri()


def test_bucket_round_trip(bucket):
    """The same calls work on an object store, with its prefix, content types and ranges."""
    store = open_store("s3://bucket/images/")
    assert store.put(NAME, b"0123456789") == f"s3://bucket/images/{NAME}"
    assert bucket.kinds == {f"images/{NAME}": "image/jpeg"}
    check_ranges(store)
    assert store.exists(NAME)
    assert not store.exists("jobs/12/none.jpg")
    assert [(entry.name, entry.size) for entry in store.list("jobs")] == [(NAME, 10)]
    parts = [bytes([number]) * 3_000_000 for number in range(5)]
    store.put_stream("inputs/1", iter(parts))
    assert bucket.objects["images/inputs/1"] == b"".join(parts)
    store.delete([NAME])
    assert list(bucket.objects) == ["images/inputs/1"]
    store.sync()


def check_ranges(store) -> None:
    """Read ranges inside, across and behind the end of ``0123456789``."""
    assert store.read(NAME, 0, 4) == b"0123"
    assert store.read(NAME, 8, 4) == b"89"
    assert store.read(NAME, 10, 4) == b""
    assert store.read(NAME, 99, 4) == b""
    assert store.read(NAME, 3, 0) == b""


def test_ranges_end_softly(store):
    """A read is short at the end and empty behind it; a missing object is an error of its own."""
    store.put(NAME, b"0123456789")
    check_ranges(store)
    store.put("empty", b"")
    assert store.read("empty", 0, 10) == b""
    for call in (lambda: store.read("none", 0, 1), lambda: store.size("none")):
        with pytest.raises(MissingObjectError, match=r"none in file:///.*: not found"):
            call()


def test_listing_and_deletion(store, folder):
    """A listing has one folder's objects, not its namesakes nor a crash's leftovers; deletion is idempotent."""
    for name in ("jobs/1/a.jpg", "jobs/1/deep/b.jpg", "jobs/12/c.jpg"):
        store.put(name, b"x")
    (folder / "jobs/1/a.jpg#1").write_bytes(b"half")
    store.put("jobs/1/a.jpg", b"y")
    assert sorted(entry.name for entry in store.list("jobs/1/")) == ["jobs/1/a.jpg", "jobs/1/deep/b.jpg"]
    assert len(list(store.list())) == 3
    assert list(store.list("nothing")) == []
    store.delete(["jobs/1/none.jpg", "jobs/1/a.jpg", "jobs/1/deep/b.jpg"])
    assert [entry.name for entry in store.list("jobs")] == ["jobs/12/c.jpg"]


def test_stream_is_written_whole(store):
    """Chunks of any size make one object."""
    chunks = [b"a" * 6_000_000, b"", b"b", b"c" * 1_000_000]
    assert store.put_stream("inputs/7.txt", iter(chunks)) == store.url("inputs/7.txt")
    assert store.size("inputs/7.txt") == 7_000_001
    assert store.read("inputs/7.txt", 5_999_999, 3) == b"abc"
    store.put_stream("inputs/8.txt", [])
    assert store.size("inputs/8.txt") == 0


def test_failing_stream_writes_nothing(store, folder):
    """The error of whoever yields the chunks passes through unchanged, and no object appears."""

    def chunks():
        yield b"a" * 6_000_000
        raise OSError(errno.EIO, "the user's file")

    with pytest.raises(OSError, match="the user's file"):
        store.put_stream("inputs/7.txt", chunks())
    assert not store.exists("inputs/7.txt")
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_stream_needs_constant_memory(folder):
    """Eighty megabytes pass through a process that grows by less than half of that."""
    program = """
import resource, sys
from worker.store import open_store
store = open_store(sys.argv[1])
store.put("warm", b"x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put_stream("large", (bytes(2**20) for _ in range(80)))
assert store.size("large") == 80 * 2**20
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // (2**20 // 1024))
"""
    command = [sys.executable, "-c", program, folder.as_uri()]
    megabytes = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert int(megabytes) < 40 * (1024 if sys.platform == "darwin" else 1)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../x",
        "jobs/../x",
        "jobs/a..b",
        "a//b",
        "a/",
        ".hidden",
        "a/.b",
        "a b",
        "a\n",
        "x#1",
        "a%2e",
        "é",
    ],
)
def test_foreign_names_are_refused(store, name):
    """A name that could leave the store, or read differently in a URL, is a ValueError."""
    with pytest.raises(ValueError, match="not a name"):
        store.put(name, b"x")
    with pytest.raises(ValueError, match="not a name"):
        store.url(name)


def test_foreign_urls_are_refused(store):
    """The URL of another store has no name in this one."""
    for url in ("s3://bucket/x.jpg", store.root + "2/x.jpg", store.root + "/../x.jpg"):
        with pytest.raises(ValueError, match="not "):
            store.name(url)


@pytest.mark.parametrize("url", ["memory://", "ftp://host/x", "/plain/path", "file://host/x", "s3://", ""])
def test_other_schemes_are_refused(url):
    """Whatever is no store's URL is refused with a sentence that names it."""
    with pytest.raises(StoreError, match=re.escape(f"store {url}")) as caught:
        open_store(url)
    assert "\n" not in str(caught.value)


def test_file_in_the_way_is_named(store, folder, tmp_path):
    """A file where a folder should be gives one clear sentence."""
    store.put("jobs", b"a file")
    with pytest.raises(
        StoreError, match=r"cannot write jobs/1\.jpg in file:.*a file is where a folder"
    ) as caught:
        store.put("jobs/1.jpg", b"x")
    assert not caught.value.transient
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot open the store"):
        open_store((tmp_path / "file" / "store").as_uri())


def test_wrong_permissions_are_named(store, folder):
    """A folder that may not be written to gives one clear sentence."""
    folder.chmod(0o500)
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(65534)
    try:
        with pytest.raises(StoreError, match=r"cannot write x\.jpg in file:.*: permission denied") as caught:
            store.put("x.jpg", b"x")
    finally:
        if privileged:
            os.seteuid(0)
        folder.chmod(0o700)
    assert not caught.value.transient


def test_full_disk_is_named_and_leaves_nothing(store, folder):
    """A write that the system cuts short is a clear sentence and leaves no object behind."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StoreError, match="larger than the system allows"):
            store.put("x.jpg", bytes(75_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not store.exists("x.jpg")
    assert list(store.list()) == []


def test_unreachable_bucket_is_transient(bucket, monkeypatch):
    """An object store that does not answer is worth another try; one that refuses the credentials is not."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setattr("worker.store.RETRY", {"max_retries": 1})
        unreachable = open_store("s3://bucket/images")
        with pytest.raises(StoreError, match=r"cannot write x\.jpg in s3://bucket/images") as caught:
            unreachable.put("x.jpg", b"x")
    assert caught.value.transient
    bucket.refuse = True
    monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{bucket.server_port}")
    with pytest.raises(StoreError, match="refuses the credentials") as caught:
        open_store("s3://bucket/images").put("x.jpg", b"x")
    assert not caught.value.transient


def test_threads_write_at_once(store):
    """Many threads that put the same and other names lose nothing."""
    bodies = [bytes([number]) * 5000 for number in range(64)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda body: store.put(f"jobs/1/{body[0] % 16}.jpg", body), bodies))
    entries = list(store.list())
    assert len(entries) == 16
    for entry in entries:
        body = store.read(entry.name, 0, 5000)
        assert len(set(body)) == 1
        assert len(body) == 5000


def test_a_sweep_takes_only_what_a_crash_left(tmp_path):
    """Old partial images go; fresh ones, whole images and other people's files stay."""
    whole, old, fresh = (f"{letter * 64}.jpg" for letter in "abc")
    for name in (whole, f"{old}#1", f"{fresh}#2", "notes.txt#1"):
        (tmp_path / name).write_bytes(b"x")
        if name != f"{fresh}#2":
            os.utime(tmp_path / name, (1, 1))
    assert sweep_partial(tmp_path.as_uri(), 60) == 1
    assert {path.name for path in tmp_path.iterdir()} == {whole, f"{fresh}#2", "notes.txt#1"}
    assert (
        sweep_partial((tmp_path / "not there").as_uri(), 60) == sweep_partial("s3://bucket/jobs/1", 60) == 0
    )
