"""Sitemaps, robots.txt and text files name pages; whatever else a file may be, reading it is bounded."""

import gzip

import pytest

from worker.sources.sitemap import NamedImage, read_sitemap, read_text_sitemap, sitemaps_of_robots

URLSET = '<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9" xmlns:image="http://www.google.com/schemas/sitemap-image/1.1">'
SITE = "http://site.test"


def urlset(*entries: str) -> bytes:
    """A sitemap of these entries."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{URLSET}{"".join(entries)}</urlset>'.encode()


def entry(path: str, more: str = "") -> str:
    """One page of a sitemap."""
    return f"<url><loc>\n {SITE}{path} </loc><lastmod>2026-01-01</lastmod>{more}</url>"


def test_pages_and_images():
    """Pages in their order, and the images of each with what is told of them."""
    image = (
        f"<image:image><image:loc>{SITE}/a.jpg?x=1&amp;y=2</image:loc><image:title>Owl</image:title>"
        "<image:license>https://l.test/</image:license></image:image>"
        f"<image:image><image:caption>no URL</image:caption></image:image>"
        f"<image:image><image:loc><![CDATA[{SITE}/b.jpg]]></image:loc></image:image>"
    )
    sitemap = read_sitemap(urlset(entry("/1"), entry("/2", image), "<url></url>"))
    assert sitemap is not None
    assert sitemap.pages == [f"{SITE}/1", f"{SITE}/2"]
    assert sitemap.images == [
        NamedImage(f"{SITE}/a.jpg?x=1&y=2", f"{SITE}/2", "Owl", None, "https://l.test/"),
        NamedImage(f"{SITE}/b.jpg", f"{SITE}/2"),
    ]
    assert sitemap.broken is None


def test_index():
    """An index names other sitemaps, and no page."""
    body = f"<sitemapindex><sitemap><loc>{SITE}/s.xml.gz</loc></sitemap></sitemapindex>".encode()
    sitemap = read_sitemap(b"\xef\xbb\xbf" + body)
    assert sitemap is not None
    assert (sitemap.sitemaps, sitemap.pages) == ([f"{SITE}/s.xml.gz"], [])


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_encodings(encoding):
    """A file may be in another encoding, if it says so."""
    body = f'<?xml version="1.0" encoding="{encoding}"?><urlset>{entry("/käuze")}</urlset>'.encode(encoding)
    assert read_sitemap(body).pages == [f"{SITE}/käuze"]


def test_gzip():
    """A compressed file is read as it is decompressed."""
    assert read_sitemap(gzip.compress(urlset(entry("/1")))).pages == [f"{SITE}/1"]


@pytest.mark.parametrize(
    ("body", "pages", "broken"),
    [
        (urlset(entry("/1"), "<url><loc>http://a.test/?x=1&y=2</loc></url>"), 1, "not well-formed"),
        (urlset(entry("/1"), entry("/2"))[:-30], 1, "no element found"),
        (
            gzip.compress(urlset(*(entry(f"/{number}") for number in range(9_000))))[:-90],
            None,
            "it ends early",
        ),
        (gzip.compress(b"<urlset>" + b" " * (51 * 1024 * 1024) + b"</urlset>"), 0, "larger than 50 MiB"),
        (urlset("<a>" * 60), 0, "nested too deep"),
        (b"<urlset>" + entry("/1").encode() * 50_001 + b"</urlset>", 50_000, "more than 50,000 URLs"),
        (b"<urlset><xx:url><xx:loc>http://a.test/</xx:loc></xx:url></urlset>", 1, None),
    ],
)
def test_broken_files(body, pages, broken):
    """What was read until a file breaks off, or a bound is reached, counts; and it is said why there is no more."""
    sitemap = read_sitemap(body)
    assert pages is None or len(sitemap.pages) == pages
    assert (broken is None and sitemap.broken is None) or broken in sitemap.broken


BOMB = """<?xml version="1.0"?><!DOCTYPE urlset [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY x SYSTEM "file:///etc/passwd">]><urlset><url><loc>http://a.test/&b;&x;</loc></url></urlset>"""


@pytest.mark.parametrize(
    "body", [BOMB.encode(), b"<html></html>", b"<rss/>", b"no xml", b"", b"{}", b"\x1f\x8bno"]
)
def test_other_files(body):
    """A file of another kind, or one that declares entities, is no sitemap."""
    assert read_sitemap(body) is None


def test_text():
    """A text file names one page a line."""
    assert read_text_sitemap(b"\xef\xbb\xbfhttp://a.test/1\r\n\n  http://a.test/2 \n").pages == [
        "http://a.test/1",
        "http://a.test/2",
    ]


def test_robots():
    """Sitemap lines count wherever they stand in robots.txt."""
    body = b"sitemap: http://a.test/1\nUser-agent: *\nDisallow: /\nSITEMAP:http://a.test/2 # x\nSitemap:\n"
    assert sitemaps_of_robots(body) == ["http://a.test/1", "http://a.test/2"]
