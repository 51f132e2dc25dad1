"""What a page of HTML gives: its images, its links, and what its owner says."""

import pytest

from worker.address import parse_url
from worker.sources.html import PageImage, names_image, read_page
from worker.sources.nesting import NestingError

PAGE = "http://site.test/birds/owl.html"
SITE = "http://site.test"


def read(html, url=PAGE, content_type="text/html; charset=utf-8"):
    """The page that a text or bytes give."""
    body = html.encode() if isinstance(html, str) else html
    return read_page(parse_url(url), body, content_type, "pixtrawl")


def images(html, url=PAGE):
    """The images of a page, without the site."""
    return [image.url.removeprefix(SITE) for image in read(html, url).images]


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ("<img src=a.jpg>", ["/birds/a.jpg"]),
        ("<IMG SRC='/a.jpg'>", ["/a.jpg"]),
        ("<img src='  a b.jpg\n'>", ["/birds/a%20b.jpg"]),
        ("<img src='a\n.jpg'>", ["/birds/a.jpg"]),
        ("<img src='/a.jpg?x=1&amp;y=2#top'>", ["/a.jpg?x=1&y=2"]),
        ("<img src=//cdn.test/a.jpg>", ["http://cdn.test/a.jpg"]),
        ("<img src=../a.jpg><img src='../a.jpg'>", ["/a.jpg"]),
        ("<img src=käuz.jpg>", ["/birds/k%C3%A4uz.jpg"]),
        ("<img src='data:image/png;base64,AAAA'><img src=blob:http://x/1><img src=javascript:x><img>", []),
        ("<img src=''><img src='http://'><img src='ftp://a/b.jpg'>", []),
        # The largest of a srcset stands for its img, whatever sizes says.
        ("<img src=s.jpg srcset='m.jpg 800w, l.jpg 1600w, t.jpg 90w' sizes=50vw>", ["/birds/l.jpg"]),
        ("<img src=s.jpg srcset='m.jpg, l.jpg 2x, h.jpg 1.5x'>", ["/birds/l.jpg"]),
        ("<img src=s.jpg srcset='a,b.jpg 2w,c.jpg,d.jpg 1w'>", ["/birds/a,b.jpg"]),
        ("<img src=s.jpg srcset='data:image/png;base64,A== 999w, m.jpg 1w'>", ["/birds/m.jpg"]),
        ("<img src=s.jpg srcset=''>", ["/birds/s.jpg"]),
        ("<img src=s.jpg srcset='  , ,'>", ["/birds/s.jpg"]),
        ("<img srcset='m.jpg 1w 2h, l.jpg (3,4) 9w'>", ["/birds/l.jpg"]),
        # What a script would load.
        ("<img src='data:image/gif;base64,R0' data-src=l.jpg>", ["/birds/l.jpg"]),
        ("<img src=grey.gif data-src=l.jpg>", ["/birds/l.jpg"]),
        ("<img src=grey.gif data-original=l.jpg>", ["/birds/l.jpg"]),
        ("<img src=grey.gif data-lazy-src=l.jpg>", ["/birds/l.jpg"]),
        ("<img src=grey.gif data-srcset='m.jpg 1x, l.jpg 2x'>", ["/birds/l.jpg"]),
        (
            "<img data-src=a.jpg><noscript><img src=a.jpg><img src=b.jpg></noscript>",
            ["/birds/a.jpg", "/birds/b.jpg"],
        ),
        ("<head><noscript><img src=h.jpg></noscript></head>", ["/birds/h.jpg"]),
        # Each source of a picture is an image of its own: another crop, or another format.
        (
            (
                "<picture><source srcset='a.webp 1x, b.webp 2x' type=image/webp><source srcset=c.jpg media='(x)'>"
                "<img src=d.jpg></picture>"
            ),
            ["/birds/b.webp", "/birds/c.jpg", "/birds/d.jpg"],
        ),
        ("<video poster=p.jpg><source src=v.mp4></video><audio><source src=a.mp3></audio>", ["/birds/p.jpg"]),
        (
            "<a href=a.JPG>x</a><a href=b.png?x=1#y>x</a><a href=c.html>x</a>",
            ["/birds/a.JPG", "/birds/b.png?x=1"],
        ),
        ("<map><area href=a.webp></map>", ["/birds/a.webp"]),
        ("<a rel='external nofollow' href=a.jpg>x</a>", []),
        ("<input type=image src=i.png><input src=n.png>", ["/birds/i.png"]),
        ("<svg><image href=s.png /><image xlink:href=t.png /></svg>", ["/birds/s.png", "/birds/t.png"]),
        ("<link rel=image_src href=/i.jpg><link rel=icon href=/favicon.ico>", ["/i.jpg"]),
        ("<body background=b.gif><td background=c.gif>", ["/birds/b.gif"]),
        ("<p data-bg=a.jpg><p data-background-image='url(b.jpg)'>", ["/birds/a.jpg", "/birds/b.jpg"]),
        # CSS, a token at a time.
        ("<p style='background: #fff url(a.jpg) no-repeat'>", ["/birds/a.jpg"]),
        ("""<p style='background-image:url("a.jpg"), url( b.jpg )'>""", ["/birds/a.jpg", "/birds/b.jpg"]),
        ("<p style='BACKGROUND-IMAGE: URL(a\\29 .jpg)'>", ["/birds/a).jpg"]),
        ("<p style='cursor: url(a.jpg); color: red'>", []),
        ("<p style='background: /* url(a.jpg) */ url(b.jpg)'>", ["/birds/b.jpg"]),
        ("""<p style='background: "url(a.jpg)"'>""", []),
        ("<p style='background:url(data:image/png;base64,AA=='>", []),
        ("<style>@font-face { src: url(f.woff) } div{background:url('/s.png')}</style>", ["/s.png"]),
        # What a page tells of itself.
        (
            "<meta property=og:image content=/o.jpg><meta name=twitter:image content=t.jpg>",
            ["/o.jpg", "/birds/t.jpg"],
        ),
        ("<meta itemprop=image content=/i.jpg><meta name=image content=/n.jpg>", ["/i.jpg"]),
        (
            "<template><img src=t.jpg></template><!-- <img src=c.jpg> --><script>'<img src=s.jpg>'</script>",
            [],
        ),
        ("<textarea><img src=t.jpg></textarea>", []),
        # Broken, and read all the same.
        ("<img src=a.jpg", []),
        ("<p><img src=a.jpg<b><img src='b.jpg' ><", ["/birds/a.jpg<b", "/birds/b.jpg"]),
        ("</p></b><table><img src=a.jpg><tr>", ["/birds/a.jpg"]),
        ("<img src=a.jpg src=b.jpg>", ["/birds/a.jpg"]),
        ("", []),
        ("\0<img src='a\0.jpg'>", ["/birds/a%EF%BF%BD.jpg"]),
    ],
)
def test_finds_images(html, found):
    """Each way of showing an image gives its URL once, in the order of the page."""
    assert images(html) == found


