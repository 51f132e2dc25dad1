"""docs/configuration.md against the settings."""

import re
from pathlib import Path

import pytest

from models.settings import Settings, SettingsError, read_settings

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| `PIXTRAWL_([\w<>]+)` \| (.*?) \| (.*) \|$", re.MULTILINE)


def test_every_setting_is_documented_as_it_is():
    """The table has each setting once, in order, with its default and its description."""
    rows = ROW.findall((ROOT / "docs" / "configuration.md").read_text())
    expected = []
    for name, field in Settings.model_fields.items():
        value = field.get_default(call_default_factory=name != "home", validated_data={})
        default = "the user data folder of the platform" if name == "home" else f"`{value}`"
        if value in (None, (), {}):
            default = "unset"
        variable = "PROVIDER_<NAME>_<FIELD>" if name == "providers" else name.upper()
        expected.append((variable, default, field.description))
    assert rows == expected


def test_a_wrong_setting_is_one_sentence(monkeypatch):
    """A value that does not fit names its variable and where to read on."""
    monkeypatch.setenv("PIXTRAWL_CHUNK_SIZE", "many")
    with pytest.raises(SettingsError, match=r"^PIXTRAWL_CHUNK_SIZE: .*docs/configuration.md\)$"):
        read_settings()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p@h/d", "postgresql+psycopg2://u:p@h/d"),
        ("postgres://h/d", "postgresql+psycopg2://h/d"),
        ("postgresql+psycopg2://h/d", "postgresql+psycopg2://h/d"),
    ],
)
def test_postgresql_urls_mean_psycopg2(given, used):
    """A plain PostgreSQL URL never selects SQLAlchemy's default driver."""
    assert read_settings(database_url=given).sqlalchemy_url == used


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("redis://h:6379/1", "redis://h:6379/1"),
        ("rediss://h:6379", "rediss://h:6379"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("sentinel://a:26379;sentinel://b:26379", "sentinel://a:26379;sentinel://b:26379"),
    ],
)
def test_redis_urls_are_what_kombu_takes(given, used):
    """Each way to name Redis becomes the form that kombu and Flower know."""
    assert read_settings(redis_url=given).broker_url == used


@pytest.mark.parametrize("variable", ["PIXTRAWL_DATABASE_URL", "PIXTRAWL_REDIS_URL"])
def test_urls_of_other_systems_are_refused(monkeypatch, variable):
    """A URL of something else than PostgreSQL or Redis is refused when the settings are read."""
    monkeypatch.setenv(variable, "mysql://h/d")
    with pytest.raises(SettingsError, match=variable):
        read_settings()


@pytest.mark.parametrize("ports", ["http", "80-", "-80", "0", "65536", "90-80", "80;443", "80,,443"])
def test_wrong_ports_are_refused(ports):
    """What is no list of ports and ranges is refused when the settings are read."""
    with pytest.raises(SettingsError, match="PIXTRAWL_ALLOWED_PORTS"):
        read_settings(allowed_ports=ports)


@pytest.mark.parametrize(
    "url",
    ["proxy:3128", "socks5://proxy:1080", "http://", "http://proxy/path", "http://a b:3128", "http://p?x"],
)
def test_what_is_no_proxy_is_refused(url):
    """Only http and https proxies are known, and the password of a wrong one is not printed."""
    with pytest.raises(SettingsError, match=r"^PIXTRAWL_PROXY_URL: must be http") as caught:
        read_settings(proxy_url=url)
    assert "a b" not in str(caught.value)


def test_secrets_are_masked():
    """The password of a URL is in no representation of the settings."""
    settings = read_settings(
        database_url="postgresql://u:hunter2@h/d",
        redis_url="redis://:hunter2@h",
        proxy_url="http://me:hunter2@proxy:3128",
        providers={"flickr": {"key": "hunter2"}},
    )
    assert "hunter2" not in repr(settings)


def test_what_a_provider_is_given_has_a_variable_for_each_field(monkeypatch):
    """The first word names the provider, the rest the field; what is empty was not given."""
    monkeypatch.setenv("PIXTRAWL_PROVIDER_OPENVERSE_CLIENT_ID", "123")
    monkeypatch.setenv("PIXTRAWL_PROVIDER_OPENVERSE_CLIENT_SECRET", "")
    monkeypatch.setenv("PIXTRAWL_PROVIDER_FLICKR_KEY", '{"a": 1}')
    monkeypatch.setenv("PIXTRAWL_PROVIDER_FLICKR", "no field")
    given = read_settings().providers
    assert "123" not in repr(given)
    assert {
        name: {field: word.get_secret_value() for field, word in fields.items()}
        for name, fields in given.items()
    } == {
        "openverse": {"client_id": "123"},
        "flickr": {"key": '{"a": 1}'},
    }


def test_providers_have_no_variable_of_their_own(monkeypatch):
    """Who sets all providers in one variable is told how each field is set."""
    monkeypatch.setenv("PIXTRAWL_PROVIDERS", "{}")
    with pytest.raises(SettingsError, match=r"^PIXTRAWL_PROVIDERS: .*PIXTRAWL_PROVIDER_<NAME>_<FIELD>"):
        read_settings()


def test_environment_gives_a_child_the_same_settings(monkeypatch):
    """Settings survive the way through the environment of a child process."""
    settings = read_settings(
        home="/a b/ü",
        allowed_networks="127.0.0.0/8,::1/128",
        redis_url="unix:///run/r.sock",
        log_json=True,
        providers={"openverse": {"client_id": "a_b", "url": "http://127.0.0.1:1/"}},
    )
    for name, value in settings.environment().items():
        if name.startswith("PIXTRAWL_"):
            monkeypatch.setenv(name, value)
    assert read_settings() == settings


def test_only_settings_read_the_environment():
    """No other module of the project reads os.environ."""
    modules = [path for folder in ("models", "scheduler", "worker") for path in (ROOT / folder).rglob("*.py")]
    reading = {path.name for path in modules if re.search(r"environ\b|getenv", path.read_text())}
    assert reading <= {"settings.py"}
