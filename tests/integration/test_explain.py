"""Why candidates failed, from real rows: counted whole, from a sample with a bound, and listed."""

import csv
import io
import json
import os
import pty
import subprocess
import sys

import pytest

from models import breakdown
from models.breakdown import Cells, sample_outcomes
from models.database import transaction
from models.lifecycle import settle_chunk
from models.outcomes import WEB_PAGE, Reason
from scheduler.cli import main
from scheduler.commands.failures import read
from scheduler.explain import report
from scheduler.progress import find_job
from tests.support.crawling import accepted, change, new_job, query, refused, start_next
from tests.support.processes import PROGRAM

FAILING = {
    "http://gone.test/a.jpg": (Reason.HTTP_STATUS, 404),
    "https://u:p@Down.TEST:8080?x/y": (Reason.CONNECT, None),
    "http://[2001:db8::1]/a": (Reason.TIMEOUT, None),
    "no URL": (Reason.INVALID_URL, None),
}


@pytest.fixture
def environment(monkeypatch, services, database_url, tmp_path):
    """The environment of a shell on this test's database."""
    variables = {
        "PIXTRAWL_HOME": str(tmp_path / "home"),
        "PIXTRAWL_DATABASE_URL": database_url,
        "PIXTRAWL_REDIS_URL": services.redis_url,
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def job(engine):
    """A job of 30: ten images, three dead links, one of each in FAILING, and the rest was cancelled."""
    job = new_job(engine, [20, 10])
    chunk = start_next(engine)
    outcomes = [accepted(place) for place in range(10)]
    outcomes += [
        refused(10 + place, reason, url=url, http_status=status, attempts=1, elapsed_ms=100)
        for place, (url, (reason, status)) in enumerate(FAILING.items())
    ]
    outcomes += [
        refused(place, url="http://x.test/", final_url="http://gone.test/b", http_status=410)
        for place in range(14, 17)
    ]
    outcomes += [refused(place, Reason.NOT_AN_IMAGE, detail=WEB_PAGE) for place in range(17, 20)]
    with transaction(engine) as session:
        assert settle_chunk(session, chunk.fence, outcomes) is not None
    change(engine, "UPDATE crawl_jobs SET failed_images = 20, failures = failures || '{\"cancelled\": 10}'")
    change(
        engine,
        "INSERT INTO failures (job_id, position, position_end, reason) VALUES (:id, 20, 29, 'cancelled')",
        id=job.id,
    )
    return job


def printed(capsys, *arguments):
    """What a command prints as JSON."""
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_report_counts_every_outcome(engine, job) -> None:
    """By outcome, status and host; the sums are the job's counters, and a range counts with all it stands for."""
    document = report(engine, find_job(engine, job.id), 100)
    candidates = {name: outcome["candidates"] for name, outcome in document["outcomes"].items()}
    assert list(candidates.items())[:2] == [("accepted", 10), ("cancelled", 10)]
    assert sum(candidates.values()) == document["job"]["total_images"] == 30
    assert {name: number for name, number in candidates.items() if name != "accepted"} == (
        document["job"]["failures"]
    )
    assert document["outcomes"]["http_status"]["statuses"] == {"410": 3, "404": 1}
    assert document["outcomes"]["accepted"]["mean_ms"] == 40
    assert document["outcomes"]["cancelled"]["mean_ms"] is None
    hosts = {host["host"]: host for host in document["hosts"]}
    assert list(hosts) == ["gone.test", "images.test", "[2001:db8::1]", "down.test"]
    assert document["hosts_total"] == 4
    assert hosts["gone.test"] == {
        "host": "gone.test",
        "accepted": 0,
        "failures": 4,
        "reasons": {"http_status": 4},
        "statuses": {"410": 3, "404": 1},
        "mean_ms": 100,
    }
    assert (hosts["images.test"]["accepted"], hosts["images.test"]["failures"]) == (10, 3)
    assert [host["host"] for host in document["hosts_accepted"]] == ["images.test"]


def test_pages_make_no_difference(engine, job, monkeypatch) -> None:
    """Counted in pages of three positions or in one, it is the same report."""
    found = find_job(engine, job.id)
    whole = report(engine, found, 100)
    monkeypatch.setattr(breakdown, "PAGE_POSITIONS", 3)
    monkeypatch.setattr("scheduler.explain.PAGE_POSITIONS", 3)
    assert report(engine, found, 100) == whole


def test_a_small_job_is_counted_whole_by_show(engine, job) -> None:
    """Hosts, statuses and hints of `show` are those of `report` while there are few rows."""
    shown = find_job(engine, job.id)
    document = report(engine, shown, 10)
    assert not shown["hosts_sampled"]
    assert shown["hosts"] == document["hosts"]
    assert shown["hints"] == document["hints"]
    assert shown["statuses"] == document["outcomes"]["http_status"]["statuses"]


MANY = """
INSERT INTO failures (job_id, position, position_end, url, reason, http_status)
SELECT :id, n, n, CASE WHEN n % 10 < 7 THEN 'http://gone.test/' ELSE 'http://' || n % 97 || '.test/' END || n,
    CASE WHEN n % 10 < 7 THEN 'http_status' ELSE 'timeout' END, CASE WHEN n % 10 < 7 THEN 404 END
FROM generate_series(0, 99999) n
"""


def test_a_large_job_is_sampled_by_show(engine) -> None:
    """Of 100,000 failures 2,048 are read, by the primary key, and the estimates are near the truth."""
    job = new_job(engine, [10])
    change(engine, MANY, id=job.id)
    change(
        engine,
        """UPDATE crawl_jobs SET total_images = 100000, failed_images = 100000,
        failures = '{"http_status" : 70000, "timeout" : 30000}'""",
    )
    with transaction(engine) as session:
        assert sum(cell.candidates for cell in sample_outcomes(session, job.id)) == 64 * 32
    found = find_job(engine, job.id)
    assert found["hosts_sampled"]
    assert found["hosts"][0]["host"] == "gone.test"
    assert found["hosts"][0]["failures"] == 70_000
    assert len(found["hosts"]) == 1, "the others have 0.3 % each, and are in the sample by chance"
    assert {hint["code"] for hint in found["hints"]} == {"host_dominates", "bandwidth_full"}
    exact = report(engine, found, 100)
    assert exact["hosts"][0]["failures"] == 70_000
    assert exact["hosts_total"] == 98


@pytest.mark.parametrize(
    "positions",
    [
        [0],
        [7],
        [0, 10**9],
        [63, 64, 65],
        list(range(0, 4096, 2)),
        [n * 7919 for n in range(200)],
        [2**31 - 2],
    ],
)
def test_a_sample_leaves_no_gap(engine, positions) -> None:
    """However positions lie, a job with few failures is seen whole: windows neither overlap nor leave any out."""
    job = new_job(engine, [10])
    change(
        engine,
        "INSERT INTO failures (job_id, position, position_end, reason) "
        "SELECT :id, p, p, 'timeout' FROM unnest(CAST(:positions AS int[])) p",
        id=job.id,
        positions=positions,
    )
    with transaction(engine) as session:
        assert sum(cell.candidates for cell in sample_outcomes(session, job.id)) == len(positions)


def test_a_slow_reader_keeps_no_transaction_open(engine, job, monkeypatch) -> None:
    """Between two pages of `failures` vacuum goes on, and a session limit ends nothing."""
    monkeypatch.setattr("scheduler.commands.failures.PAGE_POSITIONS", 3)
    monkeypatch.setattr("models.failures.PAGE_POSITIONS", 3)
    pages = read(engine, job.id, (), None)
    while not next(pages):
        pass
    waiting = """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL"""
    assert query(engine, waiting) == [(0,)]
    assert sum(map(len, pages)) > 0


def test_hosts_without_number_take_bounded_memory(monkeypatch) -> None:
    """Beyond the bound the smallest are counted without their hosts; nothing is lost, and the largest stay."""
    monkeypatch.setattr(breakdown, "CELLS_MAX", 10)
    cells = Cells()
    for page in range(20):
        cells.add([(f"{page}-{n}.test", "timeout", None, None, 1, 5, 1) for n in range(7)])
        cells.add([("large.test", "timeout", None, None, 9, None, 0)])
    kept = list(cells)
    assert len(kept) <= 10 + 1 + 7
    assert sum(cell.candidates for cell in kept) == 20 * (7 + 9)
    assert {cell.host: cell.candidates for cell in kept}["large.test"] == 20 * 9
    assert sum(cell.elapsed_ms for cell in kept) == 20 * 7 * 5


def test_show_and_report_say_why(environment, job, capsys) -> None:
    """Reasons with their statuses, the worst hosts and the hints, and no line wider than 80 columns."""
    assert main(["show", str(job.id)]) == 0
    shown = capsys.readouterr().out
    for line in (
        "  http_status     4  410 (75 %), 404 (25 %)",
        "failures by host",
        "  gone.test      4 of 4   http_status 410",
        "  images.test    3 of 13  not_an_image",
    ):
        assert line in shown
    assert "Web pages" not in shown
    assert main(["report", str(job.id), "--hosts", "2"]) == 0
    output = capsys.readouterr()
    for line in (
        "accepted              10  33.3 %       40",
        "http_status            4  13.3 %      100  410 (75 %), 404 (25 %)",
        "gone.test            4         0      100  http_status 4",
        "images.test        10         3       40",
    ):
        assert line in output.out
    assert "4 hosts in all: --hosts shows more." in output.err
    assert printed(capsys, "report", job.id)["hosts_total"] == 4
    assert printed(capsys, "show", job.id)["statuses"] == {"410": 3, "404": 1}


def on_terminal(variables, *arguments) -> list[str]:
    """The lines that a command draws on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as reader, os.fdopen(theirs, "wb") as terminal:
        shell = os.environ | variables | {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
        subprocess.run([PROGRAM, *map(str, arguments)], stdout=terminal, env=shell, timeout=60, check=True)
        return reader.read(65536).decode().replace("\r", "").split("\n")


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal of Linux")
def test_screens_fit_80_columns(environment, engine, job) -> None:
    """Long hosts are clipped and long URLs folded; every figure is there."""
    long = f"http://{'very-long-' * 12}.test/a/" + "b" * 100
    change(engine, "UPDATE failures SET url = :long, final_url = NULL WHERE url LIKE '%.test%'", long=long)
    change(engine, "UPDATE job_chunks SET error_message = repeat('very-long ', 20)")
    for command in (["show"], ["show", "--chunks"], ["report"], ["failures"]):
        lines = on_terminal(environment, *command, job.id)
        assert max(map(len, lines)) <= 80, lines
        assert any("very-long" in line for line in lines)
    assert any(
        "http_status" in line and "404 (25" in line for line in on_terminal(environment, "show", job.id)
    )


def test_what_an_owner_said_is_listed(environment, engine, job, capsys) -> None:
    """The evidence of a refusal as an object, and in CSV as JSON in one cell."""
    said = {"rule": "robots.txt", "line": "Disallow: /é", "line_number": 7}
    change(
        engine,
        "UPDATE failures SET reason = 'robots', evidence = :said WHERE position = 10",
        said=json.dumps(said),
    )
    [row] = printed(capsys, "failures", job.id, "--reason", "robots")
    assert row["evidence"] == said
    assert main(["failures", str(job.id), "--reason", "robots", "--csv"]) == 0
    [cells] = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert json.loads(cells["evidence"]) == said


def test_failures_are_listed(environment, job, capsys) -> None:
    """All that is known of each, in order, as JSON with an object a line, as CSV and as a table."""
    assert main(["failures", str(job.id), "--json"]) == 0
    output = capsys.readouterr().out
    rows = json.loads(output)
    assert output.count("\n") == len(rows) + 2
    assert [row["position"] for row in rows] == list(range(10, 21))
    assert rows[0] | {"at": "", "chunk": 0} == {
        "position": 10,
        "position_end": 10,
        "url": "http://gone.test/a.jpg",
        "host": "gone.test",
        "reason": "http_status",
        "http_status": 404,
        "final_url": None,
        "detail": "as the test wants it",
        "attempts": 1,
        "elapsed_ms": 100,
        "chunk": 0,
        "at": "",
        "evidence": None,
    }
    assert (rows[-1]["position_end"], rows[-1]["url"], rows[-1]["host"]) == (29, None, None)
    assert main(["failures", str(job.id), "--csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [{name: value or "" for name, value in row.items()} for row in table] == [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in rows
    ]
    assert main(["failures", str(job.id), "--limit", "2"]) == 0
    output = capsys.readouterr()
    assert output.out.splitlines()[1].split()[:6] == [
        "10",
        "http_status",
        "404",
        "1",
        "100",
        "http://gone.test/a.jpg",
    ]
    assert len(output.out.splitlines()) == 3
    assert "--json and --csv all" in output.err


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        (["--reason", "timeout", "--reason", "connect"], [11, 12]),
        (["--host", "gone.test"], [10, 14, 15, 16]),
        (["--host", "Down.test:8080"], [11]),
        (["--host", "one.test"], []),
        (["--host", "gone.test", "--limit", "3"], [10, 14, 15]),
        (["--reason", "cancelled"], [20]),
    ],
)
def test_failures_are_chosen(environment, job, capsys, monkeypatch, options, positions) -> None:
    """By reason and by host, whatever the pages are."""
    for page in (10_000, 3):
        monkeypatch.setattr("models.failures.PAGE_POSITIONS", page)
        monkeypatch.setattr("scheduler.commands.failures.PAGE_POSITIONS", page)
        assert [row["position"] for row in printed(capsys, "failures", job.id, *options)] == positions


def test_failures_of_a_job_without_any(environment, engine, capsys) -> None:
    """Nothing on standard output but an empty array or a heading; an unknown job is one sentence."""
    job = new_job(engine)
    assert printed(capsys, "failures", job.id) == []
    assert main(["failures", str(job.id)]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "There is no such failure.\n")
    assert main(["report", str(job.id)]) == 0
    assert "is" not in capsys.readouterr().err
    for command in ("failures", "report"):
        assert main([command, "12345"]) == 2
        assert "There is no job 12345" in capsys.readouterr().err
    assert main(["failures", str(job.id), "--json", "--csv"]) == 2