@pytest.mark.parametrize(
    ("base", "found"),
    [
        ("<base href=/other/>", "/other/a.jpg"),
        ("<base href=sub/x><base href=/second/>", "/birds/sub/a.jpg"),
        ("<base target=_top><base href=https://cdn.test/z/>", "https://cdn.test/z/a.jpg"),
        ("<base href=javascript:x>", "/birds/a.jpg"),
    ],
)
def test_base(base, found):
    """The first base element with an href says what all references are relative to, wherever it stands."""
    assert images(f"<img src=a.jpg>{base}") == [found]


def json_ld(text):
    """The images that a JSON-LD document names."""
    return images(f"<script type='application/ld+json; charset=utf-8'>{text}</script>")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"image": "/a.jpg"}', ["/a.jpg"]),
        (
            '{"image": ["/a.jpg", {"@type": "ImageObject", "url": "/b.jpg", "thumbnailUrl": "/t.jpg"}]}',
            ["/a.jpg", "/b.jpg"],
        ),
        (
            '{"@graph": [{"@type": "WebPage"}, {"x": {"@type": ["ImageObject"], "contentUrl": "/c.jpg"}}]}',
            ["/c.jpg"],
        ),
        ('{"@type": "Article", "thumbnailUrl": "/t.jpg"}', ["/t.jpg"]),
        ('{"@type": "Article", "thumbnailUrl": "/t.jpg", "image": "/a.jpg"}', ["/a.jpg"]),
        ('{"@type": "VideoObject", "contentUrl": "/v.mp4", "thumbnailUrl": ["/t.jpg"]}', ["/t.jpg"]),
        ('{"@type": "ImageObject", "contentUrl": "/c.jpg", "url": "/page.html"}', ["/c.jpg"]),
        ('[{"image": {"contentUrl": "/a.jpg", "url": "/b.html"}}];', ["/a.jpg"]),
        ('{"image": 7, "x": null, "@type": 3}', []),
        ('{"image": "/a.jpg", }', []),
        ("[" * 100_000, []),
        ('{"a":' * 500 + '{"image": "/deep.jpg"}' + "}" * 500, ["/deep.jpg"]),
    ],
)
def test_json_ld(text, found):
    """Images are found in nested graphs; a thumbnail only where there is nothing better."""
    assert json_ld(text) == found


