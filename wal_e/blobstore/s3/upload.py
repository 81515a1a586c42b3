"""A multipart upload to S3, https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html.

Each part carries its checksum. Where the service knows checksums of whole objects (``FULL_OBJECT``), that
one is given at the end and kept with the object.
"""

from __future__ import annotations

from base64 import b64decode, b64encode

from google_crc32c import extend

from wal_e.blobstore.s3.answers import Refused
from wal_e.blobstore.service import CREATE, Upload, UploadLost
from wal_e.errors import BlobExists, BlobNotFound, StoreError, StoreUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from wal_e.blobstore.s3.answers import Asked
    from wal_e.blobstore.s3.bucket import Bucket
    from wal_e.blobstore.service import Part, Whole

CRC32C_KEY = "crc32c"  # of the metadata, in hexadecimal


class S3Upload(Upload):
    """One upload in parts, by its upload id."""

    def __init__(self, bucket: Bucket, asked: Asked, name: str, verb: str, begun: Mapping[str, Any], checksum: str) -> None:
        self._bucket = bucket
        self._asked = asked
        self._of = {"Key": name, "UploadId": begun["UploadId"]}
        self._verb = verb
        self._checksum = checksum
        self._full = begun.get("ChecksumType") == "FULL_OBJECT"
        self._sent: dict[int, dict[str, object]] = {}
        self._lost = False

    def send(self, part: Part) -> None:
        number = part.number + 1
        sums = checksums(self._checksum, part.data, extend(0, part.data))
        try:
            answer = self._bucket.call("upload_part", self._asked, **self._of, PartNumber=number, Body=part.data, **sums)
        except Refused as refused:
            raise (self._gone(refused) if refused.code == "NoSuchUpload" else refused) from None
        self._sent[number] = {"PartNumber": number, **{name: answer[name] for name in ("ETag", "ChecksumCRC32C") if name in answer}}

    def complete(self, whole: Whole) -> None:
        parameters: dict[str, Any] = {**self._of, "MultipartUpload": {"Parts": [self._sent[number] for number in sorted(self._sent)]}}
        if self._full:
            parameters |= {"ChecksumCRC32C": encoded(whole.crc32c), "ChecksumType": "FULL_OBJECT", "MpuObjectSize": whole.size}
        try:
            if self._verb == CREATE:
                self._bucket.create("complete_multipart_upload", self._asked, **parameters)
            else:
                self._bucket.call("complete_multipart_upload", self._asked, **parameters)
        except StoreUnavailable:
            self._lost = True
            raise
        except BlobExists:
            if not (self._lost and self._is_stored(whole)):
                raise
        except Refused as refused:
            if refused.code != "NoSuchUpload":
                raise
            if not self._is_stored(whole):
                raise self._gone(refused) from None

    def abort(self) -> None:
        abort(self._bucket, self._asked, self._of)

    def _is_stored(self, whole: Whole) -> bool:
        """Whether an earlier attempt took effect, though its answer was lost."""
        head = self._head()
        if head is None or head["ContentLength"] != whole.size:
            return False
        kept = kept_crc32c(head)
        return kept == whole.crc32c if kept is not None else head["ETag"] == self._expected_etag()

    def _gone(self, refused: Refused) -> StoreError:
        if self._verb == CREATE and self._head() is not None:
            return BlobExists(f"{self._asked.url} exists already", refused.detail)
        return UploadLost(
            f"the unfinished upload of {self._asked.url} is gone", refused.detail, "Somebody aborted it, or a lifecycle rule of the bucket did. Run it again."
        )

    def _head(self) -> dict[str, Any] | None:
        try:
            return self._bucket.call("head_object", self._asked, Key=self._of["Key"], **mode(self._checksum))
        except (BlobNotFound, Refused):
            return None

    def _expected_etag(self) -> str:
        """The MD5 of the parts' MD5s, as S3 forms the ETag of an upload in parts unless it encrypts with a key of its own."""
        import hashlib

        parts = [str(self._sent[number]["ETag"]).strip('"') for number in sorted(self._sent)]
        try:
            joined = b"".join(map(bytes.fromhex, parts))
        except ValueError:
            return ""
        return f'"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"'


def abort(bucket: Bucket, asked: Asked, upload: Mapping[str, object]) -> None:
    """Remove an unfinished upload; that it is gone is no error."""
    try:
        bucket.call("abort_multipart_upload", asked, **upload)
    except BlobNotFound:
        return
    except Refused as refused:
        if refused.code != "NoSuchUpload":
            raise


def checksums(kind: str, data: bytes, crc32c: int) -> dict[str, object]:
    """The checksum that goes with a body: CRC32C, or the older MD5."""
    if kind == "when_supported":
        return {"ChecksumCRC32C": encoded(crc32c)}
    import hashlib

    return {"ContentMD5": b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}


def mode(kind: str) -> dict[str, object]:
    """What asks for the checksum that is kept with an object."""
    return {"ChecksumMode": "ENABLED"} if kind == "when_supported" else {}


def encoded(crc32c: int) -> str:
    """A CRC32C as S3 writes it."""
    return b64encode(crc32c.to_bytes(4, "big")).decode()


def kept_crc32c(answer: Mapping[str, Any]) -> int | None:
    """The CRC32C of the whole object that came with an answer; one of the parts' checksums is none."""
    text = str(answer.get("ChecksumCRC32C", ""))
    if text and "-" not in text and answer.get("ChecksumType") != "COMPOSITE":
        return int.from_bytes(b64decode(text), "big")
    metadata = answer.get("Metadata", {}).get(CRC32C_KEY)
    return int(metadata, 16) if metadata else None
