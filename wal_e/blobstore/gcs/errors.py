"""What Google's answers and its libraries' exceptions mean, in our words.

Errors come as JSON (``error.code``, ``error.message``, ``error.errors[].reason``) or, from downloads
and upload sessions, as plain text. The reasons are those of
https://cloud.google.com/storage/docs/json_api/v1/status-codes. The texts of exceptions are not
passed on whole: they may hold the address of an upload session, which is as good as a password.
"""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import requests
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError

from wal_e.errors import BlobExists, BlobNotFound, StoreError, StoreForbidden, StoreMisconfigured, StoreUnavailable
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TRANSIENT = frozenset({308, 408, 429, 500, 502, 503, 504})

_PERMISSIONS = {
    "read": "storage.objects.get",
    "write": "storage.objects.create, and storage.objects.delete to replace",
    "list": "storage.objects.list",
    "delete": "storage.objects.delete",
}
_SWITCHED_OFF = "the Cloud Storage API is switched off", "Enable storage.googleapis.com in the project that the credentials belong to."
_NOBODY_PAYS = "the project has no billing account that pays", "Give the bucket's project an active billing account."
_WHO_PAYS = "the bucket wants to know which project pays", "Set GOOGLE_CLOUD_QUOTA_PROJECT to that project: Requester Pays is switched on for the bucket."
_NO_ACCESS = {  # a reason, or a part of a message: why nobody gets in, and what to do
    "accessNotConfigured": _SWITCHED_OFF,
    "SERVICE_DISABLED": _SWITCHED_OFF,
    "accountDisabled": _NOBODY_PAYS,
    "billing account": _NOBODY_PAYS,
    "requester pays": _WHO_PAYS,
    "userProjectMissing": _WHO_PAYS,
    "nvalid bucket name": ("the prefix does not name a bucket", "Correct WALE_GS_PREFIX: gs://BUCKET/PATH."),
}

_NEW_KEY = "The key may be deleted, disabled or expired, or the machine's clock may be wrong: make a new key, or log in again."
_SEARCHED = (
    "Looked for the file that GOOGLE_APPLICATION_CREDENTIALS names, for gcloud's application default credentials,"
    " and for the metadata server of a machine at Google: give it one of these."
)


class Purpose(NamedTuple):
    """What a request is for: ``read``, ``write``, ``list`` or ``delete``, and the URL of the key or prefix."""

    operation: str
    url: str


class Refusal(NamedTuple):
    """An answer that is an error: its HTTP status, reason, message and request id; seconds to wait, if it says."""

    status: int
    reason: str
    message: str
    request_id: str
    wait_s: float | None

    @property
    def detail(self) -> str:
        """The service's own words."""
        words = f"Google answered {self.status} {self.reason}".rstrip() + (f": {self.message.rstrip('.')}." if self.message else ".")
        return words + (f" Request id: {self.request_id}." if self.request_id else "")


@contextmanager
def translated(purpose: Purpose) -> Iterator[None]:
    """Raise what the libraries raise as the kind of StoreError that it means."""
    try:
        yield
    except GoogleAPICallError as error:
        answer = error.response
        raise refused(read_refusal(answer.status_code, answer.content, answer.headers), purpose) from None
    except GoogleAuthError as error:
        raise unauthorised(error, purpose) from None
    except (requests.exceptions.JSONDecodeError, AttributeError):  # the latter: JSON of another kind, which the library takes for Google's
        raise not_google(purpose) from None
    except requests.RequestException as error:
        raise unreached(error, purpose) from None
    except ValueError as error:  # the library's, of a batch answered by half and of an upload not kept whole
        raise StoreUnavailable(f"could not {purpose.operation} all of {purpose.url}", f"Google's library says: {str(error).rstrip('.')}.") from None


def read_refusal(status: int, body: bytes, headers: Mapping[str, str]) -> Refusal:
    """Read an answer that is an error, in JSON or in plain text; a page in HTML tells no more than its status."""
    text = body.decode(errors="replace").strip()
    reason, message = "", "" if text.startswith("<") else text[:500]
    try:
        error = json.loads(text)["error"]
        message = str(error.get("message", ""))
        reasons = [str(each.get("reason", "")) for each in (*error.get("details", ()), *error.get("errors", ()))]
        reason = next(filter(None, reasons), "")
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    retry_after = headers.get("Retry-After", "")
    return Refusal(status, reason, message, headers.get("X-GUploader-UploadID", ""), float(retry_after) if retry_after.isdigit() else None)


def changed_on_the_way(refusal: Refusal) -> bool:
    """Whether the bytes did not have the checksum that came with them."""
    return refusal.status == 400 and "doesn't match calculated" in refusal.message


