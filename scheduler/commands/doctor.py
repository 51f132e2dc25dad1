"""``pixtrawl doctor``: looks at everything that Pixtrawl needs and says what to do. Repairs nothing."""

import ipaddress
import platform
import resource
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from urllib.parse import urlsplit

import click
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from models.database import SchemaError, UnreachableError, first_line, make_engine, ping, revisions
from models.settings import Settings, read_settings
from scheduler.commands.options import json_option
from scheduler.printing import print_json
from scheduler.servers import ServicesError

POSTGRES_MAJOR_MIN = 15
REDIS_MIN = (6, 2)
GIBIBYTE = 1024**3
FREE_BYTES_MIN = GIBIBYTE // 4
FREE_BYTES_FEW = 5 * GIBIBYTE
DESCRIPTORS_BESIDE_TRANSFERS = 256
UNKNOWN_SECONDS_MAX = 3600
OVERDUE_SECONDS = 86_400


class State(StrEnum):
    """How a check came out. Only a failed one makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


SIGNS = {State.OK: ("✓", "green"), State.WARNING: ("!", "yellow"), State.FAILED: ("✗", "red")}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, what was found, and what to do unless that is well."""

    name: str
    state: State
    found: str
    advice: str = ""


@click.command()
@json_option
def doctor(as_json: bool) -> int:
    """Check everything that Pixtrawl needs, and say what to do. Exits with 1 if a check failed."""
    checks = list(examine(read_settings()))
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            sign, colour = SIGNS[check.state]
            advice = f"\n    {check.advice}" if check.advice else ""
            click.echo(f"{click.style(sign, fg=colour)} {check.name}: {check.found}{advice}")
    return int(any(check.state is State.FAILED for check in checks))


def examine(settings: Settings) -> Iterator[Check]:
    """Every check, in the order in which trouble is best solved."""
    yield check_python()
    yield from check_programs(settings)
    yield check_home(settings)
    with ExitStack() as stack:
        joined = settings
        if settings.embedded:
            try:
                joined = stack.enter_context(services_of(settings))
            except (ServicesError, UnreachableError, SchemaError) as error:
                yield Check("embedded services", State.FAILED, str(error))
                return
        yield from check_database(joined)
        yield check_redis(joined)
        yield check_store(joined)
    yield check_descriptors(settings)
    yield check_user_agent(settings)


@contextmanager
def services_of(settings: Settings) -> Iterator[Settings]:
    """The embedded services, started for the checks unless they run."""
    from scheduler.connect import connected

    with connected(settings) as joined:
        yield joined


def check_python() -> Check:
    """The interpreter. An older one than 3.11 could not even read this file."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("Python", State.OK, found)


def check_programs(settings: Settings) -> Iterator[Check]:
    """The programs of the embedded servers, where these are wanted."""
    from scheduler.embedded_postgres import find_postgres
    from scheduler.embedded_valkey import find_valkey

    wanted: list[tuple[str, bool, Callable[[], object]]] = [
        ("PostgreSQL's program", settings.database_url is None, find_postgres),
        ("Valkey's program", settings.redis_url is None, find_valkey),
    ]
    for name, embedded, find in wanted:
        if embedded:
            try:
                yield Check(name, State.OK, str(find()))
            except ServicesError as error:
                yield Check(name, State.FAILED, str(error))


def check_home(settings: Settings) -> Check:
    """The home: writable, with room."""
    name = f"home {settings.home}"
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home):
            pass
        free = shutil.disk_usage(settings.home).free
    except OSError as error:
        reason = f"cannot be written to ({error.strerror})"
        return Check(name, State.FAILED, reason, "Set PIXTRAWL_HOME to a folder of yours.")
    found = f"writable, {free / GIBIBYTE:.1f} GiB free"
    if free < FREE_BYTES_MIN:
        return Check(name, State.FAILED, found, "Make room, or set PIXTRAWL_HOME to another disk.")
    if free < FREE_BYTES_FEW:
        return Check(name, State.WARNING, found, "That is little for images; a full disk stops a crawl.")
    return Check(name, State.OK, found)


def check_database(settings: Settings) -> Iterator[Check]:
    """PostgreSQL: there, of a supported version, at this program's revision; who works on it."""
    try:
        version = ping(settings.sqlalchemy_url)
    except UnreachableError as error:
        yield Check("PostgreSQL", State.FAILED, str(error), "Start it, or correct PIXTRAWL_DATABASE_URL.")
        return
    if int(version.split(".")[0]) < POSTGRES_MAJOR_MIN:
        advice = f"Pixtrawl needs PostgreSQL {POSTGRES_MAJOR_MIN} or newer."
        yield Check("PostgreSQL", State.FAILED, version, advice)
        return
    yield Check("PostgreSQL", State.OK, version)
    engine = make_engine(settings.sqlalchemy_url)
    try:
        schema = check_revision(engine)
        yield schema
        if schema.state is State.OK:
            yield from check_company(engine)
            yield check_refills(engine, settings)
    except DBAPIError as error:
        yield Check("schema", State.FAILED, first_line(error))
    finally:
        engine.dispose()


