"""No path is ever built from what a stranger sent: images are named by their bytes and their format alone."""

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.outcomes import Accepted, Candidate, Verification
from models.settings import Settings
from tests.support.bombs import small
from tests.support.hostile_server import LOOPBACK, response, serve
from tests.support.one_candidate import crawl_candidate
from worker.child import Child
from worker.store import NAME, open_store

TARGETS = [
    "/../../../etc/passwd.png",
    "/..%2f..%2fevil.png",
    "/%2e%2e/%2e%2e/evil.sh",
    "/a\\..\\..\\evil.exe",
    "/evil.png%00.jpg",
    "/" + "a" * 5000 + ".png",
    "/CON.png?x=/../../y",
    "/.htaccess",
    "/~root/.ssh/authorized_keys",
    "/;rm%20-rf%20/",
    "/${HOME}.png",
    "/ünï.png",
]
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "AVIF": "avif"}


def test_names_come_from_the_bytes(tmp_path):
    """Whatever URL, type and suggested name say, the store holds one file for each image: its sha256 and format."""
    settings = Settings(
        home=tmp_path / "home",
        store_url=(tmp_path / "store").as_uri(),
        database_url="postgresql://nobody@127.0.0.1:1/none",
        allowed_networks=LOOPBACK,
    )
    child = Child(settings)
    try:
        child.run(_crawl(child, settings))
    finally:
        child.close()
    expected = {f"{hashlib.sha256(small(name)).hexdigest()}.{ending}" for name, ending in FORMATS.items()}
    assert {path.relative_to(tmp_path / "store").as_posix() for path in files(tmp_path)} == expected


async def _crawl(child, settings):
    store, names = child.store(settings.store), list(FORMATS)

    async def answer(request, write):
        headers = {
            "Content-Type": "text/x-sh; name=../../evil",
            "Content-Disposition": "attachment; filename=\"../../evil.sh\"; filename*=UTF-8''%2e%2e%2fevil",
            "Content-Location": "/../../evil.png",
        }
        await write(response(small(names[len(server.requests) % len(names)]), headers=headers))

    async with serve(answer) as server:
        for number, target in enumerate(TARGETS):
            candidate = Candidate(number, server.origin + target, number + 1)
            outcome = await crawl_candidate(child, store, candidate, child.decoder(Verification.FULL))
            assert isinstance(outcome, Accepted), (target, outcome)
            assert re.fullmatch(r"[0-9a-f]{64}\.(jpg|png|webp|gif|avif)", outcome.filename)
            assert outcome.storage_url == f"{settings.store}/{outcome.filename}"


def files(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return [path for path in folder.rglob("*") if path.is_file()]


hostile_names = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from(["..", ".", "", "/", "a", "\\", "%2e", "\0", "~", "C:", "é"]), max_size=8).map(
        "/".join
    ),
)


@given(hostile_names)
def test_a_store_takes_no_name_that_leads_out(name):
    """A name is refused, or has only plain segments that lead downwards."""
    allowed = NAME.fullmatch(name) is not None and ".." not in name
    segments = name.split("/")
    if allowed:
        assert all(segment and not segment.startswith(".") for segment in segments)
        assert "\\" not in name


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/../../evil", "a//b", ".evil", "a\\b", "a\0", "", "evil\n"]
)
def test_a_store_writes_nothing_elsewhere(name, tmp_path):
    """Such a name is an error before anything is written."""
    store = open_store((tmp_path / "store").as_uri())
    for call in (lambda: store.put(name, b"x"), lambda: store.read(name, 0, 1), lambda: store.url(name)):
        with pytest.raises(ValueError, match="is not a name"):
            call()
    assert files(tmp_path) == []
