"""Google Cloud Storage, through google-cloud-storage.

Objects are stored with their CRC32C, which the service compares with what arrives, and are read with it. There is no frozen
state here: even the Archive class is read at once, at a price. Unfinished uploads end by themselves and cost nothing, so
there are no leftovers. Names begin with a slash only where WAL-E's do, see :mod:`~wal_e.blobstore.leading_slash`.

https://cloud.google.com/storage/docs/json_api/v1
"""

from __future__ import annotations

from base64 import b64decode

from google.cloud.storage import Batch

from wal_e.blobstore.base import Blob
from wal_e.blobstore.gcs.client import Download, GcsClient
from wal_e.blobstore.gcs.errors import Purpose, not_google, read_refusal, refused, translated
from wal_e.blobstore.gcs.upload import GcsUpload, encoded_crc32c
from wal_e.blobstore.leading_slash import LeadingSlash
from wal_e.blobstore.service import CREATE, Opened, Page, Service, content_type
from wal_e.errors import BlobNotFound, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from wal_e.blobstore.base import Leftover
    from wal_e.blobstore.url import StoreUrl
    from wal_e.settings import Settings

_PAGE = 1000  # the most that one answer holds


class GcsService(Service):
    """One bucket, below one prefix."""

    parts_at_once = 1
    delete_batch = 100  # the most that the service takes: https://cloud.google.com/storage/docs/batch

    def __init__(self, address: StoreUrl, settings: Settings, connections: int) -> None:
        self._url = f"gs://{address.host}{address.path}"
        self._client = GcsClient(address.host, self._url, (settings.connect_timeout_s, settings.read_timeout_s), connections)
        # It lists before anything else is asked, so a bucket that is not there shows itself: no 404 of a key can mean the bucket.
        self._slash = LeadingSlash(address.path, self._any_object)

    @property
    def url(self) -> str:
        """The prefix as a user would write it."""
        return self._url

    def write(self, key: str, data: bytes, crc32c: int, verb: str) -> None:
        """Store a whole blob with its checksum; the library makes one request of up to 8 MiB, and two of more. Raises: BlobExists."""
        purpose, blob = self._purpose("write", key), self._blob(key)
        blob.crc32c = encoded_crc32c(crc32c)
        with translated(purpose):
            blob.upload_from_string(data, content_type(key), if_generation_match=_condition(verb), checksum=None, retry=None)
            if blob.crc32c != encoded_crc32c(crc32c):
                raise not_google(purpose)

    def begin(self, key: str, verb: str) -> GcsUpload:
        """Begin a resumable upload. Raises: BlobExists."""
        purpose, blob = self._purpose("write", key), self._blob(key)
        with translated(purpose):
            session = blob.create_resumable_upload_session(content_type(key), if_generation_match=_condition(verb), checksum=None, retry=None)
        return GcsUpload(self._client, session, blob, purpose)

    def open(self, key: str, start: int, length: int | None, version: str | None) -> Opened:
        """Ask for the bytes, of one generation. Raises: BlobNotFound, or StoreError when that generation is gone."""
        purpose, blob = self._purpose("read", key), self._blob(key, version)
        partial = bool(start) or length is not None
        wanted = f"bytes={start}-{'' if length is None else start + length - 1}" if partial else ""
        try:
            with translated(purpose):
                answer = self._client.media(blob, wanted, version)
                if answer.status_code == 416:
                    answer.close()
                    blob.reload(retry=None)
                    return Opened(str(blob.generation), blob.size, _decoded(blob.crc32c), iter(()))
        except BlobNotFound as error:
            if version is None:
                raise
            raise StoreError(f"{purpose.url} was replaced or deleted while it was read", error.detail) from None
        if "X-Goog-Generation" not in answer.headers or (answer.status_code == 200 and partial):
            answer.close()
            raise not_google(purpose)
        return Opened(answer.headers["X-Goog-Generation"], _whole_size(answer.headers), _hashed(answer.headers), Download(answer, purpose))

    def stat(self, key: str) -> Blob:
        """Return size and time. Raises: BlobNotFound."""
        purpose, blob = self._purpose("read", key), self._blob(key)
        with translated(purpose):
            blob.reload(retry=None)
            if blob.size is None:
                raise not_google(purpose)
            return Blob(key, blob.size, blob.updated)

    def page(self, prefix: str, following: str | None) -> Page:
        """Return a page of up to 1000 keys."""
        root = self._slash.root()
        with translated(Purpose("list", self._url)):
            found = self._list(root + prefix, _PAGE, following)
            blobs = [Blob(each.name.removeprefix(root), each.size, each.updated) for each in next(found.pages)]
        return Page(blobs, found.next_page_token)

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """Delete up to 100 keys in one request; return why for each that is left."""
        doomed = [self._blob(key) for key in keys]
        with translated(Purpose("delete", self._url)):
            batch = _Batch(self._client.get(), raise_exception=False)
            with batch:
                for blob in doomed:
                    blob.delete(retry=None)
        refusals = {key: read_refusal(each.status_code, each.content, each.headers) for key, each in zip(keys, batch.answers, strict=True)}
        failures = {key: refused(refusal, self._purpose("delete", key)) for key, refusal in refusals.items() if refusal.status >= 300}
        return {key: error for key, error in failures.items() if not isinstance(error, BlobNotFound)}

    def leftovers(self) -> Iterator[Leftover]:
        """Yield nothing: sessions end by themselves."""
        return iter(())

    def discard(self, leftover: Leftover) -> None:
        """Do nothing: there are no leftovers."""

    def _any_object(self, beginning: str) -> bool:
        with translated(Purpose("list", self._url)):
            return any(True for _ in self._list(beginning, 1, None))

    def _list(self, beginning: str, size: int, following: str | None) -> Any:
        fields = "items(name,size,updated),nextPageToken"
        return self._client.bucket().list_blobs(prefix=beginning, max_results=size, page_token=following, fields=fields, retry=None)

    def _blob(self, key: str, version: str | None = None) -> Any:
        return self._client.bucket().blob(self._slash.root() + key, generation=None if version is None else int(version))

    def _purpose(self, operation: str, key: str) -> Purpose:
        return Purpose(operation, f"{self._url}/{key}")


class _Batch(Batch):  # type: ignore[misc]  # its library has no types
    """A batch that keeps what became of each of its requests, where the library's own only returns it from :meth:`finish`."""

    def finish(self, raise_exception: bool = True) -> Any:
        """Send the batch."""
        self.answers = super().finish(raise_exception)
        return self.answers


def _condition(verb: str) -> int | None:
    return 0 if verb == CREATE else None


def _whole_size(headers: Mapping[str, str]) -> int:
    total = headers.get("Content-Range", "").rpartition("/")[2]
    return int(total or headers.get("X-Goog-Stored-Content-Length") or headers["Content-Length"])


def _hashed(headers: Mapping[str, str]) -> int | None:
    """The CRC32C of the whole object, of several checksums in one header."""
    for each in headers.get("X-Goog-Hash", "").split(","):
        name, _, value = each.strip().partition("=")
        if name == "crc32c":
            return _decoded(value)
    return None


def _decoded(crc32c: str) -> int:
    return int.from_bytes(b64decode(crc32c), "big")
