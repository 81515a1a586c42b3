"""Azure stores for tests: one Azurite for the whole session, a new container for each store."""

import atexit
import contextlib
import functools
import itertools
import tempfile
from pathlib import Path

from azure.storage.blob import ContainerClient
from servers import azurite

from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings

_numbers = itertools.count()
_session = contextlib.ExitStack()
atexit.register(_session.close)


@functools.cache
def azure_server():
    """The session's Azurite, started when first asked for."""
    directory = _session.enter_context(tempfile.TemporaryDirectory(prefix="wal-e-azurite-"))
    return _session.enter_context(azurite.running(Path(directory)))


def azure_container():
    """The library's own client for a container that is new."""
    client = ContainerClient.from_connection_string(azure_server().connection_string, f"test-{next(_numbers)}")
    client.create_container()
    return client


def azure_settings(prefix, **more):
    return Settings({"WALE_WABS_PREFIX": prefix, "AZURE_STORAGE_CONNECTION_STRING": azure_server().connection_string, **more})


def azure_store(tmp_path, monkeypatch):
    return open_store(azure_settings(f"wabs://{azure_container().container_name}/pg/main"))
