"""An S3 bucket on loopback that answers, or takes a body and never says a word: what a network does to a put."""

import asyncio
import hashlib
import threading
from concurrent.futures import Future
from typing import Self

from aiohttp import web

URL = "s3://pictures"


class Bucket:
    """Keeps what is put, and answers while ``answer`` was called; a context manager."""

    def __enter__(self) -> Self:
        self.puts = 0
        self.objects: dict[str, bytes] = {}
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="bucket", daemon=True)
        self._ready: Future[int] = Future()
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._ready.result(timeout=10)}"
        return self

    def __exit__(self, *_: object) -> None:
        self.answer()
        self._loop.call_soon_threadsafe(self._leave.set)
        self._thread.join(10)

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which obstore finds it."""
        return {
            "AWS_ENDPOINT": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "nowhere",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def answer(self) -> None:
        """Answer what waits, and whatever comes from now on."""
        self._loop.call_soon_threadsafe(self._answering.set)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._leave, self._answering = asyncio.Event(), asyncio.Event()
        runner = web.ServerRunner(web.Server(self._take, access_log=None), shutdown_timeout=0.2)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._ready.set_result(runner.addresses[0][1])
        await self._leave.wait()
        await runner.cleanup()

    async def _take(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        self.puts += request.method == "PUT"
        await self._answering.wait()
        if request.method != "PUT":
            return web.Response(status=404)
        self.objects[request.path] = body
        return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})  # noqa: S324 - as S3 does
