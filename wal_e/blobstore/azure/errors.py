"""What Azure's answers mean in our tree of errors.

The codes are those of learn.microsoft.com/rest/api/storageservices/blob-service-error-codes and its page of
common codes. Only the first line of Azure's message is shown: the lines below may hold signatures.
"""

from __future__ import annotations

import time
from email.utils import mktime_tz, parsedate_tz
from http.client import RemoteDisconnected
from ssl import SSLCertVerificationError

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from requests import RequestException

from wal_e.errors import BlobExists, BlobFrozen, BlobNotFound, StoreError, StoreForbidden, StoreMisconfigured, StoreUnavailable
from wal_e.log import masked
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

READ, WRITE, CREATE, LIST, DELETE = "read", "write", "create", "list", "delete"

_MAX_SKEW_S = 300
_MAX_SAID = 1000
_STALE = (RemoteDisconnected, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)

_EXISTS = ("BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet", "UnauthorizedBlobOverwrite", "BlobImmutableDueToPolicy")
_UNAUTHENTIC = ("AuthenticationFailed", "InvalidAuthenticationInfo", "NoAuthenticationInformation")
_CHANGED = ("Md5Mismatch", "Crc64Mismatch", "InvalidMd5", "InvalidCrc64")
_UNREACHED = ("Max retries exceeded", "Connection aborted", "timed out")  # azure-identity keeps only the words of what it met
_FROZEN = ("BlobArchived", "BlobBeingRehydrated")

_MISCONFIGURED = {
    "ContainerNotFound": ("there is no container {container} in the Azure account {account}",
                          "Create it (az storage container create), or correct the container or the account's name."),
    "ResourceNotFound": ("there is no Azure account {account} there, or no container {container} in it",
                         "Correct the account's name, its endpoint, or the storage prefix."),
    "ContainerBeingDeleted": ("the container {container} in the Azure account {account} is being deleted",
                              "Find out who deletes it; a container of this name can be created again some time later."),
    "ContainerDisabled": ("the container {container} is disabled", "Ask the administrator of the account."),
    "AccountIsDisabled": ("the Azure account {account} is disabled", "Look at the state of the account and of its subscription in the portal."),
    "KeyBasedAuthenticationNotPermitted": ("the Azure account {account} does not accept its keys",
                                           "Allow shared key access, or unset the key: then the machine's identity is used."),
    "InvalidResourceName": ("Azure does not take the name {url}",
                            "A container has 3 to 63 small letters, digits and single hyphens. Correct the storage prefix."),
    "OutOfRangeInput": ("Azure does not take the name {url}", "Names of containers and blobs have a length. Correct the storage prefix."),
    "AccountRequiresHttps": ("the Azure account {account} wants HTTPS", "Write https into the connection string."),
}  # fmt: skip

_FORBIDDEN = {
    "AuthorizationPermissionMismatch": "Give the identity the role Storage Blob Data Contributor, or make a signature with the permissions racwdl.",
    "AuthorizationFailure": "The account's firewall does not know this network, or the signature does not allow this: look at both.",
    "AuthorizationSourceIPMismatch": "The signature is valid for other addresses than this machine's.",
    "AuthorizationProtocolMismatch": "The signature is valid for HTTPS only.",
    "AuthorizationServiceMismatch": "The signature is for another service: make one for blobs.",
    "AuthorizationResourceTypeMismatch": "The signature lacks a resource type: make one for containers and objects.",
    "InsufficientAccountPermissions": "Give the identity the role Storage Blob Data Contributor on the container.",
    "BlobImmutableDueToPolicy": "An immutability policy protects it until it ends.",
    "BlobImmutableDueToLegalHold": "A legal hold protects it; somebody set it on purpose.",
    "LeaseIdMissing": "Somebody holds a lease on it; break it (az storage blob lease break) if it is known to be forgotten.",
    "LeaseAlreadyPresent": "Somebody holds a lease on it; break it (az storage blob lease break) if it is known to be forgotten.",
    "SnapshotsPresent": "It has snapshots, which wal-e does not make; delete them first (az storage blob delete --delete-snapshots only).",
}


class Request(NamedTuple):
    """What was asked of the service: the operation, the URL of key or prefix, and where; for messages."""

    operation: str
    url: str
    container: str
    account: str
    kind: str


class Answer(NamedTuple):
    """What the service answered."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str]

    @property
    def shown(self) -> str:
        """The service's own words, for the detail of an error."""
        number = self.headers.get("x-ms-request-id")
        words = self.message.split("\n")[0].split("\r")[0].strip()
        said = f"Azure answered {self.status} {self.code}".strip() + (f": {words}" if words else "")
        return masked(said.rstrip(".") + "." + (f" Its number of the request is {number}." if number else ""))


def explained(error: AzureError | RequestException, request: Request) -> StoreError:
    """Translate what the library raised."""
    response: Any = error.response if isinstance(error, HttpResponseError) else None
    if not isinstance(error, HttpResponseError) or response is None or response.status_code < 300:
        return _unanswered(error, request)
    code = code_of(error)
    if isinstance(error, ClientAuthenticationError) and not code:
        return _no_token(error, request, response.status_code)
    return meaning(Answer(response.status_code, code, error.message, response.headers), request)


