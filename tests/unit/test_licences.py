"""Licences, from addresses and names."""

import pytest

from worker.sources.licences import WORDS, Licence, licence_at, licence_named

CC = "creativecommons.org"


@pytest.mark.parametrize(
    ("url", "word", "version"),
    [
        (f"https://{CC}/licenses/by-sa/4.0/", "by-sa", "4.0"),
        (f"http://www.{CC}/licenses/by/3.0/de/", "by", "3.0"),
        (f"//{CC}/licenses/by-nc/2.5/deed.en", "by-nc", "2.5"),
        ("HTTPS://CreativeCommons.org/Licenses/BY-NC-SA/2.0", "by-nc-sa", "2.0"),
        (f"https://{CC}/licenses/by-nd-nc/1.0/", "by-nc-nd", "1.0"),
        (f"https://{CC}/licenses/by?lang=en", "by", None),
        (f"https://{CC}/publicdomain/zero/1.0/", "cc0", "1.0"),
        (f"https://{CC}/publicdomain/mark/1.0/", "pdm", "1.0"),
        (f"http://{CC}/licenses/publicdomain/", "pdm", None),
        (f"https://{CC}/licenses/sampling+/1.0/", None, None),
        (f"https://{CC}/licenses/nc/1.0/", None, None),
        (f"https://{CC}/licenses/by-sa-nd/4.0/", None, None),
        (f"https://{CC}/licenses/by-by/4.0/", None, None),
        (f"https://{CC}.example.org/licenses/by/4.0/", None, None),
        (f"https://example.org/?{CC}/licenses/by/4.0/", None, None),
        ("http://rightsstatements.org/vocab/InC/1.0/", None, None),
        ("", None, None),
    ],
)
def test_an_address_stands_for_a_licence(url, word, version):
    """Scheme, host, jurisdiction, deed and the order of the parts make no difference; anything else is unknown."""
    assert licence_at(url) == Licence(word, version, url)


@pytest.mark.parametrize(
    ("name", "word", "version"),
    [
        ("CC BY-SA 4.0", "by-sa", "4.0"),
        ("CC BY 2.0 de", "by", "2.0"),
        ("cc-by-sa-3.0,2.5,2.0,1.0", "by-sa", "3.0"),
        ("CC-BY-NC-ND-4.0", "by-nc-nd", "4.0"),
        ("CC BY", "by", None),
        ("CC0", "cc0", None),
        ("cc-zero", "cc0", None),
        ("CC0 1.0 Universal", "cc0", "1.0"),
        ("Public domain", "pdm", None),
        ("Public Domain Mark 1.0", "pdm", "1.0"),
        ("pd", "pdm", None),
        ("PD-old", "pdm", None),
        ("CC BY-XY 4.0", None, None),
        ("CC BYE 4.0", None, None),
        ("GFDL", None, None),
        ("Copyrighted free use", None, None),
        ("podcast", None, None),
        ("All rights reserved", None, None),
        ("", None, None),
    ],
)
def test_a_name_stands_for_a_licence(name, word, version):
    """Names as Commons writes them, long and short; anything else is unknown."""
    found = licence_named(name, "https://example.org/licence")
    assert found == Licence(word, version, "https://example.org/licence")


@pytest.mark.parametrize("word", WORDS)
def test_every_word_is_read_from_its_own_address_and_name(word):
    """What is written of a licence leads back to it."""
    path = {"cc0": "publicdomain/zero", "pdm": "publicdomain/mark"}.get(word, f"licenses/{word}")
    assert licence_at(f"https://{CC}/{path}/4.0/").word == word
    assert licence_named(str(Licence(word, "4.0"))) == Licence(word, "4.0")


def test_an_unknown_licence_has_no_name():
    """Nothing stands where a licence would."""
    assert str(Licence(None, "4.0", "https://example.org")) == ""
