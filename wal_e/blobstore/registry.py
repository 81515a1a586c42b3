"""From a store URL to a store. Each store's module is imported when its scheme is asked for."""

from __future__ import annotations

from wal_e.blobstore.url import parse_store_url
from wal_e.errors import ConfigurationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from wal_e.blobstore.base import BlobStore

    T = TypeVar("T")

_EXTRAS = {"gs": "google", "s3": "aws", "swift": "swift", "wabs": "azure"}


def call_directly(blocking: Callable[[], T]) -> T:
    """Run a blocking call here and now, for a program without an event loop."""
    return blocking()


def open_store(url: str, *, offload: Callable[[Callable[[], None]], None] = call_directly) -> BlobStore:
    """Open the store that the URL names; ``offload`` runs a blocking call off the event loop.

    Raises: ConfigurationError, StoreMisconfigured, StoreForbidden, StoreUnavailable.
    """
    address = parse_store_url(url)
    if address.scheme == "file":
        from wal_e.blobstore.file import FileStore

        return FileStore(address.path, offload)
    raise ConfigurationError(
        f"this version archives to file:// only, not yet to {address.scheme}://",
        f'The scheme is known; its store comes with the extra, pip install "wal-e[{_EXTRAS[address.scheme]}]", from the release that adds it.',
        "Until then, use a prefix like file://localhost/var/backups/pg.",
    )