def test_provenance():
    """What a page tells of an image is kept: its text, title, licence and creator."""
    html = """<title>All
      owls</title><svg><title>icon</title></svg>
    <img src=a.jpg alt='A &amp; B' title=T><a href=big.jpg title=Big><img src=thumb.jpg alt=Owl></a>
    <picture><source srcset=c.webp><img src=c.jpg alt=Crop></picture>
    <script type=application/ld+json>{"@type": "ImageObject", "contentUrl": "/l.jpg", "name": "Owl at night",
      "license": "https://creativecommons.org/licenses/by/4.0/", "creator": {"@type": "Person", "name": "Ann"}}
    </script>"""
    page = read(html)
    assert page.title == "All owls"
    assert [image for image in page.images if image.alt or image.title or image.licence] == page.images
    assert page.images == [
        PageImage(f"{SITE}/birds/a.jpg", "A & B", "T"),
        PageImage(f"{SITE}/birds/big.jpg", "Owl", "Big"),
        PageImage(f"{SITE}/birds/thumb.jpg", "Owl"),
        PageImage(f"{SITE}/birds/c.webp", "Crop"),
        PageImage(f"{SITE}/birds/c.jpg", "Crop"),
        PageImage(
            f"{SITE}/l.jpg", None, "Owl at night", "https://creativecommons.org/licenses/by/4.0/", "Ann"
        ),
    ]


def test_texts_that_no_database_holds():
    """Half a character and a NUL, which JSON may spell, are replaced; a URL with them is none."""
    document = """<script type=application/ld+json>[{"@type": "ImageObject", "contentUrl": "/a.jpg",
        "name": "a\\ud800\\u0000b"}, {"image": "/\\ud800.jpg"}]</script>"""
    assert read(document).images == [PageImage(f"{SITE}/a.jpg", None, "a?b")]


def test_links():
    """Links, frames and the next, previous and canonical page are followed, unless they say nofollow."""
    html = """<link rel=canonical href=/owl><link rel=next href=?page=2><link rel=stylesheet href=s.css>
    <a href=/a>a</a><a href=/a#b>a</a><a rel=nofollow href=/no>n</a><a href=mailto:x@y.test>m</a>
    <a href='/b;jsessionid=1?x=a b'>b</a><map><area href=/c></map><iframe src=/d></iframe><a>n</a>
    <meta http-equiv=Refresh content="0; URL='/there'"><meta http-equiv=refresh content=5>
    <a href=http://[::1>broken</a><a href=#top>top</a>"""
    assert [link.removeprefix(SITE) for link in read(html).links] == [
        "/owl",
        "/birds/owl.html?page=2",
        "/a",
        "/b;jsessionid=1?x=a%20b",
        "/c",
        "/d",
        "/there",
        "/birds/owl.html",
    ]


@pytest.mark.parametrize(
    ("meta", "nofollow", "agents"),
    [
        ("<meta name=robots content=nofollow>", True, []),
        ("<meta name=ROBOTS content='NOINDEX, follow'>", False, ["*"]),
        ("<meta name=robots content=none>", True, ["*"]),
        ("<meta name=robots content=noimageindex>", False, ["*"]),
        ("<meta name=robots content='noai, noimageai'>", False, ["*"]),
        ("<meta name=Pixtrawl content=noindex>", False, ["pixtrawl"]),
        ("<meta name=googlebot content='noindex, nofollow'>", False, []),
        ("<meta name=robots content='max-image-preview: none'>", False, []),
        ("<meta name=tdm-reservation content=1>", False, ["*"]),
        ("<meta name=tdm-reservation content=0>", False, []),
        ("<body><meta name=robots content=noai>", False, ["*"]),
    ],
)
def test_owners(meta, nofollow, agents):
    """Meta elements say whether links may be followed and images taken, to everybody or to us."""
    page = read(meta)
    assert page.nofollow is nofollow
    assert [refusal.agent for refusal in page.refusals] == agents


