"""The provider of docs/sources.md, installed as another package would be."""

import importlib
import re
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from models.settings import read_settings
from tests.support.asking import hits_of, walk
from tests.support.gbif_api import GbifApi, occurrence
from worker.sources.provider import Hit, ProviderError, offered_providers, open_provider, read_licences

PAGE = Path(__file__).parents[2] / "docs" / "sources.md"
OURS = ["archive", "commons", "europeana", "flickr", "met", "openverse"]


def block(language):
    """The one block of a language under "Writing a provider"."""
    section = PAGE.read_text().partition("## Writing a provider")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return found


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a module and its entry points onto sys.path, as an installer does."""

    def put(module, source, table):
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        groups = tomllib.loads(table)["project"]["entry-points"]
        lines = [
            f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in groups[group].items())
            for group in groups
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        installed.append(module)

    installed: list[str] = []
    yield put
    for module in installed:
        sys.modules.pop(module, None)


def test_the_provider_of_the_page_works_once_it_is_installed(install):
    """What the page shows is found by its entry point and walks a search to its end, in 40 lines."""
    source = block("python")
    assert len(source.splitlines()) <= 40
    install("pixtrawl_gbif", source, block("toml"))
    assert list(offered_providers()) == sorted([*OURS, "gbif"])
    with GbifApi([occurrence(number, images=number % 3) for number in range(700)]) as api:
        gbif = open_provider("gbif", read_settings(providers={"gbif": {"url": api.url}}))
        pages = walk(gbif)
        assert [query["offset"] for query in api.queries("/v1/occurrence/search")] == ["0", "300", "600"]
    hits = hits_of(pages)
    assert len({hit.provider_id for hit in hits}) == len(hits) == sum(number % 3 for number in range(700))
    assert hits[0] == Hit(
        url="https://photos.example.org/1/1.jpg",
        provider_id="1/1",
        source_page="https://www.inaturalist.org/photos/1",
        licence="by-nc",
        licence_version="4.0",
        licence_url="http://creativecommons.org/licenses/by-nc/4.0/",
        creator="Ada",
        attribution='"Felis catus" by Ada, CC BY-NC 4.0, https://www.inaturalist.org/photos/1',
        title="Felis catus",
    )
    with pytest.raises(ProviderError, match="all images of gbif are under"):
        gbif.check(read_licences(["by-sa"]))


@pytest.mark.parametrize(
    "source",
    [
        "import a_module_that_is_not_there",
        "Other = 1",
        "Gbif = 1",
        "class Gbif: pass",
        "syntax error",
        "1 / 0",
    ],
)
def test_a_package_that_is_broken_is_one_sentence(install, source):
    """Whatever somebody else's package does wrong, its entry point is named."""
    install("pixtrawl_gbif", source, block("toml"))
    with pytest.raises(
        ProviderError, match=r"^the provider 'gbif' \(pixtrawl_gbif:Gbif\) cannot be loaded: \S"
    ):
        open_provider("gbif", read_settings())


def test_what_a_provider_says_of_its_settings_is_not_changed(install):
    """A ProviderError of the constructor comes through as it is."""
    install("pixtrawl_gbif", block("python"), block("toml"))
    with pytest.raises(
        ProviderError, match=r"^PIXTRAWL_PROVIDER_GBIF_KEY means nothing to gbif; there is PIXTRAWL_"
    ):
        open_provider("gbif", read_settings(providers={"gbif": {"key": "x"}}))


@pytest.mark.parametrize("name", OURS)
def test_ours_are_installed_with_the_program(name):
    """Each opens with what it needs, under its own name, and is told who we are."""
    settings = read_settings(
        user_agent="Pixtrawl/0.1 (tests@example.org)",
        providers={"europeana": {"key": "k"}, "flickr": {"key": "k"}},
    )
    provider = open_provider(name, settings)
    assert provider.name == name
    assert re.fullmatch("[a-z0-9]+", name)
    assert provider.pace.requests_per_second > 0
    assert provider.pace.at_once >= 1
    (entry,) = entry_points(group="pixtrawl.providers", name=name)
    assert entry.value == f"worker.sources.providers.{name}:{name.capitalize()}"


def test_the_table_has_every_provider_and_its_fields():
    """docs/sources.md is held to what the providers take."""
    rows = re.findall(r"^\| `(\w+)`.*?\| .*? \| (.*?) \| ", PAGE.read_text(), re.MULTILINE)
    assert sorted(name for name, _ in rows) == OURS
    for name, cell in rows:
        fields = {"key": "k"} if name in {"europeana", "flickr"} else {}
        with pytest.raises(ProviderError) as caught:
            open_provider(name, read_settings(providers={name: {**fields, "nonsense": "x"}}))
        known = re.findall(rf"PIXTRAWL_PROVIDER_{name.upper()}_(\w+)", str(caught.value))[1:]
        assert [field.lower() for field in known] == re.findall(r"`(\w+)`", cell)
