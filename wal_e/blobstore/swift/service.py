"""OpenStack Swift: blobs are the objects of one container, below a path.

The interface: https://docs.openstack.org/api-ref/object-store/. A blob has its CRC32C in its metadata, and every request
with a body its MD5, which Swift compares. Replacing is atomic. Creating is not, at the service: ``claims.py`` says
what is done about it and what remains. What was created is read back, from the newest of its copies, and it is an
error if that is another writer's.
"""

from __future__ import annotations

from datetime import UTC, datetime

from wal_e.blobstore.base import Blob, Leftover
from wal_e.blobstore.leading_slash import LeadingSlash
from wal_e.blobstore.service import Opened, Page, Service
from wal_e.blobstore.swift.auth import SignIn, credentials
from wal_e.blobstore.swift.container import Container
from wal_e.blobstore.swift.errors import PastTheEnd
from wal_e.blobstore.swift.names import CLAIMS, SEGMENTS, Names, writer_id
from wal_e.blobstore.swift.publish import CRC32C, WRITER, Draft, each, publish, remove, withdraw
from wal_e.blobstore.swift.upload import SegmentedUpload
from wal_e.errors import BlobExists, BlobNotFound, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from wal_e.blobstore.service import Upload
    from wal_e.blobstore.url import StoreUrl
    from wal_e.settings import Settings


class SwiftService(Service):
    """One container of Swift, below one path."""

    delete_batch = 500

    def __init__(self, address: StoreUrl, settings: Settings, connections: int) -> None:
        self._url = f"swift://{address.host}{address.path}"
        timeouts_s = (settings.connect_timeout_s, settings.read_timeout_s)
        self._container = Container(address.host, SignIn(credentials(settings)), timeouts_s, connections)
        self._slash = LeadingSlash(address.path, lambda prefix: bool(self._container.page(prefix, self._url, limit=1)))

    @property
    def url(self) -> str:
        """The prefix as a user would write it."""
        return self._url

    def write(self, key: str, data: bytes, crc32c: int, verb: str) -> None:
        """Store a whole blob. Raises: BlobExists."""
        publish(self._container, self._names, Draft(key, self._url_of(key), data, crc32c, writer_id(), 0), verb)

    def begin(self, key: str, verb: str) -> Upload:
        """Begin an upload in segments."""
        return SegmentedUpload(self._container, self._names, key, self._url_of(key), verb)

    def open(self, key: str, start: int, length: int | None, version: str | None) -> Opened:
        """Ask for bytes of a blob. Raises: BlobNotFound."""
        name, url = self._names.blob(key), self._url_of(key)
        asked: dict[str, str] = {}
        if start or length is not None:
            asked["Range"] = f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"
        if version is not None:
            asked["If-Match"] = version
        try:
            headers, body = self._container.get(name, url, asked)
        except BlobExists as error:
            raise StoreError(f"{url} was replaced while it was read", error.detail, "Read it again from its beginning.") from None
        except PastTheEnd:
            headers = self._container.head(name, url)
            if start < int(headers["content-length"]):
                raise
            return Opened(headers["etag"], int(headers["content-length"]), _crc32c(headers), iter(()))
        size = int(headers["content-range"].rpartition("/")[2] if "content-range" in headers else headers["content-length"])
        return Opened(headers["etag"], size, _crc32c(headers), body)

    def stat(self, key: str) -> Blob:
        """Return size and time. Raises: BlobNotFound."""
        headers = self._container.head(self._names.blob(key), self._url_of(key))
        return Blob(key, int(headers["content-length"]), datetime.fromtimestamp(float(headers["x-timestamp"]), UTC))

    def page(self, prefix: str, following: str | None) -> Page:
        """Return a page of the listing."""
        root = self._names.root
        entries = self._container.page(root + prefix, f"{self._url}/{prefix}", following or "")
        blobs = [Blob(entry["name"].removeprefix(root), entry["bytes"], _time(entry)) for entry in entries]
        return Page(blobs, entries[-1]["name"] if entries else None)

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """Delete blobs; Swift takes one at a time, so some go at once."""
        names = self._names
        return each(self._container, keys, lambda key: withdraw(self._container, names, key, self._url_of(key)))

    def leftovers(self) -> Iterator[Leftover]:
        """Yield uploads whose segments no manifest stands for, and announcements of writers."""
        names = self._names
        for place, size, started in self._uploads():
            key, writer = names.upload_of(place)
            if self._writer_of(key) != writer:
                yield Leftover(place, f"segments of {self._url_of(key)}, which was not stored whole", size, started)
        for entry in self._container.objects(names.root + CLAIMS, self._url):
            key, _ = names.claim_of(entry["name"])
            yield Leftover(entry["name"], f"the announcement that {self._url_of(key)} is being created", 0, _time(entry))

    def discard(self, leftover: Leftover) -> None:
        """Remove what is left, unless a manifest has come that stands for it."""
        names = self._names
        if leftover.address.startswith(names.root + SEGMENTS):
            key, writer = names.upload_of(leftover.address)
            if self._writer_of(key) == writer:
                return
        remove(self._container, [entry["name"] for entry in self._container.objects(leftover.address, self._url)], self._url)

    @property
    def _names(self) -> Names:
        return Names(self._slash.root())

    def _url_of(self, key: str) -> str:
        return f"{self._url}/{key}"

    def _writer_of(self, key: str) -> str | None:
        try:
            return self._container.newest(self._names.blob(key), self._url_of(key)).get(WRITER)
        except BlobNotFound:
            return None

    def _uploads(self) -> Iterator[tuple[str, int, datetime]]:
        """Yield each upload that has segments: what their names begin with, their size in bytes, and when the first one came."""
        place, size, started = "", 0, datetime.max.replace(tzinfo=UTC)
        for entry in self._container.objects(self._names.root + SEGMENTS, self._url):
            its_place = entry["name"].rpartition("/")[0] + "/"
            if its_place != place:
                if place:
                    yield place, size, started
                place, size, started = its_place, 0, _time(entry)
            size, started = size + entry["bytes"], min(started, _time(entry))
        if place:
            yield place, size, started


def _crc32c(headers: Mapping[str, str]) -> int | None:
    text = headers.get(CRC32C)
    return int(text, 16) if text else None


def _time(entry: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(entry["last_modified"]).replace(tzinfo=UTC)
