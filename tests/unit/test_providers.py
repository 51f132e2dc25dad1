"""What a licence filter says, and how a provider is found."""

import pytest

from models.settings import read_settings
from worker.sources.provider import ProviderError, open_provider, read_licences


@pytest.mark.parametrize(
    ("words", "licences"),
    [
        ([], set()),
        (["by"], {"by"}),
        (["BY-SA ", "cc0"], {"by-sa", "cc0"}),
        (["open"], {"cc0", "pdm", "by", "by-sa"}),
        (["commercial", "modification"], {"cc0", "pdm", "by", "by-sa"}),
        (["open", "by-nc"], {"cc0", "pdm", "by", "by-sa", "by-nc"}),
    ],
)
def test_words_name_any_licence_and_groups_what_all_of_them_allow(words, licences):
    """A job takes each licence that is named, and those that every named group allows."""
    assert read_licences(words).words == licences


def test_an_unknown_licence_is_one_sentence():
    """A word that is none names those there are."""
    with pytest.raises(ValueError, match=r"no licence 'gpl'; the words are cc0, .*, open$"):
        read_licences(["by", "gpl"])


def test_a_filter_takes_no_image_whose_licence_is_unknown():
    """Without a filter everything is taken."""
    assert read_licences([]).admit(None)
    assert read_licences(["by"]).admit("by")
    assert not read_licences(["by"]).admit("by-sa")
    assert not read_licences(["by"]).admit(None)


def test_an_unknown_provider_is_one_sentence():
    """A name that no package offers is answered with those there are."""
    with pytest.raises(ProviderError, match=r"^no installed package offers the provider 'flikr'; there is "):
        open_provider("flikr", read_settings())
