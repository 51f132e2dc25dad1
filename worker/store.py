"""Where images and inputs are kept: one folder, or one prefix of a bucket, through obstore.

Must never show a half-written object, nor let a driver's error out. Made after the fork: obstore has threads.
"""

import ctypes
import datetime
import errno
import itertools
import os
import re
import secrets
import sys
import time
import urllib.parse
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, from_url

OBJECT_STORE_SCHEMES = ("s3", "gs", "az")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=@+-]*(?:/[A-Za-z0-9_][A-Za-z0-9._=@+-]*)*")
CONTENT_TYPES = {
    "avif": "image/avif",
    "gif": "image/gif",
    "jpg": "image/jpeg",
    "json": "application/json",
    "png": "image/png",
    "txt": "text/plain",
    "webp": "image/webp",
}
PART_BYTES = 5 * 1024 * 1024
LIST_PAGE = 1000

# A put must end well before its chunk's lease does, whatever the object store is up to. The driver's timeouts
# are 5 s to connect and 30 s in all; giving others would make it ignore AWS_ALLOW_HTTP, which MinIO needs.
RETRY = {"max_retries": 5, "retry_timeout": datetime.timedelta(seconds=15)}

CONDITIONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the system allows",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EISDIR: "a folder is where a file should be",
    errno.EIO: "the disk reports an input/output error",
    errno.EMFILE: "too many open files in this process",
    errno.ENFILE: "too many open files on this machine",
}
TRANSIENT_CONDITIONS = frozenset({errno.EMFILE, errno.ENFILE})

_PARTIAL = re.compile(r"[0-9a-f]{64}\.[a-z]+#[0-9]+")


class StoreError(Exception):
    """The store failed. ``transient``: the same call may succeed in a minute without anybody's doing."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class MissingObjectError(StoreError):
    """There is no object of this name."""


class DamagedObjectError(StoreError):
    """An object is not what was written."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One line of a listing; ``size`` in bytes."""

    name: str
    size: int
    modified_at: datetime.datetime


class Store:
    """Objects under one URL, in a bucket; FolderStore is the same in a folder.

    Names are ours (``jobs/12/ab…cd.jpg``): segments of letters, digits and ``._=@+-``, none beginning with a
    dot; anything else is a ValueError. Every other failure is a StoreError. Thread-safe.
    """

    def __init__(self, url: str, driver: Any) -> None:
        self.root = url
        self._driver = driver

    def put(self, name: str, body: bytes) -> str:
        """Write or replace one object as a whole and return its URL."""
        with self._errors("write", name):
            options = self._put_options(name)
            obstore.put(self._driver, _checked(name), body, use_multipart=False, **options)
        return self.url(name)

    def put_stream(self, name: str, chunks: Iterable[bytes]) -> str:
        """Write one object from any number of chunks in constant memory and return its URL.

        What ``chunks`` raises passes through, and nothing is written then.
        """
        raised: list[BaseException] = []

        def watched() -> Iterator[bytes]:
            try:
                yield from chunks
            except BaseException as error:
                raised.append(error)
                raise

        with self._errors("write", name, raised):
            options = {"chunk_size": PART_BYTES, "max_concurrency": 2, **self._put_options(name)}
            obstore.put(self._driver, _checked(name), watched(), **options)
        return self.url(name)

    def size(self, name: str) -> int:
        """Bytes of one object; MissingObjectError if there is none."""
        with self._errors("find", name):
            return int(obstore.head(self._driver, _checked(name))["size"])

    def modified_at(self, name: str) -> datetime.datetime:
        """When one object was last written, by the store's own clock; MissingObjectError if there is none."""
        with self._errors("find", name):
            modified: datetime.datetime = obstore.head(self._driver, _checked(name))["last_modified"]
            return modified

    def exists(self, name: str) -> bool:
        """Whether there is an object of this name."""
        try:
            self.size(name)
        except MissingObjectError:
            return False
        return True

    def read(self, name: str, start: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``start``; fewer at the object's end, none behind it."""
        if length <= 0:
            return b""
        try:
            with self._errors("read", name):
                return bytes(obstore.get_range(self._driver, _checked(name), start=start, length=length))
        except MissingObjectError:
            raise
        except StoreError:
            # Stores refuse a range that begins at the end in many words; the size is the one clear answer.
            if start >= self.size(name):
                return b""
            raise

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are missing already are no error."""
        paths = [_checked(name) for name in names]
        for first in range(0, len(paths), LIST_PAGE):
            with self._errors("delete", paths[first]):
                self._delete_page(paths[first : first + LIST_PAGE])

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yield the objects in one folder and those below it, in no order and in constant memory."""
        with self._errors("list", prefix):
            folder = _checked(prefix.rstrip("/")) if prefix else None
            for page in obstore.list(self._driver, folder, chunk_size=LIST_PAGE):
                for entry in page:
                    yield StoredObject(entry["path"], entry["size"], entry["last_modified"])

    def url(self, name: str) -> str:
        """URL of the object of this name, whether it exists or not."""
        return f"{self.root}/{_checked(name)}"

    def name(self, url: str) -> str:
        """Name of an object by the URL that ``put`` returned; ValueError if it is of another store."""
        if not url.startswith(f"{self.root}/"):
            raise ValueError(f"{url} is not in the store {self.root}")
        return _checked(url[len(self.root) + 1 :])

    def sync(self) -> None:
        """Return when everything written so far survives a power cut: here as soon as it is written."""

    def _put_options(self, name: str) -> dict[str, Any]:
        content_type = CONTENT_TYPES.get(name.rpartition(".")[2])
        return {"attributes": {"Content-Type": content_type}} if content_type else {}

    def _delete_page(self, paths: Sequence[str]) -> None:
        try:
            obstore.delete(self._driver, paths)
        except FileNotFoundError:
            # A missing object ended the driver's loop over the page (S3 alone does not mind).
            for path in paths:
                with suppress(FileNotFoundError):
                    obstore.delete(self._driver, path)

    @contextmanager
    def _errors(self, verb: str, name: str, passed: Sequence[BaseException] = ()) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError, NotImplementedError) as error:
            if passed:
                raise passed[0] from None
            raise translate(f"cannot {verb} {name or 'objects'} in {self.root}", error) from error


