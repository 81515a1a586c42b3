"""A long blob on its way to Azure: blocks, and the list that makes a blob of them.

Azure has no "abort". Blocks that were never committed are invisible and vanish a week after the last of them came
(learn.microsoft.com/rest/api/storageservices/put-block); until then they take up room, and the only call that removes them
makes a blob visible. But a block that is sent again under its id replaces the one before: so an aborted or abandoned upload
is shrunk to one byte a block. The ids hold the upload's own random name, no upload can touch another's.
Before blocks are committed, their sizes are compared with what was sent, so that a shrunk upload does not become a blob.
"""

from __future__ import annotations

import os

from azure.core import MatchConditions
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobBlock, ContentSettings

from wal_e.blobstore.azure.errors import CREATE, DELETE, READ, WRITE, code_of
from wal_e.blobstore.service import CREATE as CREATING
from wal_e.blobstore.service import Upload, UploadLost, content_type
from wal_e.errors import BlobExists, BlobNotFound, StoreError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wal_e.blobstore.azure.service import AzureService
    from wal_e.blobstore.service import Part, Whole

BLOCK_MARK = "wal-e-"


class BlockUpload(Upload):
    """Blocks of one blob, in the order of their numbers."""

    def __init__(self, service: AzureService, key: str, verb: str) -> None:
        self._service = service
        self._key = key
        self._verb = CREATE if verb == CREATING else WRITE
        self._token = os.urandom(9).hex()
        self._blob = service.blob(key)
        self._sizes: dict[int, int] = {}
        self._commits = 0

    def send(self, part: Part) -> None:
        self._sizes[part.number] = len(part.data)
        try:
            self._blob.stage_block(self._id(part.number), part.data, len(part.data), validate_content=True)
        except AzureError as error:
            raise self._service.explained(error, WRITE, self._key) from None

    def complete(self, whole: Whole) -> None:
        if not self._commits:
            self._require_blocks()
        self._commits += 1
        try:
            self._commit(whole)
        except StoreError as error:
            if error.transient or self._commits == 1 or not self._is_stored():
                raise

    def abort(self) -> None:
        """Shrink what was sent; not after a commit without an answer, which might still come true."""
        if self._commits:
            return
        try:
            self._service.shrink(self._blob.blob_name, [self._id(number) for number, size in self._sizes.items() if size > 1])
        except AzureError as error:
            raise self._service.explained(error, DELETE, self._key) from None

    def _id(self, number: int) -> str:
        return f"{BLOCK_MARK}{self._token}-{number:05d}"

    def _commit(self, whole: Whole) -> None:
        try:
            self._blob.commit_block_list(
                [BlobBlock(self._id(number)) for number in range(whole.parts)],
                ContentSettings(content_type=content_type(self._key)),
                {"crc32c": f"{whole.crc32c:08x}", "upload": self._token},
                validate_content=True,
                match_condition=MatchConditions.IfMissing if self._verb == CREATE else None,
            )
        except AzureError as error:
            raise self._lost() if code_of(error) == "InvalidBlockList" else self._service.explained(error, self._verb, self._key) from None

    def _require_blocks(self) -> None:
        """Raise unless all blocks are there as they were sent: another writer's commit, or a clean-up, takes them away."""
        try:
            there = self._service.uncommitted(self._blob.blob_name)
        except AzureError as error:
            raise self._service.explained(error, READ, self._key) from None
        if any(there.get(self._id(number)) != size for number, size in self._sizes.items() if size > 1):
            raise self._lost()

    def _lost(self) -> StoreError:
        url = f"{self._service.url}/{self._key}"
        if self._verb == CREATE and self._is_there():
            return BlobExists(f"{url} exists already")
        return UploadLost(f"the parts of {url} are gone from Azure", "Another upload of the same key was finished, or a clean-up removed them.")

    def _is_there(self) -> bool:
        try:
            self._service.properties(self._key)
        except BlobNotFound:
            return False
        return True

    def _is_stored(self) -> bool:
        """Whether an earlier commit, whose answer was lost, took effect."""
        try:
            return bool(self._service.properties(self._key).metadata.get("upload") == self._token)
        except BlobNotFound:
            return False
