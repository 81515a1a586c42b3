"""S3 and its clones, through the client of boto3, which is botocore's.

A key is the object's name behind the prefix's path; repeated slashes of the path are one, as they were in WAL-E.
Requests and their limits: https://docs.aws.amazon.com/AmazonS3/latest/API/ (1000 keys in one deletion,
parts of 5 MiB to 5 GiB).
"""

from __future__ import annotations

from datetime import UTC, datetime
from http.client import HTTPException
from urllib.parse import unquote_plus

from botocore.exceptions import ClientError
from urllib3.exceptions import HTTPError

from wal_e.blobstore.base import Blob, Leftover
from wal_e.blobstore.s3.answers import THAWING_HINT, Asked, Refused
from wal_e.blobstore.s3.bucket import Bucket
from wal_e.blobstore.s3.errors import explained
from wal_e.blobstore.s3.upload import CRC32C_KEY, S3Upload, abort, checksums, kept_crc32c, mode
from wal_e.blobstore.service import CREATE, Opened, Page, Service, content_type
from wal_e.errors import BlobFrozen, BlobNotFound, StoreError, StoreForbidden

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from wal_e.blobstore.service import Upload
    from wal_e.blobstore.url import StoreUrl
    from wal_e.settings import Settings

PIECE_BYTES = 256 << 10