def refused(refusal: Refusal, purpose: Purpose) -> StoreError:
    """The error that an answer means."""
    status, reason, message = refusal.status, refusal.reason, refusal.message
    if status in TRANSIENT or reason in ("rateLimitExceeded", "userRateLimitExceeded"):
        return _overloaded(refusal, purpose)
    if status < 300:  # the library misses something in it
        return not_google(purpose)
    if status == 412:
        return BlobExists(f"{purpose.url} exists already", refusal.detail)
    if status == 404:
        if purpose.operation == "list" or "bucket does not exist" in message:
            return StoreMisconfigured(f"the bucket of {purpose.url} does not exist", refusal.detail, "Create the bucket, or correct WALE_GS_PREFIX.")
        return BlobNotFound(f"{purpose.url} does not exist", refusal.detail)
    for sign, (what, hint) in _NO_ACCESS.items():
        if sign == reason or sign in message:
            return StoreMisconfigured(f"{purpose.url} cannot be used: {what}", refusal.detail, hint)
    if status == 401:
        return StoreMisconfigured(f"{purpose.url}: the credentials are not accepted", refusal.detail, _NEW_KEY)
    if status == 403:
        return _forbidden(refusal, purpose)
    if changed_on_the_way(refusal):
        return StoreUnavailable(f"{purpose.url} was changed on its way to the store", refusal.detail)
    return StoreError(f"could not {purpose.operation} {purpose.url}", refusal.detail)


def not_google(purpose: Purpose) -> StoreError:
    """The error that means an answer in another language than the service's."""
    return StoreError(
        f"could not {purpose.operation} {purpose.url}",
        "The answer is none of Google Cloud Storage's.",
        "Check for a proxy that answers in its place, and STORAGE_EMULATOR_HOST and API_ENDPOINT_OVERRIDE, if they are set.",
    )


def no_bucket(error: ValueError, purpose: Purpose) -> StoreError:
    """The error that means the library takes no such name for a bucket's."""
    what, hint = _NO_ACCESS["nvalid bucket name"]
    return StoreMisconfigured(f"{purpose.url} cannot be used: {what}", str(error), hint)


def unreached(error: Exception, purpose: Purpose) -> StoreError:
    """The error that means there was no answer, or only half of one."""
    cause = _innermost(error)
    text = f"{type(cause).__name__}: {cause}".replace("\n", " ")
    detail = f"The network says {text[:300]}."
    if "CERTIFICATE_VERIFY_FAILED" in str(cause):
        return StoreMisconfigured(
            f"{purpose.url}: the server's certificate is not trusted",
            detail,
            "If a proxy of yours signs it, set REQUESTS_CA_BUNDLE to a file with its certificate; otherwise check this machine's clock.",
        )
    if isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema)):
        return StoreMisconfigured(f"{purpose.url} has no usable address", detail, "Check STORAGE_EMULATOR_HOST, API_ENDPOINT_OVERRIDE and the proxy variables.")
    unavailable = StoreUnavailable(f"could not {purpose.operation} {purpose.url}: no answer", detail)
    if isinstance(cause, (ConnectionResetError, BrokenPipeError, ConnectionAbortedError)):  # RemoteDisconnected is one
        unavailable.wait_s = 0.0
    return unavailable


def unauthorised(error: Exception, purpose: Purpose) -> StoreError:
    """The error that means there are no credentials, or none that yield a token."""
    if isinstance(error, TransportError) or getattr(error, "retryable", False):
        return unreached(error, purpose)
    text = _words(error)
    detail = f"{text[:400].rstrip('.')}."
    if isinstance(error, DefaultCredentialsError):
        return StoreMisconfigured(f"{purpose.url}: no usable Google credentials", detail, _SEARCHED)
    if re.search(r"\biat and exp\b", text):
        return StoreMisconfigured(f"{purpose.url}: this machine's clock is wrong", detail, "Set the clock (NTP): Google takes credentials of this minute only.")
    return StoreMisconfigured(f"{purpose.url}: the credentials yield no access token", detail, _NEW_KEY)


def _overloaded(refusal: Refusal, purpose: Purpose) -> StoreUnavailable:
    hint = "Google takes about one change of the same object in a second." if refusal.status == 429 and purpose.operation == "write" else ""
    error = StoreUnavailable(f"could not {purpose.operation} {purpose.url} for the moment", refusal.detail, hint)
    error.wait_s = refusal.wait_s
    return error


def _forbidden(refusal: Refusal, purpose: Purpose) -> StoreForbidden:
    if refusal.reason == "retentionPolicyNotMet" or "retention policy" in refusal.message or "object hold" in refusal.message.lower():
        hint = "The bucket keeps its objects for a time (retention policy or hold): wait, or shorten it."
    elif refusal.reason in ("insufficientPermissions", "ACCESS_TOKEN_SCOPE_INSUFFICIENT"):
        hint = "The machine's access scopes do not suffice, whatever its account may do: give it the scope devstorage.read_write or cloud-platform."
    else:
        hint = f"Give the account {_PERMISSIONS[purpose.operation]} on the bucket; roles/storage.objectAdmin has all that wal-e needs."
        if purpose.operation == "read":
            hint += " Google also answers so for what does not exist, unless the account has storage.objects.list."
    return StoreForbidden(f"not allowed to {purpose.operation} {purpose.url}", refusal.detail, hint)


def _words(error: BaseException) -> str:
    """What an exception of Google's library says, without the answers and documents that hang on it."""
    said = [_words(each) if isinstance(each, BaseException) else " ".join(each.split()) for each in error.args if isinstance(each, (str, BaseException))]
    return ": ".join(filter(None, said)) or type(error).__name__


def _innermost(error: BaseException) -> BaseException:
    """What the operating system or the protocol said, without the address that was asked."""
    while True:
        inside = getattr(error, "reason", None)
        if not isinstance(inside, BaseException):
            inside = next((each for each in reversed(error.args) if isinstance(each, BaseException)), error.__cause__)
        if inside is None:
            return error
        error = inside
