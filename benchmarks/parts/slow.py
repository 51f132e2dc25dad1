"""A slow web of many hosts: 80 to 400 ms of latency, some hosts dead, some that accept and never answer."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from benchmarks import contenders, sites
from benchmarks.race import PROCESSES, Contender, Race, Timing, check_kept, race_all, rates, ratios
from benchmarks.setting import Bench, Section
from models.outcomes import Verification

CONNECTIONS = 256
LATENCY_SECONDS = (0.08, 0.4)
DEAD_EVERY, HANG_EVERY = 33, 100
FULL, HEADER = "Pixtrawl, `--verify full`", "Pixtrawl, `--verify header`"
PATIENT = "Pixtrawl, full, three attempts"
FILES, NO_DECODE = "img2dataset, its defaults", "img2dataset, webdataset, no decode"
DESCRIPTION = f"""\
{{urls:,}} URLs on {{hosts:,}} hosts (a listening socket on an address of 127.0.0.0/8 each, in one process); \
{LATENCY_SECONDS[0] * 1000:.0f} to {LATENCY_SECONDS[1] * 1000:.0f} ms before each answer; one URL in {DEAD_EVERY} \
on a host that refuses, one in {HANG_EVERY} that never answers; {{good:,}} pictures. Everybody has {{processes}} \
processes of {CONNECTIONS} connections, one attempt and {contenders.SECONDS_MAX} seconds, but for one with three \
attempts. {{rounds}} rounds. With so many connections and this latency no more than {{most:,.0f}} images/s can \
arrive; and whoever waits for what hangs needs {contenders.SECONDS_MAX} seconds, however fast he is otherwise."""
PAIRS = ((FULL, FILES, None), (HEADER, NO_DECODE, None), (FULL, PATIENT, None))


def measure(bench: Bench) -> Section:
    """All rounds, and how they compare."""
    names = bench.names()
    folder = bench.scratch / "web"
    folder.mkdir()
    hosts = bench.options.hosts
    with sites.web(bench.pictures, folder, hosts=hosts, latency_seconds=LATENCY_SECONDS) as web:
        urls, good = urls_of(web, names)
        # As img2dataset: one attempt, ten seconds.
        settings = bench.settings.model_copy(
            update={"read_seconds_max": contenders.SECONDS_MAX, "transfer_attempts": 1}
        )
        race = Race(urls, good, CONNECTIONS, settings, bench.scratch, bench.pictures, tuple(names))
        rounds = race_all(choose(others=bench.others), race, bench.options.rounds)
    most = CONNECTIONS * PROCESSES / (sum(LATENCY_SECONDS) / 2)
    text = DESCRIPTION.format(
        urls=len(urls), hosts=hosts, good=good, processes=PROCESSES, rounds=len(rounds), most=most
    )
    return Section("\n".join([text, "", *rates(rounds, good), "", *ratios(rounds, PAIRS)]))


def urls_of(web: sites.Web, names: list[str]) -> tuple[list[str], int]:
    """A URL for each picture, some of them spoilt; how many are good."""
    urls, good = [], 0
    for number, name in enumerate(names):
        if number % HANG_EVERY == HANG_EVERY - 1:
            urls.append(web.url(number, f"/h/{name}"))
        elif number % DEAD_EVERY == DEAD_EVERY - 1:
            # Nobody listens on these addresses.
            urls.append(web.url(number, f"/p/{name}").replace("://127.1.", "://127.200.", 1))
        else:
            urls.append(web.url(number, f"/p/{name}"))
            good += 1
    return urls, good


def choose(*, others: bool) -> Mapping[str, Contender]:
    """Who races, in the order of each round."""
    ours: dict[str, Contender] = {
        FULL: contenders.pixtrawl(Verification.FULL),
        HEADER: contenders.pixtrawl(Verification.HEADER),
        PATIENT: partial(with_attempts, attempts=3),
    }
    if not others:
        return ours
    return ours | {
        FILES: contenders.img2dataset(contenders.FILES),
        NO_DECODE: contenders.img2dataset(contenders.NO_DECODE),
    }


def with_attempts(race: Race, attempts: int) -> Timing:
    """Pixtrawl as it is by default: what may pass by itself is tried again."""
    settings = race.settings.model_copy(update={"transfer_attempts": attempts})
    job, timing = contenders.crawl(replace(race, settings=settings), ["--concurrency", str(PROCESSES)])
    check_kept("Pixtrawl", job["valid_images"], race)
    return timing
