"""Addresses: the URL that names a store, and the keys below it.

A store URL is ``scheme://host/path``, as WAL-E writes it, and is taken literally: nothing is
unquoted. WAL-E ignored the host of a ``file://`` URL, so ``file://backups/pg`` silently meant
``/pg``; here such a host is an error. Credentials do not belong in the URL, and an URL that may
hold some is shown without them.
"""

from __future__ import annotations

from wal_e.errors import ConfigurationError
from wal_e.record import NamedTuple

SCHEMES = ("file", "gs", "s3", "swift", "wabs")

_EXAMPLE = "Write it like file://localhost/var/backups/pg."


class StoreUrl(NamedTuple):
    """A store URL in parts; path is "" or starts with a slash and does not end with one."""

    scheme: str
    host: str
    path: str


def parse_store_url(url: str) -> StoreUrl:
    """Split a store URL; a file URL has the host ``localhost`` or none, and an absolute path.

    Raises: ConfigurationError.
    """
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in SCHEMES:
        raise _not_a_store_url(url)
    host, slash, path = rest.partition("/")
    if "@" in host or ":" in host:
        raise ConfigurationError(
            "the storage prefix holds more than a name before its path",
            f"Between {scheme}:// and the next slash stands a user, a password or a port.",
            "Leave only the name there. Credentials go into the store's own environment variables.",
        )
    if scheme == "file":
        return _file_url(url, host, slash + path)
    if not host:
        raise ConfigurationError("the storage prefix names no bucket", f"{shown(url)!r} has nothing between {scheme}:// and the path.")
    return StoreUrl(scheme, host, (slash + path).rstrip("/"))


def shown(url: str) -> str:
    """The URL as it may appear in a message: all that may be a user and password is left out."""
    head, at, tail = url.rpartition("@")
    scheme, separator, _ = head.partition("://")
    return f"{scheme}://...@{tail}" if at and separator else f"...@{tail}" if at else url


def checked_key(key: str) -> str:
    """Return the key, if it is one: parts joined by ``/``, none empty, none starting with a dot.

    Raises: ValueError, for only a mistake in the program makes such a key.
    """
    if any(not part or part.startswith(".") for part in key.split("/")) or "\0" in key:
        raise ValueError(f"not a key: {key!r}")
    return key


def _not_a_store_url(url: str) -> ConfigurationError:
    known = ", ".join(scheme + "://" for scheme in SCHEMES)
    if not url:
        return ConfigurationError("the storage prefix is empty", f"It starts with one of {known}.", _EXAMPLE)
    path = url.removeprefix("file:")
    hint = f"For the directory {shown(path)} write file://localhost{shown(path)}." if path.startswith("/") else _EXAMPLE
    return ConfigurationError("the storage prefix is not the URL of a store", f"{shown(url)!r} does not start with one of {known}.", hint)


def _file_url(url: str, host: str, path: str) -> StoreUrl:
    if host.lower() not in ("", "localhost"):
        raise ConfigurationError(
            "the storage prefix names a host, and files are always local",
            f"In {shown(url)!r} the word after file:// is read as a host, not as a directory.",
            f"If you mean the directory {shown(f'/{host}{path}')}, write {shown(f'file://localhost/{host}{path}')}.",
        )
    if not path:
        raise ConfigurationError("the storage prefix names no directory", f"{shown(url)!r} has no path, which file:// needs and which is absolute.", _EXAMPLE)
    return StoreUrl("file", host.lower(), path.rstrip("/") or "/")
