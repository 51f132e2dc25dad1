"""The demo site gives what it promises: real pictures, real failures, one known outcome per line."""

import collections
import threading
import time
import urllib.parse

import httpx
import pytest
from protego import Protego

from models.outcomes import Reason
from models.settings import Settings
from scheduler.demo_pages import make_bomb
from scheduler.demo_site import DemoSite
from tests.support.processes import until
from worker.address import ParsedURL, check_address, parse_url
from worker.errors import AddressError, PictureError
from worker.picture import inspect

PHOTOGRAPHS = 24
BODY_MAX = 300_000
SETTINGS = Settings(image_bytes_max=BODY_MAX)


@pytest.fixture(scope="module")
def site():
    """One small site for every test here."""
    with DemoSite(PHOTOGRAPHS, seed=3, image_bytes_max=BODY_MAX) as opened:
        yield opened


def follow(client: httpx.Client, url: str) -> tuple[str, bytes]:
    """Do in few lines what a crawl does with one line; return the outcome and the body."""
    try:
        for _ in range(6):
            parsed = parse_url(url)
            if parsed.host != "127.0.0.1":
                check_address(parsed.host)
            refusal = wishes(client, parsed)
            if refusal is not None:
                return refusal, b""
            with client.stream("GET", url) as response:
                if response.status_code == 503:
                    continue
                if "location" in response.headers:
                    url = urllib.parse.urljoin(url, response.headers["location"])
                    continue
                return judge(response)
    except AddressError as error:
        return error.reason, b""
    return Reason.REDIRECTS, b""


def wishes(client: httpx.Client, url: ParsedURL) -> Reason | None:
    """What the site's two files say of a URL."""
    if not Protego.parse(client.get(f"{url.origin}/robots.txt").text).can_fetch(url.url, "demo"):
        return Reason.ROBOTS
    rules = client.get(f"{url.origin}/.well-known/tdmrep.json").json()
    reserved = [rule["location"] for rule in rules if rule["tdm-reservation"]]
    path = url.url.partition(url.host)[2]
    return Reason.OPT_OUT if any(location in path for location in reserved) else None


def judge(response: httpx.Response) -> tuple[str, bytes]:
    """Say what a final response comes to."""
    if response.status_code != 200:
        return Reason.HTTP_STATUS, b""
    if "noai" in response.headers.get("X-Robots-Tag", "") or "tdm-reservation" in response.headers:
        return Reason.OPT_OUT, b""
    body = b""
    for piece in response.iter_raw():
        body += piece
        if len(body) > BODY_MAX:
            return Reason.TOO_LARGE, b""
    try:
        inspect(body, SETTINGS)
    except PictureError as error:
        return error.reason, body
    return "accepted", body


def test_every_line_has_its_outcome(site):
    """A simple client that follows every line finds exactly the outcomes that the site announces."""
    outcomes, seen = {}, set()
    with httpx.Client(trust_env=False) as client:
        for entry in site.expected:
            outcome, body = follow(client, entry.text)
            if outcome == "accepted":
                outcome = Reason.DUPLICATE if body in seen else outcome
                seen.add(body)
            outcomes[entry.line] = outcome
    assert site.differences(outcomes) == []
    assert collections.Counter(outcomes.values()) == site.expected_counts()
    assert site.expected_counts()["accepted"] == PHOTOGRAPHS
    assert set(site.expected_counts()) >= {
        Reason.HTTP_STATUS,
        Reason.CORRUPT,
        Reason.NOT_AN_IMAGE,
        Reason.REDIRECTS,
        Reason.TOO_MANY_PIXELS,
        Reason.TOO_LARGE,
        Reason.BLOCKED_ADDRESS,
        Reason.INVALID_URL,
        Reason.DUPLICATE,
        Reason.ROBOTS,
        Reason.OPT_OUT,
    }