@pytest.mark.parametrize(
    "tag",
    ["a", "area", "audio", "iframe", "img", "input type=image", "link", "meta", "script", "source", "video"],
)
def test_an_element_without_what_it_is_for_costs_nothing(tag):
    """Pages style anything: what such an element lacks is no image and no link, and the others are found."""
    assert images(f"<{tag} style='color: red' background data-bg=''></{tag}><img src=a.jpg>") == [
        "/birds/a.jpg"
    ]


def test_a_picture_of_many_sources_is_read_at_once():
    """All have the text of its image, which is looked for once."""
    sources = "".join(f"<source srcset={number}.jpg>" for number in range(20_000))
    found = read(f"<picture>{sources}<img src=x.jpg alt=Owl></picture>").images
    assert {image.alt for image in found} == {"Owl"}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ("<img alt=Käuze src=x>".encode(), "text/html"),
        ("<img alt=Käuze src=x>".encode("latin-1"), "text/html"),
        ("<img alt=Käuze src=x>".encode("latin-1"), "text/html; charset=ISO-8859-1"),
        ("<img alt=Käuze src=x>".encode("latin-1"), 'text/html; charset="iso-8859-1"'),
        ("<meta charset=latin1><img alt=Käuze src=x>".encode("latin-1"), "text/html; charset=no-such"),
        ("<meta charset=utf-16><img alt=Käuze src=x>".encode(), "text/html"),
        ("<meta charset=rot13><img alt=Käuze src=x>".encode(), "text/html"),
        ("<img alt=Käuze src=x>".encode(), "text/html; charset=undefined"),
        ("<meta charset=unicode-escape><img alt=Käuze src=x>".encode(), "text/html"),
        (b"\xef\xbb\xbf" + "<img alt=Käuze src=x>".encode(), "text/html; charset=latin1"),
        (b"\xff\xfe" + "<img alt=Käuze src=x>".encode("utf-16-le"), ""),
        (
            "<meta http-equiv=Content-Type content='text/html; charset=windows-1252'><img alt=Käuze src=x>".encode(
                "cp1252"
            ),
            "",
        ),
    ],
)
def test_encodings(body, content_type):
    """A byte order mark wins over the header, that over a meta element, that over UTF-8."""
    assert [image.alt for image in read(body, content_type=content_type).images] == ["Käuze"]


@pytest.mark.parametrize("charset", ["Shift_JIS", "EUC-KR", "GB2312", "Big5", "koi8-r", "x-sjis"])
def test_other_scripts(charset):
    """The encodings of the world's pages are read by the names that pages use."""
    text = {"EUC-KR": "부엉이", "GB2312": "猫头鹰", "Big5": "貓頭鷹", "koi8-r": "сова"}.get(
        charset, "ふくろう"
    )
    body = f"<meta charset={charset}><img src=x alt={text}>".encode(charset.removeprefix("x-"))
    assert read(body, content_type="text/html").images[0].alt == text


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 100_000,
        "".join(f"<font size={number}>" for number in range(10_000)) + "<p>x" * 10_000,
        "<span><ul>" * 50_000,
    ],
)
def test_deep_nesting(html):
    """A page whose tree would take minutes or gigabytes is refused before it is built."""
    with pytest.raises(NestingError):
        read(html)


def test_open_elements_of_a_long_page():
    """Elements that nobody closes because the next one does it are no nesting."""
    html = "<ul>" + "<li>x<p>y<img src=a.jpg>" * 30_000 + "</ul>"
    assert images(html) == ["/birds/a.jpg"]


@pytest.mark.parametrize(
    ("url", "is_image"),
    [
        ("http://a.test/x.jpeg", True),
        ("http://a.test/x.WebP?y", True),
        ("http://a.test/x.html", False),
        ("http://a.test/x?y.jpg", False),
        ("http://a.test/x.jpg/", False),
        ("http://a.test/jpg", False),
    ],
)
def test_names_of_images(url, is_image):
    """Only the end of the path counts."""
    assert names_image(url) is is_image
