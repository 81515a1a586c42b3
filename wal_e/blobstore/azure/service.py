"""Azure Blob Storage, through ``azure-storage-blob``.

A short blob is one Put Blob; a long one is blocks (Put Block) that Put Block List makes visible at once. Either decides
``create`` by ``If-None-Match: *``. Bodies go with their MD5, which the service checks; a blob's CRC32C is kept in its metadata.

What was never committed is invisible and goes away by itself, see :mod:`wal_e.blobstore.azure.blocks`.
Azure turns backslashes in names into slashes, so a key with one is refused.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from azure.core.exceptions import AzureError, HttpResponseError
from azure.core.pipeline.transport import HttpRequest
from azure.storage.blob import ContentSettings
from requests import RequestException
from urllib3.exceptions import HTTPError

from wal_e.blobstore.azure.auth import access
from wal_e.blobstore.azure.blocks import BLOCK_MARK, BlockUpload
from wal_e.blobstore.azure.errors import CREATE, DELETE, LIST, READ, WRITE, Answer, Request, code_of, explained, meaning, not_azure
from wal_e.blobstore.base import Blob, Leftover
from wal_e.blobstore.service import CREATE as CREATING
from wal_e.blobstore.service import Opened, Page, Service, content_type
from wal_e.errors import ConfigurationError, StoreError, StoreUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from azure.storage.blob import BlobClient, BlobProperties, ContainerClient

    from wal_e.blobstore.service import Upload
    from wal_e.blobstore.url import StoreUrl
    from wal_e.settings import Settings

_CHUNK_BYTES = 256 << 10
_GATHER_S = 0.05


class AzureService(Service):
    """One container, below one prefix."""

    parts_at_once = 8
    delete_batch = 256  # learn.microsoft.com/rest/api/storageservices/blob-batch

    def __init__(self, address: StoreUrl, settings: Settings, connections: int) -> None:
        path = address.path.strip("/")
        if "\\" in path:
            raise ConfigurationError("the storage prefix has a backslash", "Azure would turn it into a slash.", "Write a slash, or another name.")
        self._address = f"wabs://{address.host}{address.path}"
        self._prefix = path + "/" if path else ""
        self._access = access(settings, address.host, connections)

    @property
    def url(self) -> str:
        return self._address

    def write(self, key: str, data: bytes, crc32c: int, verb: str) -> None:
        try:
            self.blob(key).upload_blob(
                data,
                length=len(data),
                overwrite=verb != CREATING,
                validate_content=True,
                metadata={"crc32c": f"{crc32c:08x}"},
                content_settings=ContentSettings(content_type=content_type(key)),
            )
        except AzureError as error:
            raise self.explained(error, CREATE if verb == CREATING else WRITE, key) from None

    def begin(self, key: str, verb: str) -> Upload:
        return BlockUpload(self, key, verb)

    def open(self, key: str, start: int, length: int | None, version: str | None) -> Opened:
        response = self._get(key, _range(start, length), version)
        headers = response.headers
        if response.status_code == 416:
            response.internal_response.close()
            return self._past_the_end(key)
        if response.status_code not in (200, 206) or "ETag" not in headers or "Content-Length" not in headers:
            raise self._refusal(response, key)
        size = int(headers.get("Content-Range", "/" + headers["Content-Length"]).rpartition("/")[2])
        return Opened(headers["ETag"], size, _crc32c(headers.get("x-ms-meta-crc32c")), _Body(response.internal_response, self._asked(READ, key)))

    def stat(self, key: str) -> Blob:
        properties = self.properties(key)
        if properties.last_modified is None:
            raise not_azure(self._asked(READ, key))
        return Blob(key, properties.size, properties.last_modified)

    def page(self, prefix: str, following: str | None) -> Page:
        try:
            pages: Any = self._client.list_blobs(name_starts_with=self._prefix + prefix, include=["metadata"]).by_page(following)
            found = list(next(pages, ()))
        except AzureError as error:
            raise self.explained(error, LIST, prefix) from None
        except ValueError:  # the library's, of an answer that is no listing
            raise not_azure(self._asked(LIST, prefix)) from None
        blobs = [Blob(one.name[len(self._prefix) :], one.size, one.last_modified) for one in found if not _is_directory(one)]
        return Page(blobs, pages.continuation_token or None)

    def delete(self, keys: Sequence[str]) -> dict[str, StoreError]:
        names = [self._name(key) for key in keys]
        try:
            answers = list(self._client.delete_blobs(*names, raise_on_any_failure=False))
        except AzureError as error:
            raise self.explained(error, DELETE, keys[0]) from None
        if len(answers) != len(keys):
            raise StoreUnavailable(f"Azure did not say for each key below {self.url} whether it is deleted", f"{len(answers)} answers to {len(keys)}.")
        failures: dict[str, StoreError] = {}
        for key, answer in zip(keys, answers, strict=True):
            said = _answer(answer.status_code, answer.headers, answer.body())
            if said.status >= 300 and said.code != "BlobNotFound":
                failures[key] = meaning(said, self._asked(DELETE, key))
        return failures

    def leftovers(self) -> Iterator[Leftover]:
        try:
            for one in self._client.list_blobs(name_starts_with=self._prefix, include=["uncommittedblobs"]):
                size = 0 if one.size else sum(self.uncommitted(one.name).values())
                if size:
                    key = one.name[len(self._prefix) :]
                    yield Leftover(one.name, f"an unfinished upload of {self.url}/{key}", size, one.last_modified or datetime.now(UTC))
        except AzureError as error:
            raise self.explained(error, LIST, "") from None
        except ValueError:  # the library's, of an answer that is no listing
            raise not_azure(self._asked(LIST, "")) from None

    def discard(self, leftover: Leftover) -> None:
        try:
            self.shrink(leftover.address, list(self.uncommitted(leftover.address)))
        except AzureError as error:
            raise self.explained(error, DELETE, leftover.address[len(self._prefix) :]) from None

    def uncommitted(self, name: str) -> dict[str, int]:
        """Return the uncommitted blocks that hold more than nothing, by id, with their sizes in bytes; only what we made. Raises: AzureError."""
        try:
            blocks = self._client.get_blob_client(name).get_block_list("uncommitted")[1]
        except HttpResponseError as error:
            if code_of(error) == "BlobNotFound":
                return {}
            raise
        except ValueError:  # another program's ids, which the library cannot read
            return {}
        return {block.id: block.size for block in blocks if block.id.startswith(BLOCK_MARK) and block.size > 1}

    def shrink(self, name: str, ids: Sequence[str]) -> None:
        """Replace uncommitted blocks by one byte each. Raises: AzureError."""
        blob = self._client.get_blob_client(name)
        for block_id in ids:
            blob.stage_block(block_id, b"\0", 1)

    def blob(self, key: str) -> BlobClient:
        """Return the library's client for one key."""
        return self._client.get_blob_client(self._name(key))

    def properties(self, key: str) -> Any:
        """Return what a HEAD says. Raises: BlobNotFound."""
        try:
            return self.blob(key).get_blob_properties()
        except AzureError as error:
            raise self.explained(error, READ, key) from None

    def explained(self, error: AzureError | RequestException, operation: str, key: str) -> StoreError:
        """Translate what the library raised while it did something with a key."""
        return explained(error, self._asked(operation, key))

    @property
    def _client(self) -> ContainerClient:
        return self._access.client

    def _name(self, key: str) -> str:
        if "\\" in key:
            raise StoreError(f"{self.url}/{key} cannot be a name in Azure", "Azure would turn its backslash into a slash.")
        return self._prefix + key

    def _asked(self, operation: str, key: str) -> Request:
        account = str(self._client.account_name)
        return Request(operation, f"{self.url}/{key}".rstrip("/"), self._client.container_name, account, self._access.kind)

    def _get(self, key: str, wanted: dict[str, str], version: str | None) -> Any:
        """Ask for a body that streams; the library's own download collects pieces, each with a request of its own, before it gives any."""
        conditions = {"If-Match": version} if version else {}
        request = HttpRequest("GET", self.blob(key).url, {"x-ms-version": self._client.api_version, "Accept": "*/*"} | wanted | conditions)
        try:
            return self._client._pipeline.run(request, stream=True).http_response
        except AzureError as error:
            raise self.explained(error, READ, key) from None

    def _refusal(self, response: Any, key: str) -> StoreError:
        try:
            body = response.internal_response.content
        except RequestException as error:
            return self.explained(error, READ, key)
        return meaning(_answer(response.status_code, response.headers, body), self._asked(READ, key))

    def _past_the_end(self, key: str) -> Opened:
        properties = self.properties(key)
        return Opened(properties.etag, properties.size, _crc32c(properties.metadata.get("crc32c")), iter(()))