def check_revision(engine: Engine) -> Check:
    """Whether the schema is the one that this program was written for."""
    with engine.connect() as connection:
        current, head = revisions(connection)
    if current == head:
        return Check("schema", State.OK, f"revision {current}")
    found = f"revision {current or 'none'}; this program needs {head}"
    return Check("schema", State.FAILED, found, "Run `pixtrawl migrate`.")


LEADER = text("""
SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database
WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.granted AND l.classid = 0
    AND CAST(l.objid AS bigint) = :key
""")


def check_company(engine: Engine) -> Iterator[Check]:
    """Whether a scheduler leads and workers are there: needed as soon as something is to be crawled."""
    from models.sweeping import overdue_sweeps
    from models.workers import live_slots
    from scheduler.leader import LOCK

    with Session(engine) as session:
        leaders = session.execute(LEADER, {"key": LOCK}).scalar_one()
        slots = live_slots(session)
        overdue = overdue_sweeps(session, OVERDUE_SECONDS)
    advice = "`pixtrawl run` brings its own; for `submit`, start `pixtrawl up` or `pixtrawl {}`."
    if leaders:
        yield Check("scheduler", State.OK, "one leads")
    else:
        yield Check("scheduler", State.WARNING, "none runs", advice.format("scheduler"))
    if slots:
        yield Check("workers", State.OK, f"{slots} chunks at once")
    else:
        yield Check("workers", State.WARNING, "none runs", advice.format("worker"))
    if overdue:
        found = f"stray objects of {overdue} jobs that ended a day ago were not looked for"
        yield Check(
            "sweep", State.WARNING, found, "Keep a scheduler running; its log says `sweep_put_off`, and why."
        )
    else:
        yield Check("sweep", State.OK, "nothing is overdue")


def check_refills(engine: Engine, settings: Settings) -> Check:
    """Whether accounts that want to be refilled can be, and every payment's answer is known."""
    from models.refills import refill_wishes

    name = "auto-refill"
    with Session(engine) as session:
        wishes, unknown = refill_wishes(session, UNKNOWN_SECONDS_MAX)
    if unknown:
        found = f"{unknown} without an answer of the payment service for more than an hour"
        advice = "See the scheduler's log; `pixtrawl credits answer` settles what the service cannot tell any more."
        return Check(name, State.WARNING, found, advice)
    provider = settings.payment_provider or settings.payment_url
    if wishes and not provider:
        advice = "Set PIXTRAWL_PAYMENT_URL or PIXTRAWL_PAYMENT_PROVIDER for the scheduler (docs/credits.md)."
        return Check(name, State.WARNING, f"on for {wishes} accounts, and no payment provider is set", advice)
    if provider and provider.startswith("http://") and not on_this_machine(provider):
        advice = "Use https:// unless the service is on your own network."
        return Check(name, State.WARNING, "the payment service's secret is sent without TLS", advice)
    return Check(
        name, State.OK, f"on for {wishes} accounts" if provider else "no payment provider, none wanted"
    )


