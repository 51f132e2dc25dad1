"""Opens a web of many hosts on loopback (site_server.py) for as long as a context lasts; keeps what it counted."""

import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.environment import program
from benchmarks.race import RunError, ending, expect, hear
from benchmarks.web_server import free_port

SEED = 11
HOSTS_PER_CERTIFICATE = 20


@dataclass(slots=True)
class Web:
    """Hosts that answer at ``port``; ``authority`` signed their certificates. ``counts`` is what the server saw,
    once it was stopped.
    """

    port: int
    addresses: Sequence[str]
    authority: Path | None
    counts: dict[str, float] = field(default_factory=dict)

    def url(self, number: int, path: str) -> str:
        """A URL of the host of this number, counted around."""
        scheme = "https" if self.authority else "http"
        return f"{scheme}://{self.addresses[number % len(self.addresses)]}:{self.port}{path}"


def address(number: int) -> str:
    """The loopback address of a host: 127.1.0.1 and on, never an address that ends in 0 or 255."""
    return f"127.{1 + number // 62500}.{number // 250 % 250}.{1 + number % 250}"


@contextmanager
def web(
    folder: Path,
    scratch: Path,
    *,
    hosts: int = 1,
    latency_seconds: tuple[float, float] = (0, 0),
    rate: float | None = None,
    tls: bool = False,
) -> Iterator[Web]:
    """Serve the pictures of ``folder`` from so many hosts, each with a latency of its own between the two.

    ``rate`` limits all of them together. ``scratch`` is an empty folder. Raises RunError.
    """
    chance = random.Random(SEED)
    addresses = [address(number) for number in range(hosts)]
    certificates = make_certificates(scratch, addresses) if tls else []
    opened = Web(free_port(), addresses, scratch / "authority.pem" if tls else None)
    given = {
        "folder": str(folder),
        "port": opened.port,
        "hosts": [(host, chance.uniform(*latency_seconds)) for host in addresses],
        "rate": rate,
        "certificates": [str(path) for path in certificates],
    }
    configuration, log = scratch / "site.json", scratch / "site.log"
    configuration.write_text(json.dumps(given), "utf-8")
    command = [sys.executable, "-P", str(Path(__file__).with_name("site_server.py")), str(configuration)]
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        with process, ending(process):
            try:
                expect(process, "ready")
            except RunError as error:
                words = log.read_text("utf-8", "replace").strip().rpartition("\n")[2]
                raise RunError(f"The benchmark's web cannot be opened: {words or error}.") from None
            yield opened
            process.terminate()
            opened.counts.update(json.loads(hear(process)))


def make_certificates(scratch: Path, addresses: Sequence[str]) -> list[Path]:
    """One certificate for every twenty hosts, as those of large providers have."""
    groups = [
        addresses[start : start + HOSTS_PER_CERTIFICATE]
        for start in range(0, len(addresses), HOSTS_PER_CERTIFICATE)
    ]
    (scratch / "groups.json").write_text(json.dumps(groups), "utf-8")
    script = str(Path(__file__).with_name("certificates.py"))
    command = [program("python"), "-P", script, str(scratch), str(scratch / "groups.json")]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise RunError(f"No certificates: {made.stderr.strip().rpartition(chr(10))[2]}.")
    return [scratch / f"{number}.pem" for number in range(len(groups))]
