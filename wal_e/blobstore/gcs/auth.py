"""Google's application default credentials: where they are looked for, and how they get their tokens.

In this order: the file that ``GOOGLE_APPLICATION_CREDENTIALS`` names, gcloud's file, the metadata server. The order is
https://cloud.google.com/docs/authentication/application-default-credentials. The library's own search does
the same but runs ``gcloud`` for the name of a project, which is of no use here, and takes a second of every segment.
"""

from __future__ import annotations

import os
import warnings

import google.auth
from google.auth import exceptions as auth
from google.auth.credentials import CredentialsWithUniverseDomain, with_scopes_if_required
from google.auth.transport.requests import Request

from wal_e.blobstore.gcs.errors import TRANSIENT, read_refusal, refused, unreached
from wal_e.log import hide

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    import requests

    from wal_e.blobstore.gcs.errors import Purpose

SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)
_DETECTION_S = 3.0
_PRODUCT_NAME = "/sys/class/dmi/id/product_name"


class TokenRequest:
    """How the library asks for tokens.

    Trouble that may pass is raised as our own error at once: the library would wait in silence and ask again.
    """

    def __init__(self, session: requests.Session, timeouts: tuple[float, float], purpose: Purpose) -> None:
        self._request = Request(session)
        self._timeouts = timeouts
        self._purpose = purpose

    def __call__(self, url: str, method: str = "GET", body: bytes | None = None, headers: Any = None, timeout: object = None, **others: Any) -> Any:  # noqa: ARG002  # ours count, not those of the library
        """Make one request within our limits of time. Raises: StoreUnavailable, StoreMisconfigured."""
        try:
            response = self._request(url, method, body, headers, self._timeouts, **others)
        except auth.TransportError as error:
            raise unreached(error, self._purpose) from None
        if response.status in TRANSIENT:
            raise refused(read_refusal(response.status, response.data, response.headers), self._purpose)
        return response

    def __deepcopy__(self, memo: object) -> TokenRequest:
        """Refuse to be copied: with a copy, the library would start a thread to look up which regions are near."""
        raise TypeError("not to be copied")

    def detect(self, url: str, method: str = "GET", headers: Any = None, **_: Any) -> Any:
        """Ask whether there is a metadata server, once. Raises: StoreUnavailable, DefaultCredentialsError."""
        try:
            return self._request(url, method, None, headers, (min(_DETECTION_S, self._timeouts[0]), self._timeouts[1]))
        except auth.TransportError as error:
            if not _should_have_metadata():
                raise auth.DefaultCredentialsError("There is no file with credentials, and no metadata server answers.") from None
            raise unreached(error, self._purpose) from None


def found(tokens: TokenRequest) -> Any:
    """Look for credentials, and return the library's object for them.

    Raises: DefaultCredentialsError when there are none or they cannot be used, StoreUnavailable.
    """
    from google.auth import _cloud_sdk

    own = _cloud_sdk.get_application_default_credentials_path()
    path = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS") or (own if os.path.isfile(own) else "")
    if not path:
        detect: Any = tokens.detect
        credentials, _ = google.auth.default(scopes=SCOPES, request=detect)
        if isinstance(credentials, CredentialsWithUniverseDomain):
            credentials = credentials.with_universe_domain("googleapis.com")  # else the metadata server is asked, again and again in silence
        return credentials
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the file could be somebody else's: it is the user's own choice
            credentials, _ = google.auth.load_credentials_from_file(path, request=tokens)
            credentials = with_scopes_if_required(credentials, SCOPES)  # with scopes given before, a project's name would be asked for
    except (OSError, ValueError, AttributeError) as error:  # the last: JSON, but no object
        raise auth.DefaultCredentialsError(f"{path} cannot be used: {error}") from None
    for name in ("client_secret", "refresh_token"):
        hide(getattr(credentials, name, None) or "")
    return credentials


def _should_have_metadata() -> bool:
    """Whether this is a machine at Google, so that silence of the metadata server is but a moment's."""
    if os.environ.get("GCE_METADATA_HOST"):
        return True
    try:
        with open(_PRODUCT_NAME) as product:
            return product.read().startswith("Google")
    except (OSError, ValueError):
        return False
