"""One frozen object with every setting, read from the environment once and passed down.

Nothing else in the project reads ``os.environ``. docs/configuration.md is held to these fields by a test.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.opt_outs import OptOut, read_opt_outs

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

DATABASE_SCHEMES = ("postgresql+psycopg2", "postgresql", "postgres")
MISSING = '{} is not set: set it, or start `pixtrawl up` and run `eval "$(pixtrawl env)"`.'
PROXY_URL = re.compile(r"https?://(?:[^\x00-\x20\x7f/?#@]+@)?[^\x00-\x20\x7f/?#@]+/?")
PROVIDER_PREFIX = "PIXTRAWL_PROVIDER_"
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+socket", "sentinel")


class SettingsError(ValueError):
    """A setting is wrong. The message is one sentence that names the variable."""


class Settings(BaseSettings):
    """Settings of one process. Every field is the variable ``PIXTRAWL_<FIELD>``; units are in the names."""

    model_config = SettingsConfigDict(
        env_prefix="PIXTRAWL_", frozen=True, extra="forbid", env_ignore_empty=True
    )

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("pixtrawl")),
        description="Folder of the embedded services and of the default store.",
    )
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL 15 or newer. Unset: the embedded server in PIXTRAWL_HOME."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis 6.2 or newer, or Valkey: redis://, rediss://, unix:///path or sentinel://. "
        "Unset: the embedded server.",
    )
    redis_sentinel_master: str | None = Field(
        None, description="Name of the master, when PIXTRAWL_REDIS_URL is sentinel://."
    )
    store_url: str | None = Field(
        None,
        description="Where images and inputs are stored: file://, s3://, gs:// or az://. Unset: HOME/store.",
    )
    user: str = Field(
        "local@pixtrawl.invalid", description="E-mail of the profile that the command line acts for."
    )
    user_agent: str = Field(
        "Pixtrawl/0.1 (image crawler; set PIXTRAWL_USER_AGENT with your contact)",
        description="User-Agent of every request; name a contact in it. Its first word names us in robots.txt.",
        min_length=1,
    )
    allowed_networks: Annotated[tuple[IPNetwork, ...], NoDecode] = Field(
        (),
        description="Comma-separated CIDRs that are not public and may be connected to all the same.",
    )
    opt_outs_ignorable: Annotated[tuple[OptOut, ...], NoDecode] = Field(
        (),
        description="Comma-separated opt-outs that a job may be told to ignore: robots, x-robots-tag, tdm.",
    )
    allowed_ports: str = Field(
        "80,443,1024-65535",
        description="Ports that may be connected to; those of other protocols, which browsers refuse, only if "
        "named by themselves.",
    )
    proxy_url: SecretStr | None = Field(
        None,
        description="Proxy for all that is fetched: http://user:password@host:3128 or https://. Unset: none; "
        "HTTP_PROXY is never read.",
    )
    log_level: str = Field("info", description="debug, info, warning or error.")
    log_json: bool = Field(False, description="Write logs as one JSON object a line.")

    credits_per_image: int = Field(
        1, ge=1, description="Price of one accepted image, fixed for a job when it is submitted."
    )
    payment_url: str | None = Field(
        None, description="Where auto-refills are paid, by POST: see docs/credits.md. Unset: there are none."
    )
    payment_secret: SecretStr | None = Field(
        None, description="Bearer token that is sent to PIXTRAWL_PAYMENT_URL."
    )
    payment_provider: str | None = Field(
        None,
        description="Name of an installed package's payment provider, which pays instead of the URL.",
    )
    payment_seconds_max: float = Field(
        20, gt=0, le=120, description="Longest wait for the answer to one request for payment."
    )
    refills_per_day_max: int = Field(
        3, ge=0, description="Most auto-refills of one account that are paid in a day (UTC)."
    )
    chunk_size: int = Field(500, ge=1, le=5000, description="Most candidates in one chunk.")
    lease_seconds: float = Field(
        30, ge=3, description="A worker that is silent for so long has lost its chunk."
    )
    lost_leases_max: int = Field(
        20, ge=0, description="More lost leases in a row without a new outcome than this fail a chunk."
    )
    checkpoint_seconds: float = Field(
        5, gt=0, description="A running chunk commits its outcomes at least so often."
    )
    transfers: int = Field(256, ge=1, le=2000, description="Transfers at once in one child process.")
    host_transfers: int = Field(
        8, ge=1, le=1000, description="Most transfers at once at one host, of all workers together."
    )
    host_rate: float = Field(
        0,
        ge=0,
        description="Most requests per second at one host, of all workers together; 0: as many as it answers well.",
    )
    host_group: Literal["host", "domain", "ip"] = Field(
        "host",
        description="What counts as one host: its name, the domain that was registered (example.co.uk), or the IP "
        "address that its name leads to.",
    )
    host_patience_seconds: float = Field(
        900,
        ge=0,
        le=86400,
        description="A host that asks to wait for longer, or has only refused for so long, is not waited for.",
    )
    transfer_seconds_max: float = Field(
        60, gt=0, description="Total deadline of one request, to the end of its body."
    )
    connect_seconds_max: float = Field(10, gt=0, description="Deadline of one connect, TLS included.")
    read_seconds_max: float = Field(15, gt=0, description="Longest silence while a response arrives.")
    transfer_rate_min: int = Field(
        1024, ge=0, description="Bytes per second under which a transfer is too_slow, after ten seconds."
    )
    transfer_attempts: int = Field(
        3, ge=1, le=10, description="Attempts for one candidate when the reason is transient."
    )
    redirects_max: int = Field(5, ge=0, description="Redirects followed for one candidate.")
    header_bytes_max: int = Field(
        32 * 1024,
        ge=1024,
        description="Largest response header; one field of it has half of that, and 16 KiB at most.",
    )
    image_bytes_max: int = Field(
        20 * 1024 * 1024, ge=1, description="Largest body, as received and after content decoding."
    )
    spool_folder: Path | None = Field(
        None,
        description="Folder for large images while they arrive, best on a disk. Unset: the system's for temporary "
        "files.",
    )
    spool_bytes_max: int = Field(
        1024 * 1024 * 1024,
        ge=0,
        description="Most bytes of them there in one child process; 0: they wait for memory.",
    )
    image_pixels_max: int = Field(
        50_000_000, ge=1, description="Most pixels of one image, all frames together."
    )
    image_frames_max: int = Field(500, ge=1, description="Most frames of one image.")
    decode_bytes_max: int = Field(
        256 * 1024 * 1024,
        ge=16 * 1024 * 1024,
        description="Most memory for decoding an image, and all large ones of a worker: see docs/safety.md.",
    )
    decode_seconds_max: float = Field(
        30,
        gt=0,
        description="Longest decoding of one image. Past it the chunk starts again carefully, and there the image "
        "ends as worker_lost.",
    )
    store_seconds_max: float = Field(
        120,
        gt=0,
        description="Longest write of one image, or sync of the store. Past it the chunk waits for another worker.",
    )

    input_days: float = Field(
        30,
        ge=0,
        description="Days for which the copy of an input is kept after its job has ended, for a retry.",
    )

    providers: Annotated[Mapping[str, Mapping[str, SecretStr]], NoDecode] = Field(
        default_factory=lambda: read_providers(os.environ),
        description="What a keyword provider is given, each field a variable of its own: see below.",
    )

    @field_validator("providers", mode="before")
    @classmethod
    def _providers(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(  # noqa: TRY004 - pydantic makes a sentence of no other.
                "is no setting; there is PIXTRAWL_PROVIDER_<NAME>_<FIELD> for each field"
            )
        return value

    @field_validator("database_url")
    @classmethod
    def _database_url(cls, value: SecretStr | None) -> SecretStr | None:
        """``postgresql://`` means psycopg 3 in SQLAlchemy 2.1; this project uses psycopg2."""
        if value is None:
            return None
        scheme, separator, rest = value.get_secret_value().partition("://")
        if not separator or scheme not in DATABASE_SCHEMES:
            raise ValueError("must begin with postgresql://")
        return SecretStr(f"postgresql+psycopg2://{rest}")

    @field_validator("redis_url")
    @classmethod
    def _redis_url(cls, value: SecretStr | None) -> SecretStr | None:
        scheme, separator, rest = value.get_secret_value().partition("://") if value else ("", "", "")
        if value and (not separator or scheme not in REDIS_SCHEMES):
            raise ValueError("must begin with redis://, rediss://, unix:// or sentinel://")
        return SecretStr(f"redis+socket://{rest}") if scheme == "unix" else value

    @field_validator("payment_url")
    @classmethod
    def _payment_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("https://", "http://")):
            raise ValueError("must begin with https:// or http://")
        return value

    @field_validator("allowed_networks", mode="before")
    @classmethod
    def _allowed_networks(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())
        return value

    @field_validator("opt_outs_ignorable", mode="before")
    @classmethod
    def _opt_outs_ignorable(cls, value: object) -> object:
        return read_opt_outs(value) if isinstance(value, str) else value

    @field_validator("allowed_ports")
    @classmethod
    def _allowed_ports(cls, value: str) -> str:
        read_ports(value)
        return value

    @field_validator("proxy_url")
    @classmethod
    def _proxy_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not PROXY_URL.fullmatch(value.get_secret_value()):
            raise ValueError(
                "must be http://host:port or https://host:port, with user:password@ if it wants them"
            )
        return value

    @field_validator("log_level")
    @classmethod
    def _log_level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    @field_validator("home", "spool_folder")
    @classmethod
    def _folder(cls, value: Path | None) -> Path | None:
        return value and value.expanduser().absolute()

    @property
    def ports(self) -> tuple[range, ...]:
        """Ports that may be connected to, as ranges."""
        return read_ports(self.allowed_ports)

    @property
    def embedded(self) -> bool:
        """Whether either service is the embedded one."""
        return self.database_url is None or self.redis_url is None

    @property
    def store(self) -> str:
        """URL of the store's root, without a trailing slash."""
        return (self.store_url or (self.home / "store").as_uri()).rstrip("/")

    @property
    def broker_url(self) -> str:
        """URL of Redis as kombu and Flower take it.

        Raises SettingsError when no service is named: an embedded one has to be joined first.
        """
        if self.redis_url is None:
            raise SettingsError(MISSING.format("PIXTRAWL_REDIS_URL"))
        return self.redis_url.get_secret_value()

    @property
    def sqlalchemy_url(self) -> str:
        """URL of PostgreSQL as SQLAlchemy takes it.

        Raises SettingsError when no service is named: an embedded one has to be joined first.
        """
        if self.database_url is None:
            raise SettingsError(MISSING.format("PIXTRAWL_DATABASE_URL"))
        return self.database_url.get_secret_value()

    def environment(self) -> dict[str, str]:
        """Environment that gives a child process exactly these settings."""
        values = {
            f"{PROVIDER_PREFIX}{name.upper()}_{field.upper()}": value.get_secret_value()
            for name, fields in self.providers.items()
            for field, value in fields.items()
        }
        for name in type(self).model_fields.keys() - {"providers"}:
            value = getattr(self, name)
            if isinstance(value, SecretStr):
                value = value.get_secret_value()
            if isinstance(value, tuple):
                value = ",".join(str(part) for part in value)
            values[f"PIXTRAWL_{name.upper()}"] = "" if value is None else str(value)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PIXTRAWL_")}
        return kept | values


