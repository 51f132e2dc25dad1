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
from models.settings import Settings
from tests.support.bombs import code_tables_webp, crowds, flat, flat_png
from tests.support.hostile_server import in_loop, response, serve, tls_server
from tests.unit.test_picture import liar

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")

# docs/performance.md promises, in MB: a child, and the helper of its large pictures beside it.
CHILD_MEGABYTES = 200
HELPER_MEGABYTES = 80 + 268
# With the settings as they are by default. Plain and by TLS; 256 at once, as many as a child's transfers.
ENDLESS = {"endless": 2, "chunks": 2, "gzip-bomb": 4, "growing": 120}

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, json, pathlib, resource, ssl, sys
import worker.tasks
from models.outcomes import Candidate, Refused, Verification
from models.settings import Settings
from tests.support.one_candidate import crawl_candidate
from tests.support.hostile_server import CERTIFICATE
from worker.child import Child
from worker.transport import GuardedTransport

def megabytes(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 // 1_000_000

home, *urls = json.load(sys.stdin)
settings = Settings(
    home=home,
    database_url="postgresql://nobody@127.0.0.1:1/none",
    allowed_networks="127.0.0.0/8",
    transfer_attempts=1,
)
child = Child(settings)
decoder = child.decoder(Verification.FULL)
store = child.store(settings.store)
resting = megabytes("VmRSS")
outcomes = {}

async def crawl():
    context = ssl.create_default_context(cafile=CERTIFICATE)
    child.transport = GuardedTransport(settings, ssl_context=context)
    async def one(place, url):
        outcome = await crawl_candidate(child, store, Candidate(place, url, place + 1), decoder)
        kind = str(outcome.reason) if isinstance(outcome, Refused) else "accepted"
        outcomes.setdefault(url.rpartition("/")[2], []).append(kind)
    await asyncio.gather(*[one(place, url) for place, url in enumerate(urls)])

child.run(crawl())
report = {"resting": resting, "peak": megabytes("VmHWM"), "outcomes": outcomes}
child.close()
helper = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 // 1_000_000
print(json.dumps(report | {"helper": helper}))
"""


@functools.cache
def bodies() -> dict[str, tuple[bytes, str]]:
    """What is sent under each name, and what becomes of it."""
    hundred = Reason.TOO_MANY_PIXELS
    made = {
        "png-100": (flat_png(10_000, colours=0, bytes_per_pixel=1), hundred),
        "largest-png": (flat_png(7000), "accepted"),
        "largest-webp": (flat("WEBP", 7000, method=0), "accepted"),
        "largest-lossless-webp": (flat("WEBP", 7000, lossless=True, quality=0, method=0), "accepted"),
        "code-tables-webp": (code_tables_webp(1024), Reason.CORRUPT),
        "largest-avif": (flat("AVIF", 4000, speed=10), "accepted"),
        "largest-jpeg": (flat("JPEG", 7000), "accepted"),
        "largest-progressive": (flat("JPEG", 6400, progressive=True, subsampling=0), "accepted"),
        "largest-gif": (flat("GIF", 7000), "accepted"),
    }
    made |= {f"heaviest-{number}": (_heaviest(number), "accepted") for number in range(6)}
    made |= {f"{name}-100": (liar(name, 10_000), hundred) for name in ("jpeg", "gif", "webp", "avif")}
    made |= {name.replace(" ", "-"): (body, Reason.CORRUPT) for name, body in crowds(400_000).items()}
    return made


def _heaviest(number: int) -> bytes:
    """A JPEG of as many bytes as a body may have, most of them in comments."""
    picture = flat("JPEG", 100)
    comment = b"\xff\xfe\xc3\x50" + bytes([number]) * 49_998
    count, rest = divmod(Settings().image_bytes_max - len(picture), len(comment))
    last = b"\xff\xfe" + (rest - 2).to_bytes(2, "big") + bytes(rest - 4)
    return b"".join([picture[:2], *[comment] * count, last, picture[2:]])


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
    if name == "growing":  # It outgrows what a body takes at first, and ends soon.
        await write(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(700_000))
        raise EOFError
    if name == "gzip-bomb":
        await write(response(gzip_bomb(), headers={"Content-Encoding": "gzip"}))
    else:
        await write(response(bodies()[name][0]))


@functools.cache
def gzip_bomb() -> bytes:
    """Two hundred kilobytes that become two hundred megabytes."""
    return gzip.compress(bytes(200_000_000), 9)


async def crawl(home, urls: list[str]) -> dict:
    """Let a child of its own process crawl these URLs, all at once."""
    asked = json.dumps([str(home), *urls]).encode()
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
    async with serve(_answer) as plain, serve(_answer, tls_server()) as tls:
        report = await crawl(home, [f"{server.origin}/{name}" for server in (plain, tls) for name in names])
    expected = {name: ["too_large"] * 2 * copies for name, copies in ENDLESS.items()}
    expected["growing"] = ["not_an_image"] * 2 * ENDLESS["growing"]
    assert report["outcomes"] == expected
    assert report["peak"] < CHILD_MEGABYTES, report


@in_loop
async def _pictures(home):
    expected = {name: [str(outcome)] for name, (_, outcome) in bodies().items()}
    async with serve(_answer) as server:
        report = await crawl(home, [f"{server.origin}/{name}" for name in expected])
    assert report["outcomes"] == expected
    assert report["peak"] < CHILD_MEGABYTES, report
    assert report["helper"] < HELPER_MEGABYTES, report


def test_endless_bodies_and_bombs_fit_into_what_transfers_share(tmp_path):
    """Endless bodies, endless chunks, gzip bombs and bodies that turn out large, plain and by TLS, 256 at once."""
    _endless(tmp_path)


def test_hostile_pictures_fit_into_a_child(tmp_path):
    """Pictures of 100 megapixels, the largest that are accepted, and crowds of parts, all at once."""
    _pictures(tmp_path)


FAULTS = """
import io, resource
from PIL import Image
from models.settings import Settings
from worker.memory import give_large_blocks_back
from worker.picture import inspect

body = io.BytesIO()
Image.effect_mandelbrot((900, 900), (-2, -1, 1, 1), 20).convert("RGB").save(body, "PNG")
settings = Settings()
give_large_blocks_back()
inspect(body.getvalue(), settings)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    inspect(body.getvalue(), settings)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 20)
"""


def test_a_picture_takes_the_memory_of_the_last_one():
    """Memory that goes back to the system comes again page by page: thousands of pages for a PNG like this one."""
    command = [sys.executable, "-c", FAULTS]
    faults = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert int(faults.stdout) < 200
