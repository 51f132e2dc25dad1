"""Deleting a job's objects: all of its own prefix in the store, or elsewhere exactly those that its rows name.

Knows no database. Must never touch what the job of another user may name; ``Neighbourhood`` says which.
"""

import os
import re
import urllib.parse
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.closing import NamedObject
from worker.store import (
    OBJECT_STORE_SCHEMES,
    MissingObjectError,
    Store,
    open_store,
    remove_folder,
    sweep_partial,
)

PAGE = 1000
INPUT = re.compile(r"inputs/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.(txt|rows)")


@dataclass(frozen=True, slots=True)
class Discarded:
    """What one step deleted from a store."""

    objects: int = 0
    bytes: int = 0


def place_of(url: str) -> str:
    """One name for one folder, however its URL is written and through whichever link it leads."""
    if url.startswith("file://"):
        return os.path.realpath(urllib.parse.unquote(urllib.parse.urlsplit(url).path))
    return url.rstrip("/")


def discard_prefix(store: Store, prefix: str) -> Iterator[Discarded]:
    """Delete everything in a job's own prefix, page by page, and the folder with it.

    A name that could not be ours is left, and so is its folder. Listing begins anew until there is nothing
    more: a listing that goes on while its objects are deleted may miss some.
    """
    found = True
    while found:
        found = False
        page: dict[str, int] = {}
        for stored in store.list(prefix):
            if not _ours(store, stored.name):
                continue
            page[stored.name] = stored.size
            if len(page) == PAGE:
                found = True
                yield _discard_page(store, page)
                page = {}
        if page:
            found = True
            yield _discard_page(store, page)
    sweep_partial(f"{store.root}/{prefix}", 0)
    remove_folder(f"{store.root}/{prefix}")


def discard_input(store: Store, name: str | None) -> Discarded:
    """Delete the copy of a job's input. Another service may have written anything in its place: that is left."""
    if name is None or not INPUT.fullmatch(name):
        return Discarded()
    try:
        size = store.size(name)
    except MissingObjectError:
        return Discarded()
    store.delete([name])
    return Discarded(1, size)


def discard_named(store: Store, images: Iterable[NamedObject], kept: Collection[bytes] | None) -> Discarded:
    """Delete the objects that these rows name in ``store``, but none whose sha256 is in ``kept``.

    ``kept`` None: nobody else stores there. Otherwise an object without a digest is left, too.
    """
    names = {}
    for image in images:
        free = kept is None or (image.sha256 is not None and image.sha256 not in kept)
        if free and image.url is not None:
            try:
                names[store.name(image.url)] = image.bytes
            except ValueError:  # Another service's row, and not an object of this store.
                continue
    return _discard_page(store, names) if names else Discarded()


def open_folder(url: str | None) -> Store | None:
    """The store of a job outside its own prefix; None when there is none here, which is not made for this."""
    scheme, separator, _ = (url or "").partition("://")
    if not url or not separator or scheme not in {"file", *OBJECT_STORE_SCHEMES}:
        return None
    if scheme == "file" and not Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).is_dir():
        return None
    return open_store(url)


class Neighbourhood:
    """Which jobs of other users store where the jobs of one user do. Remembers those only.

    ``root`` is the URL of the store: a folder under ``root``/jobs/N is where job N stores, too.
    """

    def __init__(self, root: str) -> None:
        self._jobs = f"{place_of(root)}/jobs/"
        self._near: dict[str, set[int]] = {}
        self.newest = 0
        """The last job looked at."""

    def settle(self, job_id: int, store_url: str | None) -> None:
        """A job of the user stores here."""
        key = self._key(store_url)
        if key is not None:
            near = self._near.setdefault(key, set())
            owner = key.removeprefix(self._jobs)
            if key.startswith(self._jobs) and owner.isdecimal() and int(owner) != job_id:
                near.add(int(owner))

    def meet(self, jobs: Iterable[tuple[int, str]]) -> None:
        """Jobs of others, and where they store."""
        for job_id, store_url in jobs:
            near = self._near.get(self._key(store_url) or "")
            if near is not None:
                near.add(job_id)

    def of(self, store_url: str | None) -> Sequence[int]:
        """The jobs that were met in a folder."""
        return sorted(self._near.get(self._key(store_url) or "", ()))

    def _key(self, store_url: str | None) -> str | None:
        """The place, or the prefix of the job under which it lies."""
        if store_url is None:
            return None
        place = place_of(store_url)
        if place.startswith(self._jobs):
            return self._jobs + place.removeprefix(self._jobs).partition("/")[0]
        return place


def _discard_page(store: Store, names: dict[str, int]) -> Discarded:
    store.delete(names)
    return Discarded(len(names), sum(names.values()))


def _ours(store: Store, name: str) -> bool:
    try:
        store.url(name)
    except ValueError:
        return False
    return True
