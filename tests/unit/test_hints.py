"""What the pattern of failures tells: each hint from its pattern, none from noise, and documented as it is."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.breakdown import UNTROUBLED, Breakdown, Cell, break_down, host_of
from models.outcomes import WEB_PAGE, Reason
from models.settings import Settings
from scheduler.hints import HINTS_MAX, HintCode, find_hints
from scheduler.remedies import REMEDIES
from worker.container import read_container
from worker.errors import PictureError

ROOT = Path(__file__).parents[2]


def broken_down(*cells: tuple, job_id: int = 7) -> Breakdown:
    """The breakdown of a whole job: (host, reason, status, candidates[, sign])."""
    made = [
        Cell(host, reason, status, *sign or [None], number) for host, reason, status, number, *sign in cells
    ]
    job = {"id": job_id, "valid_images": 0, "failures": {}}
    for cell in made:
        if cell.reason is None:
            job["valid_images"] += cell.candidates
        else:
            job["failures"][cell.reason] = job["failures"].get(cell.reason, 0) + cell.candidates
    return break_down(job, made)


def on_hosts(number: int, *ending) -> list[tuple]:
    """Ten candidates on each of so many hosts that ended alike."""
    reason, status, *sign = ending
    return [(f"{place}.images.test", reason, status, 10, *sign) for place in range(number)]


FINE = ("fine.images.test", None, None, 100)
PATTERNS = {
    HintCode.PRIVATE_ADDRESSES: [("10.0.0.1", "blocked_address", None, 3), ("x.test", None, None, 2)],
    HintCode.USER_AGENT_REFUSED: [FINE, *on_hosts(5, "http_status", 403)],
    HintCode.HOST_REFUSES: [FINE, ("no.images.test", "http_status", 403, 50)],
    HintCode.HOST_DOMINATES: [FINE, ("down.images.test", "connect", None, 50)],
    HintCode.RATE_LIMITED: [FINE, *on_hosts(2, "rate_limited", 503)],
    HintCode.DNS_OVERLOADED: [FINE, *on_hosts(5, "dns", None, "temporary")],
    HintCode.BANDWIDTH_FULL: [FINE, *on_hosts(3, "timeout", None), *on_hosts(4, "too_slow", 200)],
    HintCode.TLS_BROKEN: [FINE, *on_hosts(4, "tls", None)],
    HintCode.DEAD_LINKS: [FINE, *on_hosts(4, "http_status", 404), *on_hosts(4, "dns", None)],
    HintCode.WEB_PAGES: [FINE, *on_hosts(4, "not_an_image", 200, "page")],
    HintCode.DUPLICATES: [("fine.images.test", None, None, 1), *on_hosts(4, "duplicate", 200)],
}
SAID = {
    HintCode.USER_AGENT_REFUSED: "50 requests to 5 hosts (403). Name a contact in PIXTRAWL_USER_AGENT",
    HintCode.HOST_REFUSES: "no.images.test refuses crawlers (50 answers 403): ask its owner",
    HintCode.HOST_DOMINATES: "down.images.test has 100 % of the failures, mostly connect: it may be down, try "
    "later with `pixtrawl retry 7`.",
    HintCode.RATE_LIMITED: "20 candidates were rate-limited by 2 hosts: lower PIXTRAWL_HOST_TRANSFERS",
    HintCode.DNS_OVERLOADED: "did not answer for 50 candidates on 5 hosts",
    HintCode.BANDWIDTH_FULL: "70 candidates on 4 hosts timed out or were too slow",
    HintCode.TLS_BROKEN: "TLS failed for 40 candidates on 4 hosts: check the clock",
    HintCode.DEAD_LINKS: "The list is old: 80 links are dead",
    HintCode.WEB_PAGES: "instead of images from 40 URLs",
    HintCode.DUPLICATES: "40 candidates have the bytes of others",
}


@pytest.mark.parametrize("code", HintCode)
def test_each_pattern_has_its_hint(code: HintCode) -> None:
    """The pattern alone gives this hint and no other, with its numbers and the way out."""
    [hint] = find_hints(broken_down(*PATTERNS[code]))
    assert hint.code is code
    assert SAID.get(code, "PIXTRAWL_ALLOWED_NETWORKS") in hint.message
    assert (hint.host is not None) == (code in {HintCode.HOST_REFUSES, HintCode.HOST_DOMINATES})
    assert hint.host is None or hint.host in hint.message


def test_a_hint_hides_only_what_it_says_itself() -> None:
    """One host is down, another refuses, two want to be asked less often: three hints, the largest first."""
    cells = [("down.test", "timeout", None, 90), ("no.test", "http_status", 403, 30)]
    cells += [("a.test", None, None, 50), ("b.test", None, None, 50)]
    cells += [("a.test", "rate_limited", 429, 15), ("b.test", "rate_limited", 429, 15)]
    found = [(hint.code, hint.host) for hint in find_hints(broken_down(*cells))]
    assert found == [
        (HintCode.HOST_DOMINATES, "down.test"),
        (HintCode.HOST_REFUSES, "no.test"),
        (HintCode.RATE_LIMITED, None),
    ]
    [alone] = find_hints(broken_down(FINE, ("a.test", "rate_limited", 429, 60), ("b.test", "tls", None, 9)))
    assert (alone.code, alone.host) == (HintCode.HOST_DOMINATES, "a.test")


@pytest.mark.parametrize(
    "cells",
    [
        [],
        [("x.test", None, None, 100)],
        # Too few, whatever their part.
        [("x.test", "http_status", 404, 4)],
        # Too small a part.
        [("x.test", None, None, 1000), *on_hosts(5, "http_status", 404)],
        # A host that fails no more often than it gives.
        [("x.test", None, None, 100), ("y.test", None, None, 1), ("x.test", "corrupt", 200, 90)],
        # One host alone says nothing about hosts.
        [("x.test", "corrupt", 200, 90)],
        # What was not asked for is nobody's fault.
        [(None, "not_needed", None, 1000), (None, "cancelled", None, 1000)],
    ],
)
def test_noise_has_no_hint(cells) -> None:
    """Nothing is said when nothing can be told."""
    assert find_hints(broken_down(*cells)) == []


def test_a_sample_says_about() -> None:
    """Numbers that were estimated from a sample say so; those of reasons are exact."""
    job = {"id": 1, "valid_images": 1000, "failures": {"http_status": 5000, "timeout": 4000}}
    cells = [Cell("x.test", None, None, None, 100)]
    cells += [Cell(f"{place}.test", "http_status", 410, None, 100) for place in range(4)]
    cells += [Cell(f"{place}.test", "timeout", None, None, 100) for place in range(4)]
    breakdown = break_down(job, cells)
    assert breakdown.sampled
    assert sum(breakdown.troubles.values()) == pytest.approx(9000)
    dead, slow = find_hints(breakdown)
    assert "about 5,000 links" in dead.message
    assert slow.message.startswith("4,000 candidates on at least 4 hosts")


HOSTS = st.none() | st.sampled_from(["a.test", "b.test", "c.test", "d.test", "[::1]"])
CELLS = st.builds(
    Cell,
    HOSTS,
    st.none() | st.sampled_from(list(Reason)),
    st.none() | st.sampled_from([200, 401, 403, 404, 429, 503]),
    st.sampled_from([None, "temporary", "page"]),
    st.integers(1, 10_000),
)


@given(
    st.lists(CELLS, max_size=20),
    st.dictionaries(st.sampled_from(list(Reason)), st.integers(0, 100_000)),
    st.integers(0, 100_000),
)
def test_every_breakdown_has_a_few_hints(cells, failures, accepted) -> None:
    """Whatever cells and counters say, even when they contradict each other: at most three whole sentences."""
    hints = find_hints(break_down({"id": 1, "valid_images": accepted, "failures": failures}, cells))
    assert len(hints) <= HINTS_MAX
    assert len({hint.code for hint in hints}) == len(hints)
    for hint in hints:
        assert hint.message.endswith(".")
        assert "None" not in hint.message
        assert hint.candidates > 0


def test_every_reason_has_a_remedy() -> None:
    """When one host fails for it; but for reasons that no host is to blame for."""
    assert set(REMEDIES) == set(Reason) - UNTROUBLED
    for reason in REMEDIES:
        cells = [("fine.test", None, None, 10), ("bad.test", reason.value, None, 50)]
        assert all("{" not in hint.message for hint in find_hints(broken_down(*cells)))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "is gone"),
        (410, "is gone"),
        (503, "try later"),
        (400, "look at what it serves"),
        (None, "look at"),
    ],
)
def test_a_status_has_its_remedy(status, said) -> None:
    """The status that a host answers most often decides what helps."""
    cells = [("fine.test", None, None, 90), ("bad.test", "http_status", status, 50)]
    [hint] = find_hints(broken_down(*cells))
    assert f"mostly http_status{f' {status}' if status else ''}: " in hint.message
    assert said in hint.message


def test_settings_that_hints_name_exist() -> None:
    """Nobody is sent to a variable that is not there."""
    texts = ((ROOT / "scheduler" / name).read_text() for name in ("hints.py", "remedies.py"))
    named = {variable for text in texts for variable in re.findall(r"PIXTRAWL_([A-Z_]+)", text)}
    assert named <= {name.upper() for name in Settings.model_fields}


OUTCOMES = (ROOT / "docs" / "outcomes.md").read_text().partition("## How closely")[0]
ROW = re.compile(r"^\| `(\w+)`[^|]* \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def test_every_reason_and_hint_is_documented() -> None:
    """docs/outcomes.md has a row for each, in order, with its meaning and what to do."""
    rows = [(name, meaning.strip(), remedy.strip()) for name, meaning, remedy in ROW.findall(OUTCOMES)]
    assert [name for name, *_ in rows] == [*map(str, Reason), *map(str, HintCode)]
    assert all(meaning and remedy for _, meaning, remedy in rows)


def test_a_web_page_is_known_by_its_detail() -> None:
    """What the hint counts is what the worker writes."""
    with pytest.raises(PictureError) as caught:
        read_container(b"<!DOCTYPE html><html>Not here</html>")
    assert caught.value.detail == WEB_PAGE


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        (None, None),
        ("", None),
        ("Images.TEST", "images.test"),
        ("images.test:8080", "images.test"),
        ("user:pass@images.test:80", "images.test"),
        ("images.test?x@y", "images.test"),
        ("images.test#f", "images.test"),
        ("[2001:DB8::1]:443", "[2001:db8::1]"),
        (":80", None),
        ("user@", None),
    ],
)
def test_the_host_of_a_url(authority, host) -> None:
    """Without user, port, query or fragment, in lower case."""
    assert host_of(authority) == host


@given(st.text())
def test_every_authority_has_a_host_or_none(authority) -> None:
    """Nothing that stands in a list breaks the count."""
    assert host_of(authority) is None or host_of(authority)
