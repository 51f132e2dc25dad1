"""Usage is exact: one row for each user and day (UTC), to the byte, however many write at once."""

import datetime
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from models.database import make_engine, transaction
from models.lifecycle import settle_chunk
from models.recording import Tally, count_usage
from tests.support.crawling import accepted, check_books, new_job, query, queue_ready, refused, start
from tests.support.factories import create_profile

WRITERS = 50
PER_WRITER = 8
USAGE = """
SELECT metric_date, images_processed, storage_used_bytes, bandwidth_used_bytes, storage_used_gb, bandwidth_used_gb
FROM usage_metrics WHERE user_id = :user_id ORDER BY metric_date
"""
NOON, NEXT_NOON = "2026-03-31T12:00:00Z", "2026-04-01T12:00:00Z"


@contextmanager
def connections(database_url: str, **options: str) -> Iterator[Engine]:
    """An engine that opens a connection for each transaction, as separate processes would."""
    engine = make_engine(database_url, pooled=False, **options)
    yield engine
    engine.dispose()


@contextmanager
def connections_at(database_url: str, moment: str, zone: str = "UTC") -> Iterator[Engine]:
    """Connections for which it is ``moment``, in the time zone ``zone``: their now() is one of the test's own."""
    now = {"search_path": "clock,pg_catalog,public", "clock.now": moment, "TimeZone": zone}
    with connections(database_url, **now) as engine:
        yield engine


@pytest.fixture
def clock(engine: Engine) -> None:
    """A now() that says what the connection's setting says."""
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA clock"))
        connection.execute(
            text(
                "CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql STABLE "
                "AS $$ SELECT CAST(current_setting('clock.now') AS timestamptz) $$"
            )
        )


@pytest.fixture
def users(engine: Engine) -> list[uuid.UUID]:
    """Two users."""
    with Session(engine) as session:
        return [create_profile(session, commit=True).id for _ in range(2)]


def all_at_once(work: Callable[[Any], None], parts: Iterable[Any]) -> None:
    """Run ``work`` on every part in a thread of its own, all let go at the same moment."""
    parts = list(parts)
    gate = threading.Barrier(len(parts))

    def run(part: Any) -> None:
        gate.wait(timeout=30)
        work(part)

    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(run, parts))


def tally(number: int) -> Tally:
    """A write unlike every other: about 75 kB stored, which alone are 0.00 GB."""
    return Tally(accepted=number % 3, stored_bytes=75_000 + 17 * number, wire_bytes=80_001 + 19 * number)


def count(engine: Engine, user_id: uuid.UUID, written: Tally) -> None:
    """Commit one write."""
    with transaction(engine) as session:
        count_usage(session, user_id, written)


def gigabytes(size_bytes: int) -> Decimal:
    """Bytes in GB of 10^9, rounded once, to hundredths."""
    return (Decimal(size_bytes) / 10**9).quantize(Decimal("0.01"), ROUND_HALF_UP)


def summed(written: Iterable[Tally]) -> tuple[int, int, int, Decimal, Decimal]:
    """What a row of usage must say after these writes."""
    written = list(written)
    stored, wire = sum(t.stored_bytes for t in written), sum(t.wire_bytes for t in written)
    return sum(t.accepted for t in written), stored, wire, gigabytes(stored), gigabytes(wire)


def today(engine: Engine) -> datetime.date:
    """The server's date in UTC."""
    [[date]] = query(engine, "SELECT CAST(now() AT TIME ZONE 'utc' AS date)")
    assert isinstance(date, datetime.date)
    return date


