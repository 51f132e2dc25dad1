"""Inputs are read from the web, through the guarded door, and from buckets, in small blocks."""

import gzip
import http.server
import ipaddress
import threading
import urllib.parse

import pytest

from models.settings import read_settings
from worker.inputs import Input, InputError

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
BODY = b"url\nhttp://images.test/1.jpg\n" * 100_000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODY, in some way that the path says."""

    def do_GET(self) -> None:
        """Answer one request."""
        path = urllib.parse.unquote(self.path.partition("?")[0])
        status, body, headers = 200, BODY, {}
        if path == "/moved":
            status, body, headers = 302, b"", {"Location": "/table.csv"}
        elif path == "/circle":
            status, body, headers = 302, b"", {"Location": "/circle"}
        elif path == "/coded.csv":
            body, headers = gzip.compress(BODY), {"Content-Encoding": "gzip"}
        elif path == "/cut.csv":
            headers = {"Content-Length": str(len(BODY) + 1)}
        elif path not in {"/table.csv", "/tables/a table.csv"}:
            status, body = 404, b"<Error><Code>NoSuchKey</Code></Error>"
        self.send_response(status)
        always = {
            "Content-Length": str(len(body)),
            "ETag": '"1"',
            "Last-Modified": "Sat, 28 Nov 2026 06:30:00 GMT",
        }
        for name, value in (always | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def origin():
    """Where it serves."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def read(tmp_path):
    """All bytes of an input; loopback is not refused unless told."""

    def read_input(given, networks=LOOPBACK):
        settings = read_settings(home=tmp_path, allowed_networks=networks, redirects_max=2)
        with Input(given, settings).opened() as blocks:
            found = list(blocks)
        assert max(map(len, found)) <= 1024 * 1024
        return b"".join(found)

    return read_input


@pytest.mark.parametrize("path", ["table.csv", "moved", "coded.csv"])
def test_a_table_comes_from_the_web(read, origin, path):
    """As it is, after a redirect, or in a content coding."""
    assert read(f"{origin}/{path}") == BODY


REFUSED = {
    "nothing": "{} cannot be read: it answers 404; look at the address.",
    "circle": "{} cannot be read: it is redirected more than 2 times.",
    "cut.csv": "{} cannot be read: ",
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_the_web_does_not_give_whole_is_an_error(read, origin, path):
    """In one sentence: also what breaks off, since the same again may be whole."""
    with pytest.raises(InputError) as refusal:
        read(f"{origin}/{path}")
    assert str(refusal.value).startswith(REFUSED[path].format(f"{origin}/{path}"))


def test_a_private_address_is_refused(read, origin):
    """An input goes through the same door as images."""
    with pytest.raises(InputError, match=r"is refused: .*PIXTRAWL_ALLOWED_NETWORKS"):
        read(f"{origin}/table.csv", ())


def test_a_table_comes_from_a_bucket(read, origin, monkeypatch):
    """Whatever its object is called; one that is missing is an error."""
    variables = {"AWS_ENDPOINT": origin, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "nowhere"}
    for name, value in (variables | {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}).items():
        monkeypatch.setenv(name, value)
    assert read("s3://tables/a table.csv") == BODY
    with pytest.raises(InputError, match=r"s3://tables/none.csv cannot be read: not found."):
        read("s3://tables/none.csv")


def test_an_input_has_a_name(tmp_path):
    """The last part of its address, without a query, which may hold a secret."""
    settings = read_settings(home=tmp_path)
    names = {
        "-": "standard input",
        "lists/birds.csv.gz": "birds.csv.gz",
        "https://a.test/x/my%20birds.csv?token=secret": "my birds.csv",
        "https://a.test/": "a.test",
        "s3://bucket/a/b.parquet": "b.parquet",
        (tmp_path / "my birds.txt").as_uri(): "my birds.txt",
    }
    assert {given: Input(given, settings).name for given in names} == names
