"""TLS, one picture for each host: every picture costs a handshake, and its certificate is verified."""

from benchmarks import contenders, sites
from benchmarks.race import PROCESSES, Race, race_all, rates, ratios
from benchmarks.setting import Bench, Section
from models.outcomes import Verification

CONNECTIONS = 128
FULL, HEADER = "Pixtrawl, `--verify full`", "Pixtrawl, `--verify header`"
FLOOR, FILES = "floor: libcurl, decode, hash, write", "img2dataset, its defaults"
PAIRS = ((FULL, FLOOR, None), (FULL, FILES, None), (HEADER, FULL, None))


def measure(bench: Bench) -> Section:
    """All rounds, and how they compare."""
    names = bench.names()[: bench.options.hosts]
    folder = bench.scratch / "web"
    folder.mkdir()
    with sites.web(bench.pictures, folder, hosts=len(names), tls=True) as web:
        urls = [web.url(number, f"/p/{name}") for number, name in enumerate(names)]
        race = Race(
            urls,
            len(urls),
            CONNECTIONS,
            bench.settings,
            bench.scratch,
            bench.pictures,
            tuple(names),
            web.authority,
        )
        racing = {
            FULL: contenders.pixtrawl(Verification.FULL),
            HEADER: contenders.pixtrawl(Verification.HEADER),
            FLOOR: contenders.floor("full"),
        }
        if bench.others:
            racing[FILES] = contenders.img2dataset(contenders.FILES)
        rounds = race_all(racing, race, bench.options.rounds)
    text = (
        f"{len(urls):,} pictures on as many hosts; certificates (P-256, twenty hosts each) by an authority of the "
        "benchmark's own, which everybody trusts by `SSL_CERT_FILE`; verification is on everywhere. The server, in "
        "Python, does its half of each handshake on the same processors. Before its picture Pixtrawl asks each "
        "host for its robots.txt and tdmrep.json, over the same connection; the others ask for neither. "
        f"{PROCESSES} processes of {CONNECTIONS} connections; {len(rounds)} rounds."
    )
    return Section("\n".join([text, "", *rates(rounds, len(urls)), "", *ratios(rounds, PAIRS)]))
