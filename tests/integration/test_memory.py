"""What a hostile site can make one child hold: a real child fetches, decodes and stores in a process of its own."""

import asyncio
import functools
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

from models.outcomes import Reason
from tests.support.bombs import crowds, flat, flat_png
from tests.support.hostile_server import Server, in_loop, response, serve
from tests.unit.test_picture import liar

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")

# docs/safety.md promises: a child at rest, 90 MiB for transfers, 256 MiB for the picture that is being decoded.
TRANSFERS_MEGABYTES = 90
DECODING_MEGABYTES = 256
SLACK_MEGABYTES = 20
ENDLESS = {"endless": 150, "chunks": 50, "gzip-bomb": 12}

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, json, pathlib, sys
from models.outcomes import Candidate, Refused
from models.settings import Settings
from tests.support.one_candidate import crawl_candidate
from worker.careful import PlainDecoder
from worker.child import Child

def megabytes(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024

home, image_bytes_max, *urls = json.load(sys.stdin)
settings = Settings(
    home=home,
    database_url="postgresql://nobody@127.0.0.1:1/none",
    allowed_networks="127.0.0.0/8",
    transfer_attempts=1,
    image_bytes_max=image_bytes_max,
)
child = Child(settings)
decoder = PlainDecoder(settings)
store = child.store(settings.store)
resting = megabytes("VmRSS")
outcomes = {}

async def crawl():
    async def one(place, url):
        outcome = await crawl_candidate(child, store, Candidate(place, url, place + 1), decoder)
        kind = str(outcome.reason) if isinstance(outcome, Refused) else "accepted"
        outcomes.setdefault(url.rpartition("/")[2], []).append(kind)
    await asyncio.gather(*[one(place, url) for place, url in enumerate(urls)])

child.run(crawl())
print(json.dumps({"resting": resting, "peak": megabytes("VmHWM"), "outcomes": outcomes}))
child.close()
"""


@functools.cache
def bodies() -> dict[str, tuple[bytes, str]]:
    """What is sent under each name, and what becomes of it."""
    hundred = Reason.TOO_MANY_PIXELS
    made = {
        "png-100": (flat_png(10_000, colours=0, bytes_per_pixel=1), hundred),
        "largest-png": (flat_png(7000), "accepted"),
        "largest-webp": (flat("WEBP", 4096, lossless=True, quality=0, method=0), "accepted"),
        "largest-avif": (flat("AVIF", 4000, speed=10), "accepted"),
        "largest-jpeg": (flat("JPEG", 7000), "accepted"),
        "largest-progressive": (flat("JPEG", 6400, progressive=True, subsampling=0), "accepted"),
        "largest-gif": (flat("GIF", 7000), "accepted"),
    }
    made |= {f"{name}-100": (liar(name, 10_000), hundred) for name in ("jpeg", "gif", "webp", "avif")}
    made |= {name.replace(" ", "-"): (body, Reason.CORRUPT) for name, body in crowds(400_000).items()}
    return made


async def _answer(request, write):
    name = request.target.removeprefix("/")
    if name == "endless":
        await write(b"HTTP/1.1 200 OK\r\n\r\n\xff\xd8\xff")
        while True:
            await write(bytes(65536))
    if name == "chunks":
        await write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
    if name == "gzip-bomb":
        await write(response(gzip_bomb(), headers={"Content-Encoding": "gzip"}))
    else:
        await write(response(bodies()[name][0]))


@functools.cache
def gzip_bomb() -> bytes:
    """Two hundred kilobytes that become two hundred megabytes."""
    return gzip.compress(bytes(200_000_000), 9)


async def crawl(server: Server, home, names: list[str], image_bytes_max: int = 20_971_520) -> dict:
    """Let a child of its own process crawl these names, all at once."""
    asked = json.dumps([str(home), image_bytes_max, *(f"{server.origin}/{name}" for name in names)]).encode()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(asked), 120)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return json.loads(output)


@in_loop
async def _endless(home):
    names = [name for name, copies in ENDLESS.items() for _ in range(copies)]
    gzip_bomb()
    async with serve(_answer) as server:
        report = await crawl(server, home, names, 4_000_000)
    assert report["outcomes"] == {name: ["too_large"] * copies for name, copies in ENDLESS.items()}
    assert report["peak"] - report["resting"] < TRANSFERS_MEGABYTES + SLACK_MEGABYTES, report


@in_loop
async def _pictures(home):
    expected = {name: [str(outcome)] for name, (_, outcome) in bodies().items()}
    async with serve(_answer) as server:
        report = await crawl(server, home, list(expected))
    assert report["outcomes"] == expected
    grown = report["peak"] - report["resting"]
    assert grown < TRANSFERS_MEGABYTES + DECODING_MEGABYTES + SLACK_MEGABYTES, report


def test_endless_bodies_and_bombs_fit_into_what_transfers_share(tmp_path):
    """Endless bodies, endless chunks and gzip bombs, all at once, grow a child by less than transfers may have."""
    _endless(tmp_path)


def test_hostile_pictures_fit_into_what_a_decoder_may_have(tmp_path):
    """Pictures of 100 megapixels, the largest that are accepted, and crowds of parts: the same with a decoder."""
    _pictures(tmp_path)
