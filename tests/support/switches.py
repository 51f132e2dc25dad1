"""A Valkey and a way to PostgreSQL that a test switches off and on again, apart from those of other tests."""

import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Self

from sqlalchemy import Engine, make_url

from scheduler.embedded_valkey import find_valkey
from tests.support.crawling import query
from tests.support.processes import until


class Switches:
    """A context manager: both are on when it is entered. A short folder of its own: a socket's path has a limit."""

    def __init__(self, database_url: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pt-"))
        url = make_url(database_url)
        self._socket = Path(str(url.query["host"])) / ".s.PGSQL.5432"
        self._way = self.folder / self._socket.name
        self.database_url = url.update_query_dict({"host": str(self.folder)}).render_as_string(False)
        self.redis_url = f"redis+socket://{self.folder}/redis"
        self._redis: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.redis_on()
        self.database_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.redis_off()
        shutil.rmtree(self.folder)

    def redis_on(self) -> None:
        """Start an empty Valkey."""
        options = {"port": "0", "unixsocket": self.folder / "redis", "save": "", "dir": self.folder}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._redis = subprocess.Popen([str(find_valkey()), *words], stdout=subprocess.DEVNULL)
        until((self.folder / "redis").exists, "Valkey")

    def redis_off(self) -> None:
        """SIGKILL: every connection is gone, and every message."""
        if self._redis is not None:
            self._redis.send_signal(signal.SIGKILL)
            self._redis.wait()
            (self.folder / "redis").unlink(missing_ok=True)
            self._redis = None

    def database_on(self) -> None:
        """Let PostgreSQL be found again."""
        self._way.symlink_to(self._socket)

    def database_off(self, engine: Engine) -> None:
        """Let nobody find PostgreSQL this way, and end the sessions of workers and schedulers."""
        self._way.unlink()
        query(
            engine,
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
            AND application_name LIKE 'pixtrawl %'""",
        )
