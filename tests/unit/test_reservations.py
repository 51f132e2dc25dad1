"""X-Robots-Tag and tdmrep.json are read by their lists and rules, not by the first colon."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.reservations import Reservation, Reservations, refused_for, reserves

SITE = "http://images.test"


@pytest.mark.parametrize(
    ("tags", "agent"),
    [
        (["noai"], "*"),
        (["noimageai"], "*"),
        (["noindex"], "*"),
        (["NoImageIndex"], "*"),
        (["none"], "*"),
        (["all"], None),
        (["nofollow, noarchive"], None),
        (["nofollow, noai"], "*"),
        (["nofollow", "noindex"], "*"),
        (["nofollow; noindex"], "*"),
        (["noai noimageai"], "*"),
        ([" noai ,"], "*"),
        ([""], None),
        ([",,:,"], None),
        (["noaid"], None),
        (["max-image-preview: none"], None),
        (["max-snippet: 20, noindex"], "*"),
        # A crawler's name is for the directives behind it, up to the next.
        (["otherbot: noindex"], None),
        (["otherbot: noindex, nofollow, none"], None),
        (["otherbot: nofollow", "noai"], "*"),
        (["noai, otherbot: nofollow"], "*"),
        (["otherbot: noai, pixtrawl: noimageai"], "pixtrawl"),
        (["otherbot: noai, *: noimageai"], "*"),
        (["PixTrawl: noai"], "pixtrawl"),
        (["pixtrawl/0.1: noai"], "pixtrawl"),
        (["pixtrawl : noai"], "pixtrawl"),
        (["pixtrawl: all", "noai"], "*"),
        (["pixtrawler: noai"], None),
        (["robots: noai"], "robots"),
        # Dates have colons and commas of their own.
        (["unavailable_after: 25 Jun 2999 15:00:00 PST"], None),
        (["unavailable_after: 25 Jun 2999 15:00:00 PST, noai"], "*"),
        # Once a date is over, it is noindex; what is no date is ignored.
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], "*"),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 GMT"], "*"),
        (["Unavailable_After : Fri, 25 Jun 2010 15:00:00 GMT, max-snippet: 3"], "*"),
        (["unavailable_after: 2010-06-25"], "*"),
        (["unavailable_after: 2010-06-25T15:00:00Z"], "*"),
        (["nofollow, pixtrawl: unavailable_after: 2010-06-25T15:00:00+02:00"], "pixtrawl"),
        (["unavailable_after: 2999-06-25"], None),
        (["unavailable_after: Friday, 25-Jun-2999 15:00:00 GMT"], None),
        (["unavailable_after: the summer"], None),
        (["unavailable_after: Friday"], None),
        (["unavailable_after"], None),
        (["unavailable_after: 0001-01-01T00:00:00+23:59"], "*"),
        (["otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
        (["pixtrawl: max-image-preview: none"], None),
        (["unavailable_after: Friday, 25-Jun-10 15:00:00 GMT, noindex"], "*"),
        (["noindex, unavailable_after: Fri, 25 Jun 2010 15:00:00 GMT"], "*"),
        (["otherbot: unavailable_after: Friday, 25-Jun-10 15:00:00 GMT, noindex"], None),
        (["noindex: true"], "*"),
    ],
)
def test_a_tag_refuses_whom_it_is_for(tags, agent):
    """What is said to everybody or to us refuses; what is said to another does not."""
    found = refused_for(tags, "pixtrawl")
    assert (found and found[1]) == agent
    assert found is None or found[0] in tags


@given(st.lists(st.text(max_size=40), max_size=4))
def test_no_tag_is_too_odd(tags):
    """Whatever a server sends, nothing is raised."""
    refused_for(tags, "pixtrawl")


@given(
    st.sampled_from(["noai", "noindex", "none", "noimageai", "noimageindex"]),
    st.lists(st.sampled_from(["nofollow", "max-snippet: 3", "noarchive", "all"]), max_size=3),
)
def test_a_directive_counts_wherever_it_stands(refusing, others):
    """No harmless directive before or behind it changes anything."""
    for place in range(len(others) + 1):
        tag = ", ".join([*others[:place], refusing, *others[place:]])
        assert refused_for([tag], "pixtrawl") == (tag, "*")


@pytest.mark.parametrize(
    ("value", "reserved"),
    [
        (1, True),
        ("1", True),
        (True, True),
        (0, False),
        ("0", False),
        (2, False),
        ("yes", False),
        (None, False),
    ],
)
def test_only_one_reserves(value, reserved):
    """0 reserves nothing, and other values break the protocol and say nothing."""
    assert reserves(value) == reserved


def found(document: object, path: str) -> Reservation | None:
    """The rule by which a path is reserved."""
    return Reservations.parse(json.dumps(document).encode()).reservation(SITE + path)


EXAMPLE = [
    {"location": "/a/", "tdm-reservation": 1},
    {"location": "/b/html/", "tdm-reservation": 1, "tdm-policy": "https://owls.test/policy.json"},
    {"location": "/b/images/*.jpg$", "tdm-reservation": 0},
    {"location": "/b/", "tdm-reservation": "1"},
    {"location": "/c/free", "tdm-reservation": 0},
    {"location": "/c", "tdm-reservation": 1},
]


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/a/x.jpg", 0),
        ("/A/x.jpg", None),
        ("/a", None),
        ("/b/html/x?y", 1),
        ("/b/images/x.jpg", None),
        ("/b/images/x.png", 3),
        ("/c/free/x", None),
        ("/c/x", 5),
        ("/d", None),
    ],
)
def test_the_first_rule_that_matches_decides(path, rule):
    """In the order of the file, by patterns as in robots.txt; where none matches nothing is reserved."""
    reservation = found(EXAMPLE, path)
    assert (reservation and reservation.location) == (None if rule is None else EXAMPLE[rule]["location"])


def test_a_rule_tells_its_policy_and_itself():
    """As evidence it stands in the words of the protocol."""
    reservation = found(EXAMPLE, "/b/html/x")
    assert reservation.policy == "https://owls.test/policy.json"
    assert json.loads(reservation.text) == EXAMPLE[1]


@pytest.mark.parametrize(
    ("document", "reserved"),
    [
        ({"location": "/", "tdm-reservation": 1}, True),
        ({"tdm-reservation": 1}, True),
        ({"tdm-reservation": 0}, False),
        ([{"tdm-reservation": 1}], False),
        ([{"location": "/"}], False),
        ([{"location": "/", "tdm-reservation": 2}], False),
        ([{"location": "", "tdm-reservation": 1}], False),
        ([{"location": ["/"], "tdm-reservation": 1}], False),
        (["/", None, 1], False),
        ("reserved", False),
        (1, False),
        (None, False),
    ],
)
def test_what_breaks_the_protocol_says_nothing(document, reserved):
    """Except a single rule without its brackets, which can only mean one thing."""
    assert (found(document, "/x") is not None) == reserved


@pytest.mark.parametrize(
    "body",
    [b"", b"<!doctype html>", b"[", b"\xff\xfe", b"[" * 100_000, b"<html>" + b" " * 600_000],
    ids=["empty", "page", "cut", "bytes", "deep", "large page"],
)
def test_what_is_no_json_says_nothing(body):
    """A page, a cut file, a bottomless one: nobody takes part in the protocol."""
    assert not Reservations.parse(body).rules


def test_what_has_too_many_rules_reserves_the_rest():
    """A rule that is not read may be a reservation, so all is reserved that no rule before has decided."""
    rules = [{"location": f"/free/{place}/", "tdm-reservation": 0} for place in range(1500)]
    assert found(rules[:1000], "/x") is None
    assert found(rules, "/free/999/x") is None
    assert found(rules, "/free/1000/x").text == found(rules, "/x").text
    assert found(rules, "/x").text == (
        "the file has 1500 rules, and 1000 are read: the rest of the site is taken as reserved"
    )


@pytest.mark.parametrize("begin", [b"[", b" {", b"\xef\xbb\xbf["])
def test_what_is_too_large_to_be_read_reserves_everything(begin):
    """As much as that is no mistake; the same bytes of a page would be one."""
    reservation = Reservations.parse(begin + b'{"location": "/a"},' * 40_000).reservation(f"{SITE}/x")
    assert "bytes or more" in reservation.text


def test_half_a_character_spoils_no_other_rule():
    """JSON may say one, which no URL has."""
    rules = [{"location": "/\ud800", "tdm-reservation": 1}, EXAMPLE[0]]
    assert found(rules, "/x") is None
    assert found(rules, "/a/x").location == "/a/"


def test_a_byte_order_mark_is_passed_over():
    """Some editors write one."""
    body = b'\xef\xbb\xbf[{"location": "/", "tdm-reservation": 1}]'
    assert Reservations.parse(body).reservation(f"{SITE}/x") is not None
