"""From a store URL to a store. Each vendor's module is imported when its scheme is asked for."""

from __future__ import annotations

import sys

from wal_e.blobstore.url import parse_store_url
from wal_e.errors import ConfigurationError
from wal_e.retry import Effort

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from wal_e.blobstore.base import BlobStore
    from wal_e.blobstore.service import Service
    from wal_e.blobstore.url import StoreUrl
    from wal_e.settings import Settings

    T = TypeVar("T")

EXTRAS = {"gs": "google", "s3": "aws", "swift": "swift", "wabs": "azure"}
PARTS_IN_FLIGHT = 8
READERS = 8  # at once, where small objects are read together
LIBRARIES = ("azure", "botocore", "google", "keystoneauth", "swiftclient", "urllib3")


def call_directly(blocking: Callable[[], T]) -> T:
    """Run a blocking call here and now, for a program without an event loop."""
    return blocking()


def open_store(settings: Settings, *, lanes: int = 1, offload: Callable[[Callable[[], None]], None] = call_directly, effort: Effort | None = None) -> BlobStore:
    """Open the store that the settings' prefix names, for work in so many lanes; it tries again after trouble that may pass.

    ``offload`` runs a blocking call off the event loop. ``effort`` is what the settings say, if none is given.

    Raises: ConfigurationError, StoreMisconfigured, StoreForbidden, StoreUnavailable.
    """
    address = parse_store_url(settings.prefix)
    effort = effort or Effort.of(settings)
    if address.scheme == "file":
        from wal_e.blobstore.file import FileStore
        from wal_e.blobstore.wrappers import Retrying

        return Retrying(FileStore(address.path, offload), effort)
    from wal_e.blobstore.objects import ObjectStore

    parts_at_once = max(1, PARTS_IN_FLIGHT // (2 * lanes))
    service = _service(address, settings, max(READERS, lanes * (parts_at_once + 1)))
    _silence_libraries()
    return ObjectStore(service, effort, parts_at_once)


def _service(address: StoreUrl, settings: Settings, connections: int) -> Service:
    """Open the service of a scheme with a pool of so many connections."""
    try:
        if address.scheme == "s3":
            from wal_e.blobstore.s3.service import S3Service

            return S3Service(address, settings, connections)
        if address.scheme == "gs":
            from wal_e.blobstore.gcs.service import GcsService

            return GcsService(address, settings, connections)
        if address.scheme == "wabs":
            from wal_e.blobstore.azure.service import AzureService

            return AzureService(address, settings, connections)
        from wal_e.blobstore.swift.service import SwiftService

        return SwiftService(address, settings, connections)
    except ImportError as error:
        extra = EXTRAS[address.scheme]
        raise ConfigurationError(
            f"{address.scheme}:// needs a library that is not installed",
            f"Python says: {error}.",
            f'Install it beside wal-e: {sys.executable} -m pip install "wal-e[{extra}]"',
        ) from None


def _silence_libraries() -> None:
    """Keep the libraries' own log off stderr, where it would come without a handler; what matters of it comes as errors."""
    import logging

    for name in LIBRARIES:
        logger = logging.getLogger(name)
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())