def test_lines_are_numbered_from_one(site):
    """Expectations stand in the order of the lines, and every line is on one line."""
    assert [entry.line for entry in site.expected] == list(range(1, len(site.lines) + 1))
    assert [entry.text for entry in site.expected] == site.lines
    assert all("\n" not in line and "{" not in line for line in site.lines)


def test_differences_are_told(site):
    """A wrong outcome, a missing one and a group without an accepted line are each one sentence."""
    outcomes = {entry.line: str(entry.outcome) for entry in site.expected}
    group = next(entry.group for entry in site.expected if entry.group)
    for entry in site.expected:
        if entry.group:
            outcomes[entry.line] = Reason.DUPLICATE
    assert f"group {group} of equal bytes: 0 accepted instead of 1" in site.differences(outcomes)
    wrong = next(entry for entry in site.expected if entry.outcome is Reason.CORRUPT)
    del outcomes[wrong.line]
    assert any(f"line {wrong.line} " in told for told in site.differences(outcomes))


def test_what_was_asked_for_against_its_owner_s_will_is_told():
    """A right outcome is not enough when the picture was requested all the same."""
    with DemoSite(12) as site:
        private = next(line for line in site.lines if "/private/" in line)
        httpx.get(private, trust_env=False)
        assert "/private/photo.jpg was asked for, and its owner forbids that" in site.differences({})


def test_requests_are_counted(site):
    """The log has requests and bytes of each path."""
    path = urllib.parse.urlsplit(next(entry.text for entry in site.expected if entry.group)).path
    before = site.requests[path].count if path in site.requests else 0
    body = httpx.get(site.url + path, trust_env=False).content
    assert site.requests[path].count == before + 1
    # They are counted when all has been sent, which the client may know first.
    until(lambda: site.requests[path].sent_bytes == len(body) * (before + 1), "the bytes")


def test_slow_pages_trickle(site):
    """A slow picture takes at least most of a second, and others are served meanwhile."""
    slow = next(line for line in site.lines if "/slow/" in line)
    quick = next(line for line in site.lines if "/photos/" in line)
    started = time.monotonic()
    thread = threading.Thread(target=httpx.get, args=(slow,), kwargs={"trust_env": False})
    thread.start()
    assert httpx.get(quick, trust_env=False).status_code == 200
    assert time.monotonic() - started < 0.8
    thread.join()
    assert time.monotonic() - started > 0.8


def test_same_seed_gives_the_same_site():
    """Two sites of one seed have the same bytes under the same paths, and another seed has others."""
    bodies = []
    for seed in (1, 1, 2):
        with DemoSite(13, seed=seed) as site:
            authority = site.url.removeprefix("http://")
            lines = [line.replace(authority, "site") for line in site.lines]
            photo = next(line for line in site.lines if "/photos/" in line)
            bodies.append((lines, httpx.get(photo, trust_env=False).content))
    assert bodies[0] == bodies[1] != bodies[2]


def test_closing_leaves_nothing():
    """After the site is closed its port refuses connections and its thread is gone, even mid-transfer."""
    before = set(threading.enumerate())
    with DemoSite(12) as site:
        slow = next(line for line in site.lines if "/slow/" in line)
        with httpx.Client(trust_env=False) as client, client.stream("GET", slow) as response:
            next(response.iter_raw())
            url = site.url
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "demo-site"]


def test_hanging_up_is_no_error(site, caplog):
    """A client that leaves in the middle of the endless body leaves no error in the log."""
    endless = next(line for line in site.lines if "/bombs/endless" in line)
    with httpx.Client(trust_env=False) as client, client.stream("GET", endless) as response:
        next(response.iter_raw())
    assert httpx.get(site.url, trust_env=False).status_code == 404
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_bomb_is_a_valid_picture_in_a_small_file():
    """The bomb is refused for its pixels alone: with room enough its checksums and its end are right."""
    bomb = make_bomb()
    assert len(bomb) < 150_000
    with pytest.raises(PictureError) as caught:
        inspect(bomb, SETTINGS)
    assert caught.value.reason is Reason.TOO_MANY_PIXELS