class FolderStore(Store):
    """Objects in a local folder. A crash can leave a ``name#1`` file, which no call here shows; see
    sweep_partial. A put is our own: the driver's takes twice as long.
    """

    def __init__(self, folder: Path) -> None:
        try:
            driver = LocalStore(str(folder), mkdir=True)
            # Held open, because syncfs reports the write errors since the descriptor was opened.
            self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except (BaseError, OSError) as error:
            raise translate(f"cannot open the store {folder}", error) from error
        weakref.finalize(self, os.close, self._descriptor)
        super().__init__(folder.as_uri(), driver)
        self._folder = folder
        self._numbers = itertools.count(secrets.randbits(48))

    def put(self, name: str, body: bytes) -> str:
        """Write or replace one object as a whole and return its URL."""
        path = f"{self._folder}/{_checked(name)}"
        try:
            try:
                self._write(path, body)
            except FileNotFoundError:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                self._write(path, body)
        except OSError as error:
            raise translate(f"cannot write {name} in {self.root}", error) from error
        return f"{self.root}/{name}"

    def _write(self, path: str, body: bytes) -> None:
        """Write a file that is seen as a whole or not at all. Raises OSError."""
        partial = f"{path}#{next(self._numbers)}"
        try:
            with open(partial, "wb") as file:  # noqa: PTH123 - a Path costs as much as the rest of this in Python.
                file.write(body)
            os.replace(partial, path)  # noqa: PTH105
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise

    def sync(self) -> None:
        """Return when everything written so far survives a power cut."""
        if sys.platform != "linux":
            os.sync()
            return
        library = ctypes.CDLL(None, use_errno=True)
        if library.syncfs(self._descriptor) != 0:
            number = ctypes.get_errno()
            raise translate(f"cannot sync the store {self.root}", OSError(number, os.strerror(number)))

    def _put_options(self, name: str) -> dict[str, Any]:  # noqa: ARG002 - a file has no content type
        return {}


def sweep_partial(url: str, seconds: float) -> int:
    """Delete the files that puts broken off by a crash left in a local folder more than ``seconds`` ago.

    Only names that obstore gives to an image under way (``<sha256>.<extension>#<number>``) are touched.
    Returns how many were deleted; other stores leave nothing behind.
    """
    folder = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    if not url.startswith("file://") or not folder.is_dir():
        return 0
    swept = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name) and entry.stat().st_mtime < time.time() - seconds:
                Path(entry.path).unlink(missing_ok=True)
                swept += 1
    return swept


def remove_folder(url: str) -> None:
    """Remove a local folder, if nothing is left in it; other stores have none."""
    if url.startswith("file://"):
        with suppress(OSError):
            Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).rmdir()


def open_store(url: str) -> Store:
    """Open ``file://``, ``s3://``, ``gs://`` or ``az://``; a folder is created.

    Credentials of an object store come from its own environment variables, which the driver reads.
    Raises StoreError with a sentence that names the URL.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "file":
        host, _, path = rest.partition("/")
        if host not in {"", "localhost"}:
            raise StoreError(f"the store {url} must be written file:///folder, with three slashes")
        return FolderStore(Path("/" + urllib.parse.unquote(path)))
    if not separator or scheme not in OBJECT_STORE_SCHEMES:
        raise StoreError(f"the store {url} must begin with file://, s3://, gs:// or az://")
    try:
        driver = from_url(url, retry_config=RETRY)  # type: ignore[call-overload]
    except (BaseError, OSError, ValueError) as error:
        raise translate(f"cannot open the store {url}", error) from error
    return Store(url.rstrip("/"), driver)


def _checked(name: str) -> str:
    if not NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} is not a name for an object")
    return name


def translate(what: str, error: Exception) -> StoreError:
    """Turn a driver's error into one sentence. obstore keeps the system's error number in its text only."""
    text = str(error)
    found = re.search(r"\(os error (\d+)\)", text)
    number = int(found[1]) if found else getattr(error, "errno", None)
    if isinstance(error, FileNotFoundError):
        return MissingObjectError(f"{what}: not found")
    if number in CONDITIONS:
        return StoreError(f"{what}: {CONDITIONS[number]}", transient=number in TRANSIENT_CONDITIONS)
    if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
        return StoreError(f"{what}: the object store refuses the credentials")
    sentence = text.partition("\n")[0].strip() or type(error).__name__
    # The driver counts its own retries in its text when a server was unreachable or busy, and only then.
    return StoreError(f"{what}: {sentence}", transient="max_retries: " in sentence)
