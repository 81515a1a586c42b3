"""Who we are for Azure, and the client that speaks for us.

Credentials come from the one of these that is set: a connection string, as the portal shows it; the
account's name with its key, or with a shared access signature (SAS); the account's name alone, and
then from ``azure-identity``, which knows managed and workload identities, its own variables and the CLI.
Nothing is asked over the network before the first request.
"""

from __future__ import annotations

import re
import sys
from base64 import b64decode
from urllib.parse import parse_qs

from azure.core.credentials import AzureSasCredential
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import ContainerClient
from requests import Session
from requests.adapters import HTTPAdapter

from wal_e.blobstore.slices import SLICE_BYTES, Slices
from wal_e.errors import ConfigurationError
from wal_e.log import hide
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from requests import PreparedRequest, Response

    from wal_e.settings import Settings

_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")  # learn.microsoft.com/azure/storage/common/storage-account-overview


class Access(NamedTuple):
    """A client for one container, and with what it signs: "key", "signature" or "identity"."""

    client: ContainerClient
    kind: str


def access(settings: Settings, container: str, connections: int) -> Access:
    """Make the client that the settings ask for, with a pool of so many connections.

    Raises: ConfigurationError.
    """
    options = {"transport": _transport(settings, connections), "retry_total": 0}
    given = settings.wabs_connection_string
    try:
        if given:
            kind, credential = _credential_within(settings, given)
            return Access(ContainerClient.from_connection_string(given, container, credential, **options), kind)
        kind, credential = _credential(settings)
        endpoint = f"https://{_account(settings)}.blob.{settings.wabs_endpoint_suffix.strip('.')}"
        return Access(ContainerClient(endpoint, container, credential, **options), kind)
    except ValueError as error:
        raise ConfigurationError(
            "the settings for Azure cannot be used",
            f"The Azure library says: {error}." if not given else "The Azure library does not understand AZURE_STORAGE_CONNECTION_STRING.",
            "Copy the connection string from the portal again, whole and without quotes." if given else "",
        ) from None


def _account(settings: Settings) -> str:
    name = settings.wabs_account_name
    if not name:
        raise ConfigurationError(
            "no Azure storage account is set",
            "Neither WABS_ACCOUNT_NAME nor AZURE_STORAGE_CONNECTION_STRING is set.",
            "Set WABS_ACCOUNT_NAME (or -a), and WABS_ACCESS_KEY or WABS_SAS_TOKEN beside it unless this machine has an identity of its own.",
        )
    if not _ACCOUNT.fullmatch(name):
        raise ConfigurationError(
            "WABS_ACCOUNT_NAME is not the name of a storage account",
            f"{name!r} is not made of 3 to 24 small letters and digits.",
            "Give the name only, without https:// and without a domain.",
        )
    return name


def _credential(settings: Settings) -> tuple[str, Any]:
    key, signature = settings.wabs_access_key, settings.wabs_sas_token
    if key and signature:
        raise _contradiction("WABS_ACCESS_KEY", "WABS_SAS_TOKEN")
    if key:
        return "key", {"account_name": _account(settings), "account_key": _key(key, "WABS_ACCESS_KEY")}
    if signature:
        return "signature", _signature(signature, "WABS_SAS_TOKEN")
    _account(settings)
    return "identity", _identity()


def _credential_within(settings: Settings, connection_string: str) -> tuple[str, Any]:
    """What a connection string holds; None leaves the key, or the emulator's, to the library."""
    name = "AZURE_STORAGE_CONNECTION_STRING"
    fields = {field.upper(): value for field, _, value in (pair.partition("=") for pair in connection_string.split(";"))}
    for other, theirs, ours in (
        ("WABS_ACCOUNT_NAME", settings.wabs_account_name, fields.get("ACCOUNTNAME")),
        ("WABS_ACCESS_KEY", settings.wabs_access_key, fields.get("ACCOUNTKEY")),
        ("WABS_SAS_TOKEN", settings.wabs_sas_token.removeprefix("?"), fields.get("SHAREDACCESSSIGNATURE", "").removeprefix("?")),
    ):
        if theirs and theirs != ours:
            raise _contradiction(name, other)
    if "ACCOUNTKEY" in fields:
        _key(fields["ACCOUNTKEY"], name)
        return "key", None
    if fields.get("USEDEVELOPMENTSTORAGE") == "true":
        return "key", None
    if "SHAREDACCESSSIGNATURE" in fields:
        return "signature", _signature(fields["SHAREDACCESSSIGNATURE"], name)
    return "identity", _identity()


def _key(key: str, variable: str) -> str:
    hide(key)
    try:
        if b64decode(key, validate=True):
            return key
    except ValueError:
        pass
    raise ConfigurationError(
        f"the key in {variable} is not the key of a storage account",
        "It is not Base64: characters are missing or do not belong to it.",
        "Copy one of the account's two keys again, whole and without quotes or spaces.",
    )


def _signature(token: str, variable: str) -> AzureSasCredential:
    token = token.strip().removeprefix("?")
    signature = parse_qs(token).get("sig", [""])[0]
    if not signature:
        raise ConfigurationError(
            f"the token in {variable} is not a shared access signature",
            "It has no part named sig.",
            "Copy the whole token, which looks like sv=...&se=...&sig=..., and not its URL.",
        )
    hide(signature)
    hide(token.partition("sig=")[2].partition("&")[0])
    return AzureSasCredential(token)


def _identity() -> Any:
    try:
        from azure.identity import DefaultAzureCredential
    except ImportError:
        raise ConfigurationError(
            "there are no credentials for Azure",
            "No WABS_ACCESS_KEY, WABS_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING is set, and the library that finds a machine's identity is not installed.",
            f'Set one of them, or install the library beside wal-e: {sys.executable} -m pip install "wal-e[azure-identity]"',
        ) from None
    return DefaultAzureCredential()


def _contradiction(*names: str) -> ConfigurationError:
    return ConfigurationError(
        "two settings for Azure contradict each other",
        "These are both set and do not say the same: " + ", ".join(names) + ".",
        "Keep one of them, so that it is certain with what wal-e signs.",
    )


def _transport(settings: Settings, connections: int) -> RequestsTransport:
    session = Session()
    session.auth = _unchanged
    adapter = _Adapter(pool_maxsize=connections)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return RequestsTransport(session=session, connection_timeout=settings.connect_timeout_s, read_timeout=settings.read_timeout_s)


def _unchanged(request: PreparedRequest) -> PreparedRequest:
    """Keep requests from replacing our signature by what ~/.netrc has for the host."""
    return request


class _Adapter(HTTPAdapter):
    """Sends large bodies in slices, each within the socket's timeout."""

    def send(self, request: PreparedRequest, *args: Any, **options: Any) -> Response:
        if isinstance(request.body, bytes) and len(request.body) > SLICE_BYTES:
            request.body = Slices(request.body)  # type: ignore[assignment]  # urllib3 takes any iterable of bytes
        return super().send(request, *args, **options)
