"""Requests on one Swift container: a pool of connections, the token, and every error translated.

A connection of swiftclient serves one request at a time, so there is one for each request in flight. A request that Swift
answers with 401 is made once more with a new token; nothing else is tried again here.
"""

from __future__ import annotations

from hashlib import md5
from io import BytesIO

from wal_e.blobstore.swift.errors import TROUBLE, Doing, answer_of, no_container, refusal, trouble
from wal_e.blobstore.swift.sdk import client
from wal_e.errors import BlobNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any, TypeVar

    from wal_e.blobstore.swift.auth import Account, SignIn

    T = TypeVar("T")
    Headers = Mapping[str, str]
    Entry = Mapping[str, Any]

CHUNK_BYTES = 256 * 1024
PAGE = 10_000  # the most that a listing gives at once: container_listing_limit in /info, unless the operator changed it
_REUSABLE = (404, 412, 416)


class Body:
    """The bytes of an answer, as they come; when closed before their end, the connection is thrown away."""

    def __init__(self, container: Container, line: Line, body: client._ObjectBody, doing: Doing) -> None:
        self._container = container
        self._line: Line | None = line
        self._raw = body.resp.raw
        self._doing = doing

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._line is None:
            raise StopIteration
        try:
            chunk: bytes = self._raw.read1(CHUNK_BYTES)
        except TROUBLE as error:
            self.close()
            raise trouble(error, self._doing, 0) from None
        if not chunk:
            self._container.give_back(self._line)
            self._line = None
            raise StopIteration
        return chunk

    def close(self) -> None:
        """Give the connection up, unless the body was read to its end."""
        if self._line is not None:
            self._line.close()
            self._line = None


class Line:
    """One connection to the account, and how many answers came over it."""

    def __init__(self, account: Account, timeouts_s: tuple[float, float]) -> None:
        self.account = account
        self.http = client.http_connection(account.url, timeout=timeouts_s)
        self.answers = 0

    def close(self) -> None:
        """Close it, with whatever is still to be read."""
        self.http[1].close()


class Container:
    """One container. ``url`` in each method is how messages name what is asked for."""

    def __init__(self, name: str, sign_in: SignIn, timeouts_s: tuple[float, float], connections: int) -> None:
        self.name = name
        self.connections = connections
        self._sign_in = sign_in
        self._timeouts_s = timeouts_s
        self._idle: list[Line] = []
        self._seen = False
        #: announcements of ours that could not be removed, see claims.py
        self.abandoned: set[str] = set()

    def head(self, name: str, url: str) -> Headers:
        """Return the headers of an object. Raises: BlobNotFound."""
        return self._ask(Doing("read", url), client.head_object, name)

    def newest(self, name: str, url: str) -> Headers:
        """Return the headers of an object, of the newest of its copies. Raises: BlobNotFound."""
        return self._ask(Doing("read", url), client.head_object, name, headers={"X-Newest": "true"})

    def get(self, name: str, url: str, headers: Headers) -> tuple[Headers, Body]:
        """Ask for an object. Raises: BlobNotFound."""
        doing = Doing("read", url)
        try:
            (answered, body), line = self._exchange(doing, client.get_object, self.name, name, headers=headers, resp_chunk_size=CHUNK_BYTES)
        except BlobNotFound:
            self._require_container(doing)
            raise
        self._seen = True
        return answered, Body(self, line, body, doing)

    def put(self, name: str, url: str, data: bytes, headers: Headers, query: str | None = None) -> str:
        """Store an object, and return its MD5 in hexadecimal; Swift compares it with what arrived.

        Raises: BlobExists when the headers set a condition.
        """
        digest = md5(data, usedforsecurity=False).hexdigest()
        checked = headers if query else {**headers, "ETag": digest}  # the ETag of a manifest is not that of its text
        doing = Doing("write", url)

        def put_object(*arguments: str, **options: object) -> None:
            # As a stream, which goes out in small pieces: bytes would have to be sent within one timeout. Closed, for an idle connection
            # remembers its last request.
            with BytesIO(data) as body:
                client.put_object(*arguments, contents=body if data else b"", content_length=len(data), **options)

        try:
            self._ask(doing, put_object, name, headers=checked, query_string=query)
        except BlobNotFound as error:
            raise no_container(self.name, error.detail) from None
        self._seen = True
        return digest

    def delete(self, name: str, url: str) -> None:
        """Delete an object. Raises: BlobNotFound."""
        self._ask(Doing("delete", url), client.delete_object, name)

    def page(self, prefix: str, url: str, marker: str = "", limit: int = PAGE) -> list[Entry]:
        """Return the objects after the marker whose name starts with the prefix, in byte order of name; none after the last."""
        doing = Doing("list", url)
        try:
            (_, entries), line = self._exchange(doing, client.get_container, self.name, marker=marker, limit=limit, prefix=prefix)
        except BlobNotFound as error:
            raise no_container(self.name, error.detail) from None
        self.give_back(line)
        self._seen = True
        return list(entries)

    def objects(self, prefix: str, url: str) -> Iterator[Entry]:
        """Yield all objects whose name starts with the prefix, in byte order of name."""
        marker = ""
        while entries := self.page(prefix, url, marker):
            yield from entries
            marker = entries[-1]["name"]

    def give_back(self, line: Line) -> None:
        """Keep a connection for the next request, if it can be used and is not one too many."""
        line.answers += 1
        if len(self._idle) < self.connections:
            self._idle.append(line)
        else:
            line.close()

    def _ask(self, doing: Doing, function: Callable[..., T], name: str, **options: object) -> T:
        """Make a request for an object whose answer has no body to be read."""
        try:
            result, line = self._exchange(doing, function, self.name, name, **options)
        except BlobNotFound:
            self._require_container(doing)
            raise
        self.give_back(line)
        self._seen = True
        return result

    def _require_container(self, doing: Doing) -> None:
        """Find out what a 404 is about: Swift says the same for an object that is missing and for its container."""
        if self._seen:
            return
        try:
            _, line = self._exchange(doing, client.head_container, self.name)
        except BlobNotFound as error:
            raise no_container(self.name, error.detail) from None
        self.give_back(line)
        self._seen = True

    def _exchange(self, doing: Doing, function: Callable[..., T], *arguments: str, **options: object) -> tuple[T, Line]:
        """Make a request; return the connection too, for there may be a body to be read."""
        account = self._sign_in.account()
        try:
            return self._attempt(account, function, arguments, options, doing)
        except client.ClientException as error:
            if error.http_status != 401:
                raise refusal(answer_of(error), doing) from None
        account = self._sign_in.renewed(account)
        try:
            return self._attempt(account, function, arguments, options, doing)
        except client.ClientException as error:
            raise refusal(answer_of(error), doing) from None

    def _attempt(self, account: Account, function: Callable[..., T], arguments: tuple[str, ...], options: dict[str, object], doing: Doing) -> tuple[T, Line]:
        line = self._line(account)
        usable = False
        try:
            result = function(account.url, account.token, *arguments, http_conn=line.http, **options)
            usable = True
            return result, line
        except client.ClientException as error:
            if error.http_status in _REUSABLE:
                usable = True
                self.give_back(line)
            raise
        except TROUBLE as error:
            raise trouble(error, doing, line.answers) from None
        finally:
            if not usable:
                line.close()

    def _line(self, account: Account) -> Line:
        while self._idle:
            try:
                line = self._idle.pop()
            except IndexError:  # another thread took the last one
                break
            if line.account == account:
                return line
            line.close()
        return Line(account, self._timeouts_s)
