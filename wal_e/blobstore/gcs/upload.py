"""A resumable upload: bytes in strict order, as the JSON API takes them when their number is not known.

Each piece but the last is a multiple of 256 KiB. The service may keep less of a piece than was sent, and says how much;
after trouble it is asked. The last piece is what makes the object visible, so it is held back until the upload is completed,
and carries the checksum of the whole. A session that is never finished ends by itself after a week and costs nothing.

The library begins the session, but its own way to fill one does not do: it takes the end of the stream for the end of the
object, gives up where less was kept than sent, and cannot find out that an object whose answer was lost is finished.

https://cloud.google.com/storage/docs/performing-resumable-uploads
"""

from __future__ import annotations

from base64 import b64encode
from contextlib import suppress

from google.api_core.exceptions import GoogleAPICallError, NotFound

from wal_e.blobstore.gcs.errors import changed_on_the_way, not_google, read_refusal, translated
from wal_e.blobstore.service import Upload, UploadLost
from wal_e.errors import StoreUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import requests

    from wal_e.blobstore.gcs.client import GcsClient
    from wal_e.blobstore.gcs.errors import Purpose
    from wal_e.blobstore.service import Part, Whole

FINAL_CHECKSUM = "X-Goog-Hash"
FINISHED = (200, 201)
UNFINISHED = 308
GONE = (404, 410)
CANCELLED = (*FINISHED, 204, *GONE, 499)


class GcsUpload(Upload):
    """One session; its address is as good as a password and never shown."""

    def __init__(self, client: GcsClient, session: str, blob: Any, purpose: Purpose) -> None:
        self._client = client
        self._session = session
        self._blob = blob
        self._purpose = purpose
        self._kept = 0
        self._certain = True
        self._last: Part | None = None

    def send(self, part: Part) -> None:
        """Send one part, but only remember the last one."""
        if part.last:
            self._last = part
        else:
            self._push(part, "*", {})

    def complete(self, whole: Whole) -> None:
        """Send the last part, which makes the object visible, and compare checksums. Raises: BlobExists, UploadLost."""
        assert self._last is not None
        checksum = encoded_crc32c(whole.crc32c)
        response = self._push(self._last, str(whole.size), {FINAL_CHECKSUM: f"crc32c={checksum}"})
        assert response is not None
        with translated(self._purpose):
            stored = response.json()
            if stored.get("crc32c") == checksum and stored.get("size") == str(whole.size):
                return
            if "generation" not in stored:
                raise not_google(self._purpose)
            with suppress(NotFound):
                self._blob.bucket.blob(self._blob.name, generation=stored["generation"]).delete(retry=None)
        raise UploadLost(f"{self._purpose.url} was changed on its way to the store", "What was stored has another checksum; it was deleted.")

    def abort(self) -> None:
        """Cancel the session."""
        with translated(self._purpose):
            self._client.request("DELETE", self._session, CANCELLED)

    def _push(self, part: Part, total: str, headers: dict[str, str]) -> requests.Response | None:
        """Send what the service does not have of a part; return its answer if that finished the object."""
        end = part.offset + len(part.data)
        if not self._certain:
            response = self._put(b"", f"*/{total}", {})
            if response.status_code in FINISHED:
                return response
        while self._kept < end or total != "*":
            before = self._kept
            if before < part.offset:
                raise UploadLost(f"the upload of {self._purpose.url} was lost", f"Google has forgotten all but its first {before} bytes.")
            data = part.data[before - part.offset :]
            response = self._put(data, f"{before}-{end - 1}/{total}" if data else f"*/{total}", headers)
            if response.status_code in FINISHED:
                return response
            if self._kept <= before:
                raise StoreUnavailable(f"the upload of {self._purpose.url} does not move", f"Google keeps {before} bytes of it and takes no more.")
        return None

    def _put(self, data: bytes, content_range: str, headers: dict[str, str]) -> requests.Response:
        """Send some bytes, or none to ask, and note how many the service has."""
        self._certain = False
        headers = {**headers, "Content-Range": f"bytes {content_range}"}
        with translated(self._purpose):
            try:
                response = self._client.request("PUT", self._session, (*FINISHED, UNFINISHED), headers=headers, data=data or None)
            except GoogleAPICallError as error:
                refusal = read_refusal(error.response.status_code, error.response.content, error.response.headers)
                if refusal.status in GONE or changed_on_the_way(refusal):
                    raise UploadLost(f"the upload of {self._purpose.url} was lost", refusal.detail) from None
                raise
        self._certain = True
        if response.status_code == UNFINISHED:
            self._kept = int(response.headers.get("Range", "bytes=0--1").partition("-")[2]) + 1
        return response


def encoded_crc32c(crc32c: int) -> str:
    """A checksum as the JSON API writes it."""
    return b64encode(crc32c.to_bytes(4, "big")).decode()
