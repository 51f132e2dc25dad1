"""robots.txt is read as RFC 9309 has it, and every refusal names the line that it rests on."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.robots import FILE_BYTES_MAX, Line, PathPattern, Rules, product_token

SITE = "http://images.test"


def refusal(text: str | bytes, path: str, name: str = "pixtrawl") -> Line | None:
    """The line of a file that disallows a path."""
    body = text.encode() if isinstance(text, str) else text
    return Rules.parse(body, name).refusal(SITE + path)


GROUPS = """\
User-agent: *
Disallow: /everybody/

User-agent: OtherBot
Disallow: /

user-agent: PixTrawl
user-agent: thirdbot
Disallow: /ours/
Sitemap: http://images.test/map.xml
Allow: /ours/but/

User-agent: pixtrawl/2.0 # the same name
Disallow: /later/
"""


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/everybody/a.jpg", None),
        ("/ours/a.jpg", 9),
        ("/ours/but/a.jpg", None),
        ("/later/a.jpg", 14),
        ("/", None),
    ],
)
def test_our_own_groups_are_taken_together_and_everybody_s_is_not(path, number):
    """A crawler that is named obeys all groups that name it, in any case, and only those."""
    line = refusal(GROUPS, path)
    assert (line and line.number) == number
    assert Rules.parse(GROUPS.encode(), "Pixtrawl").agent == "pixtrawl"


def test_everybody_s_rules_are_for_those_who_are_not_named():
    """Without a group of its own a crawler obeys that of everybody; without that, nothing."""
    assert refusal(GROUPS, "/everybody/a.jpg", "fourth") == Line(2, "Disallow: /everybody/")
    assert Rules.parse(GROUPS.encode(), "fourth").agent == "*"
    assert refusal("User-agent: OtherBot\nDisallow: /", "/") is None
    assert refusal("User-agent: pixtrawl\nDisallow:\nUser-agent: *\nDisallow: /", "/") is None


@pytest.mark.parametrize("name", ["pix", "trawl", "pixtrawler", "pixtrawl-images", "image", "*bot"])
def test_another_s_name_is_not_ours(name):
    """A product token is compared whole: what is said to a crawler of a similar name is not said to us."""
    assert refusal(f"User-agent: {name}\nDisallow: /\n\nUser-agent: *\nDisallow: /x/", "/y/") is None
    assert refusal(f"User-agent: {name}\nAllow: /\n\nUser-agent: *\nDisallow: /x/", "/x/") == Line(
        5, "Disallow: /x/"
    )


@pytest.mark.parametrize(
    ("rules", "path", "refused"),
    [
        ("Disallow: /a", "/a", True),
        ("Disallow: /a", "/abc?d", True),
        ("Disallow: /a", "/A", False),
        ("Disallow: /a/", "/a", False),
        ("Disallow: /*.gif$", "/x/y.gif", True),
        ("Disallow: /*.gif$", "/x/y.gif?z", False),
        ("Disallow: /*.gif", "/x/y.gif?z", True),
        ("Disallow: /a$", "/a", True),
        ("Disallow: /a$", "/ab", False),
        ("Disallow: *private*", "/x/private/y", True),
        ("Disallow: /*s=", "/?s=1", True),
        ("Disallow: /a*b*c", "/a-c-b", False),
        ("Disallow: /private\nAllow: /private/open", "/private/open/x", False),
        ("Allow: /private/open\nDisallow: /private", "/private/shut", True),
        ("Allow: /p\nDisallow: /", "/page", False),
        ("Disallow: /page\nAllow: /page", "/page", False),
        ("Disallow: /x\nAllow: /*.jpg", "/x/y.jpg", False),
        ("Disallow: /foo/bar?baz=http://foo.bar", "/foo/bar?baz=http://foo.bar", True),
        ("Disallow: /caf\u00e9", "/caf%C3%A9", True),
        ("Disallow: /caf%C3%A9", "/caf%c3%a9", True),
        ("Disallow: /~a", "/%7Ea", True),
        ("Disallow: /a%2Fb", "/a/b", False),
        ("Disallow: /a b", "/a%20b", True),
        ("Disallow:", "/a", False),
        ("Disallow: # nothing", "/a", False),
        ("Disallow: /a # but not /b", "/a", True),
        ("disallow:/a", "/a", True),
        ("  DISALLOW  :  /a  ", "/a", True),
        ("Disalow: /a", "/a", True),
        ("Disallow /a", "/a", True),
        ("Noindex: /a", "/a", False),
        ("Disallow: /", "/robots.txt", False),
    ],
)
def test_paths_match_as_the_standard_says(rules, path, refused):
    """Wildcards, ends, percent-encoding, the longest match, and what people write."""
    assert (refusal(f"User-agent: *\n{rules}", path) is not None) == refused


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_end_in_every_way_and_a_byte_order_mark_is_none_of_them(end, mark):
    """Line numbers are those that an editor shows."""
    body = mark + end.join(["User-agent: *", "", "# no", "Disallow: /a"]).encode()
    assert refusal(body, "/a") == Line(4, "Disallow: /a")


def test_what_is_not_utf8_spoils_no_other_line():
    """Bytes of another encoding, NUL and line separators of Unicode: the lines beside them hold."""
    body = b"User-agent: *\nDisallow: /caf\xe9\nDisallow: /nul\x00\nDisallow: /u\xe2\x80\xa8Allow: /\nDisallow: /b"
    assert refusal(body, "/b") == Line(5, "Disallow: /b")
    assert refusal(body, "/caf%E9") is not None
    assert refusal(body, "/") is None
    assert refusal(b"\xff\xfe\x00" * 100, "/") is None


def test_no_more_than_the_bound_is_read_and_no_half_a_line():
    """A rule within 500 KiB counts, one behind does not, and one that is cut says nothing shorter instead."""
    head = b"User-agent: *\nDisallow: /first\n"
    filler = b"#" * (FILE_BYTES_MAX - len(head) - 30) + b"\n"
    inside = head + filler + b"Disallow: /inside\n" + b"Disallow: /private/of/others\n"
    assert len(inside) > FILE_BYTES_MAX > len(head + filler) + 18
    for path, number in (("/first", 2), ("/inside", 4), ("/private/of/others", None), ("/pr", None)):
        line = refusal(inside, path)
        assert (line and line.number) == number


def test_the_line_that_decided_is_named():
    """Of several that match, the longest; its text is as it stands."""
    text = "User-agent: *\nDisallow: /a\n  Disallow: /a/b*c   # why\nDisallow: /a/b"
    assert refusal(text, "/a/b/c") == Line(3, "Disallow: /a/b*c   # why")
    assert refusal(text, "/a/b/x") == Line(4, "Disallow: /a/b")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("User-agent: *\nCrawl-delay: 2.5", 2.5),
        ("User-agent: *\nCrawl-delay: 10\n\nUser-agent: pixtrawl\nDisallow: /a", None),
        ("User-agent: pixtrawl\nCrawl-delay: 1\nUser-agent: *\nCrawl-delay: 9", 1.0),
        ("User-agent: *\nCrawl-delay: soon", None),
        ("User-agent: *\nCrawl-delay: -1", None),
        ("", None),
    ],
)
def test_the_crawl_delay_is_that_of_our_group(text, seconds):
    """In seconds; what is no number is no wish."""
    assert Rules.parse(text.encode(), "pixtrawl").crawl_delay == seconds


@pytest.mark.parametrize(
    ("user_agent", "token"),
    [
        ("Pixtrawl/0.1 (image crawler; me@example.com)", "pixtrawl"),
        ("My-Crawler", "my-crawler"),
        ("img2bot/2 lib/1", "img2bot"),
        ("Mozilla/5.0 (compatible; OwlBot/1.0; +http://owls.test/bot)", "owlbot"),
        ("  spaced/1", "spaced"),
        ("()", "*"),
    ],
)
def test_the_product_token_is_the_first_product_of_the_user_agent(user_agent, token):
    """It is what an operator calls the crawler, without a version."""
    assert product_token(user_agent) == token


PATTERNS = st.text("/ab*$%\u00e9 ", max_size=8)


@given(st.lists(st.tuples(st.sampled_from(["Allow", "Disallow"]), PATTERNS), max_size=6), PATTERNS)
def test_a_refusal_always_rests_on_a_line_that_matches(rules, path):
    """Whatever a file says: the line that is named disallows, and matches the URL by itself."""
    text = "\n".join(["User-agent: *", *(f"{field}: {value}" for field, value in rules)])
    url = f"{SITE}/{path}"
    line = Rules.parse(text.encode(), "pixtrawl").refusal(url)
    if line is not None:
        field, _, value = line.text.partition(":")
        assert field == "Disallow"
        assert PathPattern(value.strip()).matches(url)
        assert rules[line.number - 2][0] == "Disallow"


@given(st.binary(max_size=300))
def test_no_file_is_too_odd_to_be_read(body):
    """Random bytes are read to some rules, and never raise."""
    Rules.parse(b"User-agent: *\n" + body, "pixtrawl").refusal(f"{SITE}/a")


def test_more_rules_than_can_be_compared_disallow_what_they_may():
    """20,000 wildcards let a short URL pass, and a long one only if none of them can forbid it."""
    wildcards = "\n".join(f"Disallow: /*q{place:05}z" for place in range(20_000))
    rules = Rules.parse(f"User-agent: *\n{wildcards}".encode(), "pixtrawl")
    long = f"{SITE}/{'ab' * 3500}"
    began = time.process_time()
    refused = [rules.refusal(long) for _ in range(10)][-1]
    assert time.process_time() - began < 0.4
    assert refused == Line(
        0,
        f"20000 rules with wildcards are too many for a URL of {len(long)} characters: it is taken as disallowed",
    )
    assert rules.refusal(f"{SITE}/abc") is None
    assert rules.refusal(f"{SITE}/abcq00007z").number == 9
    allowed = wildcards.replace("Disallow", "Allow")
    assert Rules.parse(f"User-agent: *\n{allowed}".encode(), "pixtrawl").refusal(long) is None


def test_the_deciding_line_of_very_many_is_found_at_once():
    """The longest pattern that matches, among 20,000; twenty refusals take no longer than one did before."""
    plain = "\n".join(f"Disallow: /q{place:05}/long" for place in range(20_000))
    rules = Rules.parse(f"User-agent: *\nDisallow: /z\n{plain}\nDisallow: /za".encode(), "pixtrawl")
    assert rules.refusal(f"{SITE}/zab") == Line(20_003, "Disallow: /za")
    began = time.process_time()
    for _ in range(20):
        assert rules.refusal(f"{SITE}/zb") == Line(2, "Disallow: /z")
    assert time.process_time() - began < 0.2