def on_this_machine(url: str) -> bool:
    """Whether what is sent there leaves this machine nowhere."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_redis(settings: Settings) -> Check:
    """Redis: there, of a supported version, and never dropping a message for another."""
    from kombu import Connection
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    from worker.app import configuration

    options = configuration(settings)["broker_transport_options"]
    try:
        with Connection(settings.broker_url, transport_options=options) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0)
            client = connection.default_channel.client  # type: ignore[attr-defined] # kombu's Redis channel.
            version = str(client.info("server")["redis_version"])
            policy = configured(client, "maxmemory-policy")
    except (OperationalError, RedisError, OSError) as error:
        address = connection_name(settings)
        return Check(
            "Redis",
            State.FAILED,
            f"not reachable at {address}: {error}",
            "Start it, or correct PIXTRAWL_REDIS_URL.",
        )
    if tuple(int(part) for part in version.split(".")[:2]) < REDIS_MIN:
        return Check("Redis", State.FAILED, version, "Pixtrawl needs Redis 6.2 or newer, or Valkey.")
    if policy is None:
        advice = "Make sure that maxmemory-policy is noeviction."
        return Check("Redis", State.WARNING, f"{version}; it does not tell its settings", advice)
    if policy != "noeviction":
        advice = "Set maxmemory-policy to noeviction: a full server must refuse a message, not drop another."
        return Check("Redis", State.FAILED, f"{version}, maxmemory-policy {policy}", advice)
    return Check("Redis", State.OK, f"{version}, maxmemory-policy noeviction")


def configured(client: object, name: str) -> str | None:
    """A setting of Redis; None where managed servers forbid to ask."""
    from redis.exceptions import ResponseError

    try:
        return str(client.config_get(name)[name])  # type: ignore[attr-defined] # redis-py through kombu.
    except (ResponseError, KeyError):
        return None


def connection_name(settings: Settings) -> str:
    """Redis' address without its password."""
    from kombu.utils.url import maybe_sanitize_url

    return str(maybe_sanitize_url(settings.broker_url))


def check_store(settings: Settings) -> Check:
    """The store: a probe is written, read and deleted."""
    from worker.store import StoreError, open_store

    name = f"store {settings.store}"
    probe, body = f"doctor/{uuid.uuid4()}.txt", b"Pixtrawl was here.\n"
    try:
        store = open_store(settings.store)
        store.put(probe, body)
        found = store.read(probe, 0, len(body))
        store.delete([probe])
    except StoreError as error:
        return Check(name, State.FAILED, str(error), "Correct PIXTRAWL_STORE_URL or the credentials.")
    if found != body:
        return Check(name, State.FAILED, "a probe was read back with other bytes", "Use another store.")
    return Check(name, State.OK, "a probe was written, read and deleted")


def check_descriptors(settings: Settings) -> Check:
    """The limit of open files: each transfer needs one, and one more while its body is in a file."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = 2 * settings.transfers + DESCRIPTORS_BESIDE_TRANSFERS
    if limit == resource.RLIM_INFINITY or limit >= needed:
        return Check(
            "open files", State.OK, "no limit" if limit == resource.RLIM_INFINITY else f"up to {limit}"
        )
    advice = (
        f"Allow {needed} (ulimit -n {needed}), or set PIXTRAWL_TRANSFERS lower than {settings.transfers}."
    )
    return Check("open files", State.WARNING, f"up to {limit}", advice)


def check_user_agent(settings: Settings) -> Check:
    """Whether the owner of a site can find out whom to write to."""
    if "@" in settings.user_agent or "://" in settings.user_agent:
        return Check("user agent", State.OK, settings.user_agent)
    advice = "Set PIXTRAWL_USER_AGENT with an address or a page where the owner of a site can reach you."
    return Check("user agent", State.WARNING, settings.user_agent, advice)