class S3Service(Service):
    """One bucket of S3, below one prefix."""

    delete_batch = 1000

    def __init__(self, address: StoreUrl, settings: Settings, connections: int) -> None:
        self._url = f"s3://{address.host}{address.path}"
        self._root = "".join(f"{part}/" for part in address.path.split("/") if part)
        self._settings = settings
        self._checksum = settings.s3_checksums
        self._bucket = Bucket(address.host, settings, connections)
        self._singly = False

    @property
    def url(self) -> str:
        return self._url

    def write(self, key: str, data: bytes, crc32c: int, verb: str) -> None:
        asked = self._asked("write", key)
        parameters = {"Key": self._root + key, "Body": data, **self._kept(key, asked), **checksums(self._checksum, data, crc32c)}
        if self._checksum == "when_required" or not self._bucket.is_amazon(asked):
            parameters["Metadata"] = {CRC32C_KEY: f"{crc32c:08x}"}
        if verb == CREATE:
            self._bucket.create("put_object", asked, **parameters)
        else:
            self._bucket.call("put_object", asked, **parameters)

    def begin(self, key: str, verb: str) -> Upload:
        asked = self._asked("write", key)
        name = self._root + key
        parameters = {"Key": name, **self._kept(key, asked)}
        if self._checksum == "when_supported":
            parameters |= {"ChecksumAlgorithm": "CRC32C", "ChecksumType": "FULL_OBJECT"}
        begun = self._bucket.call("create_multipart_upload", asked, **parameters)
        return S3Upload(self._bucket, asked, name, verb, begun, self._checksum)

    def open(self, key: str, start: int, length: int | None, version: str | None) -> Opened:
        asked = self._asked("read", key)
        parameters = {"Key": self._root + key, **mode(self._checksum)}
        ranged = start > 0 or length is not None
        if ranged:
            parameters["Range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
        if version:
            parameters["IfMatch"] = version
        try:
            answer = self._bucket.call("get_object", asked, **parameters)
        except BlobFrozen as frozen:
            raise self._frozen(key, asked, frozen) from None
        except Refused as refused:
            if refused.http_status == 416:
                return Opened(version or "", _size_of(refused.headers.get("content-range"), start), None, iter(()))
            if refused.code == "404":
                raise self._bucket.absence(asked, refused) from None
            raise
        chunks = _Body(answer["Body"], asked)
        if ranged and "ContentRange" not in answer:
            chunks.close()
            raise StoreError(
                f"S3 sent all of {asked.url} when a part was asked for", "The service does not know ranges, and reading cannot go on without them."
            )
        size = _size_of(answer.get("ContentRange"), start) if ranged else answer["ContentLength"]
        return Opened(answer["ETag"], size, kept_crc32c(answer), chunks)

    def stat(self, key: str) -> Blob:
        asked = self._asked("read", key)
        try:
            answer = self._bucket.call("head_object", asked, Key=self._root + key)
        except Refused as refused:
            if refused.code == "404":
                raise self._bucket.absence(asked, refused) from None
            answer = self._bucket.call("get_object", asked, Key=self._root + key)  # which is refused with a reason
            answer["Body"].close()
        return Blob(key, answer["ContentLength"], _seconds(answer["LastModified"]))

    def page(self, prefix: str, following: str | None) -> Page:
        token = {} if following is None else {"ContinuationToken": following}
        asked = self._asked("list", prefix)
        answer = self._bucket.call("list_objects_v2", asked, Prefix=self._root + prefix, **token)
        rest = answer.get("NextContinuationToken")
        if answer.get("IsTruncated") and not rest:
            raise StoreError(f"S3 did not list all of {asked.url}", "It says that there is more, and not how to ask for it.")
        skip = len(self._root)
        blobs = [Blob(item["Key"][skip:], item["Size"], _seconds(item["LastModified"])) for item in answer.get("Contents", ())]
        return Page(blobs, rest if answer.get("IsTruncated") else None)

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        asked = self._asked("delete", "")
        if self._singly or len(keys) == 1:
            return self._delete_singly(keys)
        objects = [{"Key": self._root + key} for key in keys]
        try:
            answer = self._bucket.call("delete_objects", asked, Delete={"Objects": objects, "Quiet": True})
        except Refused:  # a clone that knows no such request, or a key that XML cannot hold
            failures = self._delete_singly(keys)
            self._singly = not self._bucket.is_amazon(asked)
            return failures
        return self._left(answer.get("Errors", ()), set(keys))

    def leftovers(self) -> Iterator[Leftover]:
        asked = self._asked("list", "")
        markers: dict[str, str] = {}
        while True:
            page = self._bucket.call("list_multipart_uploads", asked, Prefix=self._root, EncodingType="url", **markers)
            decoded = unquote_plus if page.get("EncodingType") == "url" else str
            for upload in page.get("Uploads", ()):
                leftover = self._leftover(decoded(upload["Key"]), upload)
                if leftover is not None:
                    yield leftover
            if not page.get("IsTruncated"):
                return
            markers = {"KeyMarker": decoded(page["NextKeyMarker"]), "UploadIdMarker": page["NextUploadIdMarker"]}

    def discard(self, leftover: Leftover) -> None:
        upload_id, _, name = leftover.address.partition(" ")
        abort(self._bucket, self._asked("delete", name.removeprefix(self._root)), {"Key": name, "UploadId": upload_id})

    def _asked(self, verb: str, key: str) -> Asked:
        return Asked(verb, f"{self._url}/{key}" if key else self._url, self._bucket.name)

    def _kept(self, key: str, asked: Asked) -> dict[str, Any]:
        """How an object is kept: content type, storage class, encryption."""
        settings = self._settings
        kept = {"ContentType": content_type(key)}
        if settings.s3_storage_class:
            kept["StorageClass"] = settings.s3_storage_class
        encryption = settings.s3_sse or ("AES256" if self._bucket.is_amazon(asked) else "none")
        if encryption != "none" and not settings.disable_s3_sse:
            kept["ServerSideEncryption"] = encryption
            if encryption == "aws:kms" and settings.s3_sse_kms_key_id:
                kept["SSEKMSKeyId"] = settings.s3_sse_kms_key_id
        return kept

    def _frozen(self, key: str, asked: Asked, frozen: BlobFrozen) -> BlobFrozen:
        """Say of a frozen object whether it is being restored, which the answer to GET does not tell."""
        try:
            restore = self._bucket.call("head_object", asked, Key=self._root + key).get("Restore", "")
        except StoreError:
            return frozen
        return BlobFrozen(frozen.message, frozen.detail, THAWING_HINT) if 'ongoing-request="true"' in restore else frozen

    def _delete_singly(self, keys: Sequence[str]) -> dict[str, StoreError]:
        failures: dict[str, StoreError] = {}
        for key in keys:
            try:
                self._bucket.call("delete_object", self._asked("delete", key), Key=self._root + key)
            except BlobNotFound:
                continue
            except StoreError as error:
                failures[key] = error
        return failures

    def _left(self, refusals: Sequence[dict[str, str]], keys: set[str]) -> dict[str, StoreError]:
        """What each refusal within the answer to a deletion means."""
        failures: dict[str, StoreError] = {}
        for refusal in refusals:
            key = refusal.get("Key", "").removeprefix(self._root)
            error = explained(ClientError({"Error": refusal}, "DeleteObjects"), self._asked("delete", key))
            if isinstance(error, BlobNotFound):
                continue
            if key not in keys:
                raise error
            failures[key] = error
        return failures

    def _leftover(self, name: str, upload: dict[str, Any]) -> Leftover | None:
        """An unfinished upload with the size of its parts; None when it has ended since."""
        asked = self._asked("list", name.removeprefix(self._root))
        address, description, started = f"{upload['UploadId']} {name}", f"unfinished upload of {asked.url}", _seconds(upload["Initiated"])
        size, marker = 0, 0
        while True:
            try:
                page = self._bucket.call("list_parts", asked, Key=name, UploadId=upload["UploadId"], PartNumberMarker=marker)
            except (BlobNotFound, Refused):
                return None
            except StoreForbidden:
                return Leftover(address, description, None, started)
            size += sum(part["Size"] for part in page.get("Parts", ()))
            if not page.get("IsTruncated"):
                return Leftover(address, description, size, started)
            marker = page["NextPartNumberMarker"]


class _Body:
    """The body of an answer, piece by piece as it comes; closed early, its connection is not used again."""

    def __init__(self, body: Any, asked: Asked) -> None:
        self._body = body
        with_body = body.__enter__()  # urllib3's response, which can hand out what is there
        self._read = getattr(with_body, "read1", with_body.read)
        self._asked = asked

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece: bytes = self._read(PIECE_BYTES)
        except (HTTPError, HTTPException, OSError) as error:
            raise explained(error, self._asked) from None
        if not piece:
            raise StopIteration
        return piece

    def close(self) -> None:
        self._body.close()


def _size_of(content_range: str | None, start: int) -> int:
    """The size of the whole object by the answer's Content-Range, ``bytes 0-9/100``; the offset asked for where it does not say."""
    size = (content_range or "").rpartition("/")[2]
    return int(size) if size.isdigit() else start


def _seconds(moment: datetime) -> datetime:
    """A time in whole seconds, for a listing has more digits than the headers of an object."""
    return moment.astimezone(UTC).replace(microsecond=0)
