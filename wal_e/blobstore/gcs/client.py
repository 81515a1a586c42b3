"""The client of google-cloud-storage, and its session as this program wants it.

Nothing is read or asked before the first request. ``STORAGE_EMULATOR_HOST`` and ``API_ENDPOINT_OVERRIDE`` name another
server, as in every program with this library; with the former no credentials are sent. The library's own session would
repeat requests in silence, wait as long as it likes for a token, and hand a socket megabytes at once.
"""

from __future__ import annotations

import os
from threading import Lock

import requests
from google.api_core.client_info import ClientInfo
from google.api_core.exceptions import from_http_response
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import AuthorizedSession
from google.cloud import storage
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from wal_e import __version__
from wal_e.blobstore.gcs.auth import TokenRequest, found
from wal_e.blobstore.gcs.errors import Purpose, no_bucket, translated, unreached
from wal_e.blobstore.slices import SLICE_BYTES, Slices
from wal_e.log import hide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection
    from typing import Any

CHUNK_BYTES = 512 * 1024


class GcsClient:
    """The library's client for one bucket, made when it is first needed; thread-safe."""

    def __init__(self, name: str, url: str, timeouts: tuple[float, float], connections: int) -> None:
        self._name = name
        self._purpose = Purpose("use", url)
        self._timeouts = timeouts
        self._connections = connections
        self._lock = Lock()
        self._client: Any = None

    def get(self) -> Any:
        """The client."""
        with self._lock:
            if self._client is None:
                self._client = self._opened()
            return self._client

    def bucket(self) -> Any:
        """The bucket, without asking whether it is there. Raises: StoreMisconfigured."""
        client = self.get()
        try:
            return client.bucket(self._name)
        except ValueError as error:
            raise no_bucket(error, self._purpose) from None

    def media(self, blob: Any, wanted: str, version: str | None) -> requests.Response:
        """Ask for an object's bytes, or a range of them; they are not read yet.

        The library can fill a file with them, or ask anew for every few megabytes, but not give them as they come.
        """
        # gzip is asked for so that nothing is unpacked on the way: the bytes come as they are stored.
        headers = {"Accept-Encoding": "gzip"} | ({"Range": wanted} if wanted else {})
        params = {"alt": "media"} | ({} if version is None else {"generation": version})
        return self.request("GET", f"{self.get().api_endpoint}/download/storage/v1{blob.path}", (200, 206, 416), headers=headers, params=params, stream=True)

    def request(self, method: str, url: str, good: Collection[int], **others: Any) -> requests.Response:
        """Make a request that the library has no call for. Raises: GoogleAPICallError when the status is not good."""
        answer: requests.Response = self.get()._http.request(method, url, **others)
        if answer.status_code not in good:
            raise from_http_response(answer)
        return answer

    def _opened(self) -> Any:
        # Otherwise the library starts a thread that asks about the bucket, for traces that nobody has switched on.
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")
        session = requests.Session()
        _prepare(session, 1)
        tokens = TokenRequest(session, self._timeouts, self._purpose)
        with translated(self._purpose):
            credentials: Any = AnonymousCredentials() if os.environ.get("STORAGE_EMULATOR_HOST") else found(tokens)
        universe = credentials.universe_domain
        return storage.Client(
            project="none",  # only a request for buckets would name it
            credentials=credentials,
            _http=_Transport(credentials, tokens, self._timeouts, self._connections),
            client_info=ClientInfo(user_agent=f"wal-e/{__version__}"),
            client_options=None if universe == "googleapis.com" else {"universe_domain": universe},
        )


class Download:
    """An answer's body, in pieces as they come. A connection with unread bytes on it is closed, not used again."""

    def __init__(self, response: requests.Response, purpose: Purpose) -> None:
        self._response = response
        self._purpose = purpose

    def __iter__(self) -> Download:
        return self

    def __next__(self) -> bytes:
        try:
            piece: bytes = self._response.raw.read1(CHUNK_BYTES, decode_content=False)
        except HTTPError as error:
            raise unreached(error, self._purpose) from None
        if not piece:
            raise StopIteration
        return piece

    def close(self) -> None:
        """Give the connection back, or close it."""
        self._response.close()


class _Transport:
    """Requests with a token, each within our limits of time; one thread gets the token for all."""

    is_mtls = False

    def __init__(self, credentials: Any, tokens: TokenRequest, timeouts: tuple[float, float], connections: int) -> None:
        self._session = AuthorizedSession(credentials, auth_request=tokens)
        _prepare(self._session, connections)
        self._tokens = tokens
        self._timeouts = timeouts
        self._lock = Lock()

    def request(self, method: str, url: str, data: Any = None, headers: Any = None, **others: Any) -> Any:
        """Make one request, which is not repeated but for a token that has ended."""
        with self._lock:
            if not self._session.credentials.valid:
                self._session.credentials.refresh(self._tokens)
            hide(self._session.credentials.token or "")
        if isinstance(data, bytes) and len(data) > SLICE_BYTES:
            data = Slices(data)
        return self._session.request(method, url, data, headers, **(others | {"timeout": self._timeouts, "allow_redirects": False}))


def _prepare(session: requests.Session, connections: int) -> None:
    """Leave out retries, and passwords from ``~/.netrc``, which would displace the token."""
    session.auth = _unchanged
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(pool_connections=2, pool_maxsize=connections, max_retries=0))


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
