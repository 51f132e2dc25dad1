"""A short run of `make bench`: its webs have the faults that they say, its figures add up, and nobody cheats."""

import argparse
import http.client
import ipaddress
import socket
import time
from pathlib import Path

import pytest

from benchmarks import page, pictures, plot, sites
from benchmarks.parts import queue, slow, split, stages
from benchmarks.race import Race, RunError, Timing, check_kept, race_all, rates, ratios
from benchmarks.setting import Bench, Section
from models.outcomes import Verification
from models.settings import Settings, read_settings
from scheduler.connect import connected
from worker.picture import inspect

PICTURES = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The benchmark's own pictures, a few of them."""
    return pictures.make_pictures(tmp_path_factory.mktemp("cache"), PICTURES)


@pytest.fixture
def bench(services, database_url, folder, tmp_path) -> Bench:
    """What a part is given, with this test run's services."""
    settings = read_settings(
        home=tmp_path / "home",
        database_url=database_url,
        redis_url=services.redis_url,
        allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),),
    )
    options = argparse.Namespace(rounds=1, urls=30_000, pending=1_000, hosts=10)
    return Bench(options, tmp_path, folder, settings, settings, others=False)


def get(url: str, seconds: float = 5) -> bytes:
    """One body."""
    return answer(url, seconds)[1]


def answer(url: str, seconds: float = 5) -> tuple[int, bytes, str | None]:
    """Status, body and Retry-After of one answer."""
    host, _, path = url.removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=seconds)
    try:
        connection.request("GET", f"/{path}")
        received = connection.getresponse()
        return received.status, received.read(), received.headers["Retry-After"]
    finally:
        connection.close()


def test_pictures_are_good_and_distinct(folder):
    """Each is accepted by full verification, and no two have the same bytes."""
    bodies = [path.read_bytes() for path in folder.iterdir()]
    assert len({inspect(body, Settings()).sha256 for body in bodies}) == PICTURES


def test_a_web_has_many_hosts_and_their_latency(folder, tmp_path):
    """Each host is an address of its own, answers after its latency, hangs where told to; then all are gone."""
    names = sorted(path.name for path in folder.iterdir())
    with sites.web(folder, tmp_path, hosts=300, latency_seconds=(0.2, 0.3)) as web:
        assert len(set(web.addresses)) == 300
        for number in (0, 249, 250, 299):
            began = time.monotonic()
            assert get(web.url(number, f"/p/{names[1]}")) == (folder / names[1]).read_bytes()
            assert time.monotonic() - began >= 0.2
        assert inspect(get(web.url(7, "/t/7")), Settings()).width == 1
        assert get(web.url(7, "/t/7")) != get(web.url(7, "/t/8"))
        with pytest.raises(TimeoutError):
            get(web.url(3, "/h/x"), 0.5)
        assert answer(web.url(3, "/p/missing"))[0] == 404
    assert (web.counts["requests"], web.counts["served"]) == (9, 7)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((web.addresses[0], web.port), 1)


def test_a_limited_host_says_429(folder, tmp_path):
    """What comes faster than its rate is refused, and counted."""
    with sites.web(folder, tmp_path, rate=4) as web:
        answers = [answer(web.url(0, f"/t/{number}")) for number in range(12)]
    refused = [waits for status, _, waits in answers if status == 429]
    assert set(refused) == {"1"}
    assert web.counts["refused"] == len(refused)
    assert web.counts["served"] == 12 - len(refused) >= 2


def test_a_web_that_fails_leaves_nothing(folder, tmp_path):
    """Whatever is raised inside, its sockets are closed."""
    with pytest.raises(ZeroDivisionError), sites.web(folder, tmp_path) as web:
        web.counts["here"] = len(get(web.url(0, "/t/1"))) / 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((web.addresses[0], web.port), 1)


def test_a_race_over_a_slow_web_keeps_every_picture(bench, folder, tmp_path):
    """Pixtrawl runs as a user starts it and gets all good pictures of a web with dead hosts; a list with one that
    is not there is an error and no result.
    """
    names = bench.names()
    home = read_settings(home=tmp_path / "own", allowed_networks=bench.settings.allowed_networks)
    scratch = tmp_path / "web"
    scratch.mkdir()
    with connected(home), sites.web(folder, scratch, hosts=10, latency_seconds=(0, 0.05)) as web:
        urls, good = slow.urls_of(web, names)
        race = Race(urls, good, 8, home, tmp_path, folder, tuple(names))
        racing = dict(list(slow.choose(others=False).items())[:1])
        rounds = race_all(racing, race, 1)
        assert rounds[0][slow.FULL].wall_seconds > rounds[0][slow.FULL].work_seconds > 0
        lost = Race([*urls, web.url(0, "/p/missing")], good + 1, 8, home, tmp_path, folder)
        with pytest.raises(RunError, match=f"kept {good} of {good + 1} pictures"):
            race_all(racing, lost, 1)


