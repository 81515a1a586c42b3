"""How an object of Swift becomes a blob, by either verb, and how it ceases to be one with all its segments.

A manifest's metadata say which upload it stands for and how many segments that has, so nothing needs to be listed.
"""

from __future__ import annotations

import contextlib

from wal_e.blobstore.service import CREATE, content_type
from wal_e.blobstore.swift.claims import Claim
from wal_e.blobstore.swift.names import Names, segment
from wal_e.errors import BlobExists, BlobNotFound, StoreError
from wal_e.log import Logger
from wal_e.record import NamedTuple
from wal_e.retry import Policy, retrying

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from wal_e.blobstore.swift.container import Container

LOG = Logger(__name__)

TIDYING = Policy(5, 20)  # what is not removed now is garbage

CRC32C = "x-object-meta-crc32c"
WRITER = "x-object-meta-wal-e-writer"
SEGMENTS = "x-object-meta-wal-e-segments"


class Draft(NamedTuple):
    """An object that is to become a blob: its bytes, or its manifest (``segments`` is their number then, else 0), and the CRC32C of the blob."""

    key: str
    url: str
    data: bytes
    crc32c: int
    writer: str
    segments: int

    @property
    def headers(self) -> dict[str, str]:
        """What is stored with it."""
        described = {"content-type": content_type(self.key), CRC32C: f"{self.crc32c:08x}", WRITER: self.writer}
        return {**described, SEGMENTS: str(self.segments)} if self.segments else described

    @property
    def query(self) -> str | None:
        """What tells Swift that this is a manifest."""
        return "multipart-manifest=put" if self.segments else None


def publish(container: Container, names: Names, draft: Draft, verb: str) -> None:
    """Make the draft visible. Raises: BlobExists, with the verb CREATE only."""
    if verb == CREATE:
        _create(container, names, draft)
    else:
        _replace(container, names, draft)


def segments_of(names: Names, key: str, headers: Mapping[str, str]) -> list[str]:
    """The names of the segments that a blob with these headers stands for; none if it has none of ours."""
    count = headers.get(SEGMENTS, "")
    place = names.segments(key, headers.get(WRITER, ""))
    return [segment(place, number) for number in range(int(count))] if count.isdecimal() else []


def withdraw(container: Container, names: Names, key: str, url: str) -> None:
    """Delete a blob: first it becomes invisible, then its segments go. That it is absent is no error."""
    with contextlib.suppress(BlobNotFound):
        segments = segments_of(names, key, container.head(names.blob(key), url))
        container.delete(names.blob(key), url)
        _remove_if_possible(container, segments, url)


def remove(container: Container, names: Iterable[str], url: str) -> None:
    """Delete objects, some at once; that they are absent is no error. Raises: StoreError, the first that was met."""

    def delete(name: str) -> None:
        with contextlib.suppress(BlobNotFound):
            retrying(lambda: container.delete(name, url), TIDYING)

    for error in each(container, names, delete).values():
        raise error


def each(container: Container, names: Iterable[str], call: Callable[[str], None]) -> dict[str, StoreError]:
    """Call with each name, some at once, and return the errors."""
    todo = list(names)
    if len(todo) < 2:
        return dict(filter(None, (_error_of(call, name) for name in todo)))
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(min(8, container.connections), thread_name_prefix="swift") as executor:
        return dict(filter(None, executor.map(lambda name: _error_of(call, name), todo)))


def _error_of(call: Callable[[str], None], name: str) -> tuple[str, StoreError] | None:
    try:
        call(name)
    except StoreError as error:
        return name, error
    return None


def _create(container: Container, names: Names, draft: Draft) -> None:
    name = names.blob(draft.key)

    def writer() -> str | None:
        try:
            return container.newest(name, draft.url).get(WRITER, "")
        except BlobNotFound:
            return None

    place = names.claims(draft.key)
    try:
        with Claim(container, place, place + draft.writer, draft.url, lambda: writer() is not None).held():
            container.put(name, draft.url, draft.data, {**draft.headers, "If-None-Match": "*"}, draft.query)
            there = writer()
    except BlobExists:
        if writer() != draft.writer:  # else our own request of before got through, and only its answer was lost
            raise
        return
    if there != draft.writer:
        raise BlobExists(f"{draft.url} exists already", "Another process wrote it at the same moment, and what it wrote was kept.")


def _replace(container: Container, names: Names, draft: Draft) -> None:
    name = names.blob(draft.key)
    replaced: list[str] = []
    with contextlib.suppress(BlobNotFound):
        headers = container.head(name, draft.url)
        if headers.get(WRITER) != draft.writer:
            replaced = segments_of(names, draft.key, headers)
    container.put(name, draft.url, draft.data, draft.headers, draft.query)
    _remove_if_possible(container, replaced, draft.url)


def _remove_if_possible(container: Container, segments: list[str], url: str) -> None:
    try:
        remove(container, segments, url)
    except StoreError as error:
        LOG.warning(f"segments of what was {url} are left", str(error), "They are not visible, but take space; wal-e delete garbage removes them later.")