def test_fifty_writers_make_one_row_with_the_exact_sum(database_url, clock, users):
    """Writers of two users, the first of whom make the rows, lose nothing and add nothing."""
    numbers = [range(writer, WRITERS * PER_WRITER, WRITERS) for writer in range(WRITERS)]
    with connections_at(database_url, NOON) as engine:

        def write(own: range) -> None:
            for number in own:
                count(engine, users[number % 2], tally(number))

        all_at_once(write, numbers)
        for index, user_id in enumerate(users):
            written = [tally(number) for number in range(index, WRITERS * PER_WRITER, 2)]
            assert query(engine, USAGE, user_id=user_id) == [(datetime.date(2026, 3, 31), *summed(written))]
            assert summed(written)[3] == Decimal("0.02")
        assert query(engine, "SELECT count(*) FROM usage_metrics") == [(2,)]


def test_fifty_settles_are_counted_to_the_byte(engine, database_url):
    """Fifty chunks of one user's five jobs end at once: usage, images, counters and credits agree."""
    owner = new_job(engine, [3] * 10, balance=1000)
    for _ in range(4):
        new_job(engine, [3] * 10, owner=owner)
    messages = queue_ready(engine, WRITERS)
    started = [start(engine, message) for message in messages]
    assert len(started) == WRITERS

    before = today(engine)
    with connections(database_url) as separate:

        def settle(chunk):
            first, second, third = (candidate.position for candidate in chunk.candidates)
            with transaction(separate) as session:
                assert settle_chunk(session, chunk.fence, [accepted(first), refused(second), accepted(third)])

        all_at_once(settle, started)
    # Each image is 100 bytes in the store and 150 on the wire, each failure 7.
    rows = query(engine, USAGE, user_id=owner.user_id)
    assert sum(row[1] for row in rows) == 2 * WRITERS
    assert sum(row[2] for row in rows) == 200 * WRITERS
    assert sum(row[3] for row in rows) == 307 * WRITERS
    assert {row[0] for row in rows} <= {before, today(engine)}
    if before == today(engine):
        assert len(rows) == 1
        check_books(engine)


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Etc/GMT+12"])
def test_a_day_ends_at_midnight_in_utc(database_url, clock, users, zone):
    """The last microsecond belongs to the old day and midnight to the new one, wherever the session is."""
    moments = ["2026-03-31T23:59:59.999999Z", "2026-04-01T00:00:00Z", "2026-04-01T23:59:59Z"]
    for number, moment in enumerate(moments):
        with connections_at(database_url, moment, zone) as engine:
            count(engine, users[0], tally(number))
            rows = query(engine, USAGE, user_id=users[0])
    assert rows == [
        (datetime.date(2026, 3, 31), *summed([tally(0)])),
        (datetime.date(2026, 4, 1), *summed([tally(1), tally(2)])),
    ]


def test_writers_on_both_sides_of_midnight_make_two_rows(database_url, clock, users):
    """Each write is counted on the day of its own transaction, also while the day turns."""
    with (
        connections_at(database_url, NOON) as before,
        connections_at(database_url, NEXT_NOON) as after,
    ):

        def write(number: int) -> None:
            count((before, after)[number % 2], users[0], tally(number))

        all_at_once(write, range(WRITERS))
        even, odd = ([tally(number) for number in range(WRITERS) if number % 2 == half] for half in (0, 1))
        assert query(before, USAGE, user_id=users[0]) == [
            (datetime.date(2026, 3, 31), *summed(even)),
            (datetime.date(2026, 4, 1), *summed(odd)),
        ]


@pytest.mark.parametrize("stored_bytes", [0, 4_999_999, 5_000_000, 999_999_999, 10**12 + 4_999_999])
def test_gigabytes_are_the_bytes_rounded_once(database_url, clock, users, stored_bytes):
    """GB are round(bytes / 10^9, 2) of the sum, and not a sum of rounded numbers."""
    with connections_at(database_url, NOON) as engine:
        for part in (stored_bytes // 3, stored_bytes - stored_bytes // 3):
            count(engine, users[0], Tally(stored_bytes=part, wire_bytes=2 * part))
        [row] = query(engine, USAGE, user_id=users[0])
    assert row[2:] == (stored_bytes, 2 * stored_bytes, gigabytes(stored_bytes), gigabytes(2 * stored_bytes))
