"""Large blobs on their way to Swift: segments first, then the manifest that makes one object of them.

Static large objects: https://docs.openstack.org/swift/latest/overview_large_objects.html. The manifest names each
segment with its MD5 and size, which Swift compares with what it holds before it takes the manifest.
"""

from __future__ import annotations

from json import dumps

from wal_e.blobstore.service import Upload
from wal_e.blobstore.swift.names import Names, segment, writer_id
from wal_e.blobstore.swift.publish import WRITER, Draft, publish, remove
from wal_e.errors import BlobNotFound, StoreError, StoreUnavailable
from wal_e.log import Logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wal_e.blobstore.service import Part, Whole
    from wal_e.blobstore.swift.container import Container

LOG = Logger(__name__)

MOST_SEGMENTS = 1000  # max_manifest_segments of /info, unless the operator changed it


class SegmentedUpload(Upload):
    """One upload. Its name is that of its segments and of its manifest, so that a lost answer can be told from another writer."""

    def __init__(self, container: Container, names: Names, key: str, url: str, verb: str) -> None:
        self._container = container
        self._names = names
        self._key = key
        self._url = url
        self._verb = verb
        self._writer = writer_id()
        self._place = names.segments(key, self._writer)
        self._tried: set[int] = set()
        self._sent: dict[int, dict[str, object]] = {}
        self._undecided = False

    def send(self, part: Part) -> None:
        """Store one segment."""
        if part.number >= MOST_SEGMENTS:
            raise StoreError(
                f"{self._url} is too large for Swift",
                f"It has more than {MOST_SEGMENTS} segments, which is the most that one object may have; {part.offset} bytes were sent.",
            )
        name = segment(self._place, part.number)
        self._tried.add(part.number)
        digest = self._container.put(name, self._url, part.data, {"content-type": "application/octet-stream"})
        self._sent[part.number] = {"path": f"/{self._container.name}/{name}", "etag": digest, "size_bytes": len(part.data)}

    def complete(self, whole: Whole) -> None:
        """Store the manifest. Raises: BlobExists."""
        manifest = dumps([self._sent[number] for number in range(whole.parts)]).encode()
        self._undecided = True
        try:
            publish(self._container, self._names, Draft(self._key, self._url, manifest, whole.crc32c, self._writer, whole.parts), self._verb)
        except StoreUnavailable:
            raise
        except StoreError:
            self._undecided = False
            raise

    def abort(self) -> None:
        """Remove the segments, unless the manifest is there, or may still come.

        An answer that was lost may belong to a request that takes effect after we look: without its segments, a blob would be seen and could not be read.
        """
        if self._undecided:
            try:
                if self._container.newest(self._names.blob(self._key), self._url).get(WRITER) == self._writer:
                    return
            except BlobNotFound:
                LOG.debug(f"the manifest of {self._url} is not there")
            raise StoreError(f"it is not known whether {self._url} was stored", f"The answer was lost, so its {len(self._sent)} segments stay.")
        remove(self._container, [segment(self._place, number) for number in sorted(self._tried)], self._url)