class _Body:
    """An answer's body, as it comes: a few network packets together, but nothing is kept waiting."""

    def __init__(self, response: Any, asked: Request) -> None:
        self._response = response
        self._asked = asked

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        pieces: list[bytes] = []
        wanted, until = _CHUNK_BYTES, time.monotonic() + _GATHER_S
        try:
            while wanted and (not pieces or time.monotonic() < until):
                piece = self._response.raw.read1(wanted)
                if not piece:
                    break
                pieces.append(piece)
                wanted -= len(piece)
        except (HTTPError, OSError) as error:
            self.close()
            raise explained(RequestException(error), self._asked) from None
        if not pieces:
            self.close()
            raise StopIteration
        return b"".join(pieces)

    def close(self) -> None:
        """Give the connection back, if all was read; else end it."""
        self._response.close()


def _range(start: int, length: int | None) -> dict[str, str]:
    if length is not None:
        return {"x-ms-range": f"bytes={start}-{start + length - 1}"}
    return {"x-ms-range": f"bytes={start}-"} if start else {}


def _is_directory(one: BlobProperties) -> bool:
    """Whether this is no blob but a directory, which accounts with a hierarchical namespace list too."""
    return "true" in (one.metadata.get("hdi_isfolder"), one.metadata.get("Hdi_isfolder"))


def _crc32c(text: str | None) -> int | None:
    try:
        return int(text, 16) if text else None
    except ValueError:
        return None


def _answer(status: int, headers: Any, body: bytes) -> Answer:
    """Read an error document, which names its code, its message and sometimes a detail."""
    text = body.decode("utf-8", "replace")
    code = headers.get("x-ms-error-code") or _element(text, "Code")
    return Answer(status, code, _element(text, "Message") + "\n" + _element(text, "AuthenticationErrorDetail"), headers)


def _element(text: str, name: str) -> str:
    return text.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