def test_spoilt_urls_are_as_many_as_is_said(folder, tmp_path):
    """Of 200 URLs two hang and six are dead; all others are good."""
    web = sites.Web(1, [sites.address(number) for number in range(50)], None)
    urls, good = slow.urls_of(web, [f"{number}.jpg" for number in range(200)])
    assert good == 192
    assert sum("/h/" in url for url in urls) == 2
    assert sum("//127.200." in url for url in urls) == 6
    with pytest.raises(RunError, match="Somebody kept 191 of 192 pictures"):
        check_kept("Somebody", 191, Race(urls, good, 1, Settings(), tmp_path, folder))


def test_figures_are_medians_of_pairs():
    """A slow round counts no more than any other, and what misses its mark says so."""
    rounds = [
        {"ours": Timing(2.0, 4.0), "other": Timing(1.0, 2.0)},
        {"ours": Timing(20.0, 40.0), "other": Timing(10.0, 20.0)},
        {"ours": Timing(2.0, 4.0), "other": Timing(3.0, 3.0)},
    ]
    assert rates(rounds, 100)[2:] == [
        "| ours | 50 | 5 to 50 | 25 |",
        "| other | 33 | 10 to 100 | 33 |",
    ]
    assert ratios(rounds, [("ours", "other", 0.85), ("ours", "nobody", 1.0)])[2:] == [
        "| ours | other | 0.50 | 0.50 to 1.50 | ≥ 0.85 **missed** |"
    ]


def test_a_part_replaces_its_own_section_only(tmp_path, monkeypatch):
    """The page keeps what other parts measured before, and says of the rest how to measure it."""
    monkeypatch.setattr(page, "PAGE", tmp_path / "performance.md")
    page.write("fast", Section("before", plot.draw("A <title>", [plot.Bar("us & them", 2, 1, 3, True)])))
    page.write("tls", Section("kept"))
    page.write("fast", Section("after"))
    written = page.PAGE.read_text()
    assert "before\n" not in written
    assert "<!-- fast -->\nafter\n<!-- /fast -->" in written
    assert "<!-- tls -->\nkept\n<!-- /tls -->" in written
    assert '--only queue --write"' in written
    drawing = (tmp_path / "performance-fast.svg").read_text()
    assert "us &amp; them" in drawing
    assert drawing.startswith("<svg ")


def table(text: str, first: str) -> list[str]:
    """The line of a table that begins with this cell."""
    [line] = [line for line in text.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("| ").split("|")]


def test_stages_are_measured_by_the_programs_own_functions(bench, folder, engine, monkeypatch):
    """Every stage has a cost, those of rows in the database, too; decoding costs more than a header."""
    monkeypatch.setattr(stages, "CHUNKS", 2)
    bodies = [path.read_bytes() for path in folder.iterdir()]
    costs = stages.writing(engine, bench.services)
    assert set(costs) == {
        "queue: claim, hold",
        "queue: send",
        "rows: start",
        "rows: checkpoint",
        "rows: settle",
    }
    assert {cost.pictures for cost in costs.values()} == {1000}
    assert all(cost.own > 0 and cost.elapsed > 0 for cost in costs.values())
    assert costs["rows: checkpoint"].database > 0
    full = stages.inspecting(bodies, bench.services, Verification.FULL)
    header = stages.inspecting(bodies, bench.services, Verification.HEADER)
    assert full.own > header.own > 0
    stored = stages.storing(bodies, bench.scratch / "stored")
    assert stored["store"].pictures == PICTURES
    assert len(list((bench.scratch / "stored").iterdir())) == PICTURES


def test_a_list_is_split_to_its_end(bench):
    """In as many chunks as hold all of it, with a row for each fifth."""
    assert table(split.measure(bench).text, "30,000")[0] == "30,000"


def test_decisions_are_made_on_a_copy_of_what_was_filled_once(bench, monkeypatch):
    """Every decision finds what it should, its shares are all of it, and the next run fills nothing."""
    monkeypatch.setattr(queue, "DECISIONS", 10)
    first = queue.measure(bench).text
    monkeypatch.setattr(queue, "fill", None)
    for text in (first, queue.measure(bench).text):
        assert "1,000 chunks of 20 users" in text
        assert {table(text, name)[1] for name in (queue.WHOLE, *queue.SHARES.values(), queue.REST)} == {"10"}