def code_of(error: AzureError) -> str:
    """Return the service's code of an error, or nothing."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def meaning(answer: Answer, request: Request) -> StoreError:
    """Translate an answer that is an error."""
    code, status, url = answer.code, answer.status, request.url
    if request.operation == CREATE and code in _EXISTS:
        return BlobExists(f"{url} exists already", answer.shown)
    if status in (408, 429) or status >= 500:
        return _busy(answer, request)
    if code == "BlobNotFound":
        return BlobNotFound(f"there is no {url}", answer.shown)
    if code in _FROZEN:
        return BlobFrozen(
            f"{url} is in Azure's archive tier",
            answer.shown,
            "Bring it back first: az storage blob set-tier --tier Hot, then wait, up to 15 hours; with --rehydrate-priority High often less than one.",
        )
    if code in _CHANGED:
        return StoreUnavailable(f"{url} arrived changed at Azure", f"{answer.shown} What was sent was changed on the way.")
    if code in _UNAUTHENTIC or "failed to authenticate" in answer.message:
        return _unauthentic(answer, request)
    if code in _MISCONFIGURED:
        message, hint = _MISCONFIGURED[code]
        return StoreMisconfigured(message.format(**request._asdict()), answer.shown, hint)
    if code in _FORBIDDEN or status in (401, 403):
        return StoreForbidden(f"Azure does not allow to {request.operation} {url}", answer.shown, _FORBIDDEN.get(code, ""))
    if status < 300:
        return not_azure(request)
    if status == 404:
        return StoreError(f"{url} was not found, but not by Azure", f"{answer.shown} Azure would say what it did not find.", "Look for a proxy in between.")
    if request.operation == READ and code in ("ConditionNotMet", "TargetConditionNotMet"):
        return StoreError(f"{url} was replaced while it was read", answer.shown)
    return StoreError(f"Azure could not {request.operation} {url}", answer.shown)


def not_azure(request: Request) -> StoreError:
    """The error that means an answer in another language than the service's."""
    return StoreError(
        f"Azure could not {request.operation} {request.url}",
        "The answer is none of Azure's.",
        "Check the endpoint, if one is set, and for a proxy that answers in its place.",
    )


def _busy(answer: Answer, request: Request) -> StoreUnavailable:
    error = StoreUnavailable(f"Azure cannot {request.operation} {request.url} at the moment", answer.shown)
    after = answer.headers.get("Retry-After", "")
    if answer.status in (429, 503) and after.isdecimal():
        error.wait_s = float(after)
    return error


def _unauthentic(answer: Answer, request: Request) -> StoreMisconfigured:
    """Find out what is wrong with a signature: the clock, its time, or the secret."""
    message = f"Azure does not accept the credentials for the account {request.account}"
    date = parsedate_tz(answer.headers.get("Date"))
    skew_s = time.time() - mktime_tz(date) if date else 0.0
    text = answer.message.lower()
    if abs(skew_s) > _MAX_SKEW_S:
        direction = "ahead of" if skew_s > 0 else "behind"
        return StoreMisconfigured(
            message, f"This machine's clock is {abs(skew_s):.0f} seconds {direction} Azure's. {answer.shown}", "Set the clock; have NTP keep it."
        )
    if request.kind == "signature":
        over = any(word in text for word in ("expiry", "expired", "time frame"))
        why = "The shared access signature has expired or is not valid yet. " if over else ""
        return StoreMisconfigured(
            message, why + answer.shown, "Make a new shared access signature; look at its times, at its permissions and whether it was copied whole."
        )
    if request.kind == "identity":
        return StoreMisconfigured(message, answer.shown, "Look at which identity this machine or these variables have, and in which tenant the account is.")
    return StoreMisconfigured(message, answer.shown, "Was the key renewed, or is it another account's? Copy it again from the portal.")


def _no_token(error: AzureError, request: Request, status: int | None) -> StoreError:
    said = masked(" ".join(str(error.message).split())[:_MAX_SAID])
    if (status is not None and (status == 429 or status >= 500)) or any(word in said for word in _UNREACHED):
        return StoreUnavailable(f"no token for the Azure account {request.account} at the moment", said)
    return StoreMisconfigured(
        f"no token for the Azure account {request.account}",
        f"No key and no signature is set, and the search for an identity ended so: {said}",
        "Set WABS_ACCESS_KEY or WABS_SAS_TOKEN; or give the machine a managed identity; or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET.",
    )


def _unanswered(error: AzureError | RequestException, request: Request) -> StoreError:
    """Explain a request to which there was no answer, or half of one."""
    if isinstance(error, ClientAuthenticationError):
        return _no_token(error, request, None)
    causes = list(_causes(error))
    root = causes[-1]
    said = masked(f"The network says: {str(root).strip() or type(root).__name__}.")
    for cause in causes:
        if isinstance(cause, SSLCertVerificationError):
            return StoreMisconfigured(
                f"the certificate of the Azure account {request.account} cannot be trusted",
                f"The check says: {cause.verify_message}.",
                "If a proxy or an own Azure has its own certificates, name their file in REQUESTS_CA_BUNDLE.",
            )
        if type(cause).__name__ in ("NameResolutionError", "gaierror"):
            return StoreUnavailable(
                f"the Azure account {request.account} has no address", said, "If this stays so, the account's name or the endpoint suffix is wrong."
            )
    lost = StoreUnavailable(f"the connection to Azure failed, asking to {request.operation} {request.url}", said)
    if any(isinstance(cause, _STALE) for cause in causes):
        lost.wait_s = 0
    return lost


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps: each library on the way keeps it somewhere else."""
    seen: list[Any] = []
    found: Any = error
    while isinstance(found, BaseException) and found not in seen:
        seen.append(found)
        yield found
        inner = [getattr(found, "reason", None), getattr(found, "inner_exception", None), *reversed(found.args), found.__cause__, found.__context__]
        found = next((one for one in inner if isinstance(one, BaseException) and one not in seen), None)
