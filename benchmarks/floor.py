"""The floor: what any crawler must do at least. Fetch with libcurl, decode with Pillow, sha256, write a file.

One process, one thread, no error handling beyond ending with the error; it keeps no record of anything. It is
run by the Python of .venv-bench, which has pycurl, and imports nothing of the project.
"""

import hashlib
import io
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pycurl  # type: ignore[import-untyped] # it is in .venv-bench only.
from PIL import Image

SHRUNK_SIZE = (36, 32)
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def fetched(urls: list[str], connections: int, authority: str) -> Iterator[bytes]:
    """Every URL's body, in the order of arrival, over kept connections."""
    multi = pycurl.CurlMulti()
    idle = [new_handle(authority) for _ in range(connections)]
    buffers: dict[pycurl.Curl, io.BytesIO] = {}
    waiting = urls[::-1]
    while waiting or buffers:
        while waiting and idle:
            handle = idle.pop()
            buffers[handle] = io.BytesIO()
            handle.setopt(pycurl.URL, waiting.pop())
            handle.setopt(pycurl.WRITEDATA, buffers[handle])
            multi.add_handle(handle)
        multi.perform()
        _, ended, failed = multi.info_read()
        if failed:
            raise SystemExit(f"the floor could not fetch: {failed[0][2]}")
        for handle in ended:
            multi.remove_handle(handle)
            idle.append(handle)
            yield buffers.pop(handle).getvalue()
        if not ended:
            multi.select(1.0)


def new_handle(authority: str) -> pycurl.Curl:
    """A transfer that fails on a status of 400 or more."""
    handle = pycurl.Curl()
    handle.setopt(pycurl.NOSIGNAL, 1)
    handle.setopt(pycurl.FAILONERROR, 1)
    if authority:
        handle.setopt(pycurl.CAINFO, authority)
    return handle


def keep(body: bytes, folder: Path, decode: str) -> None:
    """Decode, hash, write. ``shrunk`` reads every coefficient of a JPEG but transforms an eighth, as Pixtrawl."""
    with Image.open(io.BytesIO(body)) as image:
        if decode == "shrunk":
            image.draft("L", SHRUNK_SIZE)
        if decode != "none":
            image.load()
        extension = EXTENSIONS[image.format or ""]
    (folder / f"{hashlib.sha256(body).hexdigest()}.{extension}").write_bytes(body)


def main(list_file: str, folder: str, decode: str, source: str, connections: str, authority: str) -> None:
    """Say that all is imported, wait for a line, do the work, say so. From ``memory``, the list names files."""
    work = Path(list_file).read_text("utf-8").split()
    bodies: Iterable[bytes] = fetched(work, int(connections), authority)
    if source == "memory":
        bodies = [Path(path).read_bytes() for path in work]
    print("ready", flush=True)
    sys.stdin.readline()
    for body in bodies:
        keep(body, Path(folder), decode)
    print("done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