def read_providers(environ: Mapping[str, str]) -> dict[str, dict[str, SecretStr]]:
    """Collect PIXTRAWL_PROVIDER_<NAME>_<FIELD> as {name: {field: value}}: a name has no underscore, a field may."""
    found: dict[str, dict[str, SecretStr]] = {}
    for variable, value in environ.items():
        name, _, field = variable.removeprefix(PROVIDER_PREFIX).lower().partition("_")
        if variable.startswith(PROVIDER_PREFIX) and name and field and value:
            found.setdefault(name, {})[field] = SecretStr(value)
    return found


def read_ports(text: str) -> tuple[range, ...]:
    """Read ``80,443,1024-65535``. Raises ValueError."""
    found = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError("must be ports and ranges of ports: 80,443,1024-65535")
        ports = range(int(first), int(last or first) + 1)
        if not ports or ports[0] < 1 or ports[-1] > 65535:
            raise ValueError(f"{part.strip()} is no range of ports from 1 to 65535")
        found.append(ports)
    return tuple(found)


def read_settings(**overrides: Any) -> Settings:
    """Read the environment; ``overrides`` win over it.

    Raises SettingsError with one sentence that names the first wrong variable.
    """
    try:
        return Settings(**overrides)
    except ValidationError as error:
        first = error.errors()[0]
        variable = f"PIXTRAWL_{'_'.join(str(part) for part in first['loc'][:1]).upper()}"
        reason = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{variable}: {reason} (see docs/configuration.md)") from None
