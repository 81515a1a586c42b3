"""A real Swift for the tests of a session, and stores on it: a new container each time."""

import atexit
import contextlib
import functools
import itertools
import tempfile
from pathlib import Path

from servers import swift
from swiftclient import client

from wal_e.blobstore.registry import open_store
from wal_e.settings import Settings

_numbers = itertools.count(1)
_servers = contextlib.ExitStack()
atexit.register(_servers.close)


@functools.cache
def swift_server():
    """The endpoint of the one server; it is started when the first test asks for it."""
    directory = _servers.enter_context(tempfile.TemporaryDirectory(prefix="wal-e-swift-"))
    return _servers.enter_context(swift.running(Path(directory)))


@functools.cache
def owner():
    """Address of the account, and a token of the user who may do everything."""
    endpoint = swift_server()
    return client.get_auth(endpoint.auth_url, endpoint.user, endpoint.key)


def swift_container(**headers):
    """Make a container, and return its name."""
    name = f"backups-{next(_numbers)}"
    client.put_container(*owner(), name, headers=headers)
    return name


def swift_settings(prefix, **changes):
    """The settings of a store at a prefix, for the user who may do everything; ``changes`` are variables, None to leave one out."""
    endpoint = swift_server()
    environ = {
        "WALE_SWIFT_PREFIX": prefix,
        "SWIFT_AUTHURL": endpoint.auth_url,
        "SWIFT_AUTH_VERSION": "1",
        "SWIFT_USER": endpoint.user,
        "SWIFT_PASSWORD": endpoint.key,
        **changes,
    }
    return Settings({name: value for name, value in environ.items() if value is not None})


def swift_store(tmp_path, monkeypatch):
    """A store below a path in a container of its own."""
    return open_store(swift_settings(f"swift://{swift_container()}/some/path"))
