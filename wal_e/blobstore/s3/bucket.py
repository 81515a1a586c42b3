"""One bucket: its requests, with errors translated, and what has been learnt of the service behind it.

Amazon decides a create by ``If-None-Match: *``. Of its clones some refuse that header, and some ignore it; a key is looked for
before each create there, and the first small one of a process is repeated, which must fail. What that leaves
open, a race of two writers, is said once.
"""

from __future__ import annotations

from threading import Lock

from botocore.exceptions import BotoCoreError, ClientError

from wal_e.blobstore.s3.answers import Refused, absent, no_bucket, not_s3
from wal_e.blobstore.s3.client import check_ca_file, is_amazon, new_client, parse_endpoint
from wal_e.blobstore.s3.errors import explained
from wal_e.errors import BlobExists, BlobNotFound, StoreError
from wal_e.log import Logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wal_e.blobstore.s3.answers import Asked
    from wal_e.settings import Settings

LOG = Logger(__name__)

PROBE_BYTES = 64 << 10
SIGNS = {  # one of these is in each answer of S3, and in no page that something else sends in its place
    "list_objects_v2": ("Name", "IsTruncated"),
    "list_multipart_uploads": ("Bucket", "IsTruncated", "Uploads"),
    "head_object": ("LastModified",),
    "get_object": ("ETag",),
    "put_object": ("ETag",),
    "upload_part": ("ETag",),
}


class Bucket:
    """A bucket's requests. The client is made with the first of them, once for all threads."""

    def __init__(self, name: str, settings: Settings, connections: int) -> None:
        self.name = name
        self._settings = settings
        self._endpoint = parse_endpoint(settings.s3_endpoint) if settings.s3_endpoint else None
        check_ca_file(settings.s3_ca_file)
        self._connections = connections
        self._making = Lock()
        self._client: Any = None
        self._amazon = False
        self._seen = False
        self._probed = False
        self._conditional = True

    def call(self, operation: str, asked: Asked, **parameters: object) -> dict[str, Any]:
        """Make a request to the bucket. Raises: StoreError."""
        client = self._made_client(asked)
        try:
            answer: dict[str, Any] = getattr(client, operation)(Bucket=self.name, **parameters)
        except (BotoCoreError, ClientError, ValueError) as error:
            raise explained(error, asked) from None
        if operation in SIGNS and not any(sign in answer for sign in SIGNS[operation]):
            raise not_s3(asked)
        self._seen = True
        return answer

    def is_amazon(self, asked: Asked) -> bool:
        """Whether this is Amazon's own service."""
        self._made_client(asked)
        return self._amazon

    def create(self, operation: str, asked: Asked, **parameters: Any) -> None:
        """Make a request that stores something only where nothing is. Raises: BlobExists."""
        clone = not self.is_amazon(asked)
        if clone:
            self._require_free(asked, parameters["Key"])
        if not self._conditional:
            self.call(operation, asked, **parameters)
            return
        try:
            self.call(operation, asked, IfNoneMatch="*", **parameters)
        except Refused as refused:
            if not clone or refused.http_status not in (400, 501):
                raise
            self.call(operation, asked, **parameters)
            self._conditional = False
            self._warn(f"refuses conditional writes. {refused.detail}")
        else:
            if clone and not self._probed and "Body" in parameters and len(parameters["Body"]) <= PROBE_BYTES:
                self._probe(operation, asked, parameters)

    def absence(self, asked: Asked, refused: Refused) -> StoreError:
        """What an answer 404 without a reason means: no such key, or no bucket at all."""
        if not self._seen:
            try:
                self.call("head_bucket", asked)
            except Refused as about_bucket:
                if about_bucket.code == "404":
                    return no_bucket(asked, about_bucket.detail)
                if about_bucket.code != "403":
                    raise
                self._seen = True  # S3 answers 404 for a bucket that is not there, whoever asks
        return absent(asked, refused.detail)

    def _made_client(self, asked: Asked) -> Any:
        with self._making:
            if self._client is None:
                try:
                    client = new_client(self._settings, self._endpoint, self._connections)
                except (BotoCoreError, ClientError, ValueError) as error:
                    raise explained(error, asked) from None
                self._amazon = is_amazon(client)
                self._client = client
            return self._client

    def _require_free(self, asked: Asked, name: str) -> None:
        try:
            self.call("head_object", asked, Key=name)
        except BlobNotFound:
            return
        except Refused:
            return  # 404, or a reason that the write itself will hear in words
        raise BlobExists(f"{asked.url} exists already", "It was there before the write began.")

    def _probe(self, operation: str, asked: Asked, parameters: dict[str, Any]) -> None:
        self._probed = True
        try:
            self.call(operation, asked, IfNoneMatch="*", **parameters)
        except StoreError:
            return
        self._warn("ignores the condition of conditional writes.")

    def _warn(self, what: str) -> None:
        LOG.warning(
            f"two writers could overwrite each other in the bucket {self.name}",
            f"The S3 service {what} A key is looked for before it is created, and another writer may come between.",
            "Archive into one prefix from one server only, or use a service that decides conditional writes.",
        )
