"""From what Swift, Keystone and the network say to the tree of errors.

Statuses: https://docs.openstack.org/api-ref/object-store/. Swift names no codes beside the HTTP status; each answer has a
transaction id, by which an operator finds it in the logs, so it goes into the detail.
"""

from __future__ import annotations

from http.client import HTTPException
from json import JSONDecodeError

from requests.exceptions import ConnectionError as RequestBroken
from requests.exceptions import ConnectTimeout, InvalidURL, Timeout
from urllib3.exceptions import HTTPError, ProtocolError

from wal_e.blobstore.swift.sdk import client
from wal_e.errors import BlobExists, BlobNotFound, StoreError, StoreForbidden, StoreMisconfigured, StoreUnavailable
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

SIGN_IN = "sign in at"

#: what a request may raise besides an answer of the service; requests' own errors are OSErrors
TROUBLE = (OSError, HTTPError, HTTPException, JSONDecodeError, UnicodeDecodeError, InvalidURL)

# 408, 499: the server waited in vain; 409: another write is newer, or still going on; 422: the body is not what its MD5 says;
# 498: a rate limit; 507: a disk is full
_PASSING = (408, 409, 422, 429, 498, 499, 507)
_TEXT_BYTES = 500  # of an answer's body in a message
_KEEPS_BUSY = (429, 498, 503)
_CERTIFICATE = ("certificate verify failed", "CERTIFICATE_VERIFY_FAILED", "TLS CA certificate bundle")


class PastTheEnd(StoreError):
    """The range that was asked for begins where the object has ended."""


class Doing(NamedTuple):
    """What was asked for, for messages: ``read``, ``write``, ``list``, ``delete`` or SIGN_IN, and the URL of key, prefix or service."""

    verb: str
    url: str


class Answer(NamedTuple):
    """An answer of Swift or Keystone that is an error; headers in lower case, and the beginning of the body if it says more."""

    status: int
    reason: str
    request_id: str
    headers: Mapping[str, str]
    text: str = ""

    @property
    def detail(self) -> str:
        """The answer as a sentence."""
        identified = f", transaction {self.request_id}" if self.request_id else ""
        return f"The service says: {self.status} {self.reason}{identified}."


def answer_of(error: client.ClientException) -> Answer:
    """The answer that a swiftclient error stands for."""
    headers = {name.lower(): value for name, value in (error.http_response_headers or {}).items()}
    request_id = headers.get("x-trans-id") or headers.get("x-openstack-request-id") or ""
    text = (error.http_response_content or b"")[:_TEXT_BYTES].decode(errors="replace") if "html" not in headers.get("content-type", "") else ""
    return Answer(error.http_status or 0, error.http_reason or "", request_id, headers, text)


def refusal(answer: Answer, doing: Doing) -> StoreError:
    """Translate an answer that is an error."""
    if doing.verb == SIGN_IN and (answer.status < 400 or answer.status in (400, 401, 403, 404)):
        return _not_signed_in(answer, doing)
    if answer.status == 401:
        return StoreMisconfigured(
            f"Swift does not accept the token that it was asked to {doing.verb} {doing.url} with",
            f"{answer.detail} A new one was fetched and refused too.",
            "See whether the user belongs to the account, and whether Swift and its authentication service agree on the time.",
        )
    if answer.status == 403:
        return StoreForbidden(
            f"Swift does not allow to {doing.verb} {doing.url}",
            answer.detail,
            "Give the user of SWIFT_USER a role that does, or put it on the access list of the container.",
        )
    if answer.status == 404:
        return BlobNotFound(f"{doing.url} does not exist", answer.detail)
    if answer.status == 412:
        return BlobExists(f"{doing.url} exists already", answer.detail)
    if answer.status == 416:
        return PastTheEnd(f"{doing.url} ends before the range that was asked for", answer.detail)
    if answer.status == 413:
        return StoreError(
            f"Swift does not take {doing.url}",
            f"{answer.detail} It is larger than an object may be, or a quota is used up.",
            "Look at the quotas of the container and the account.",
        )
    if answer.status >= 500 or answer.status in _PASSING:
        return _unavailable(answer, doing)
    return StoreError(f"Swift did not {doing.verb} {doing.url}", f"{answer.detail} {answer.text}".rstrip())


def trouble(error: Exception, doing: Doing, used_before: int) -> StoreError:
    """Translate what was raised instead of an answer; ``used_before`` counts the requests that this connection had answered."""
    reason = innermost(error)
    if any(text in str(error) for text in _CERTIFICATE):
        return untrusted(reason, doing)
    if isinstance(error, InvalidURL):
        return StoreMisconfigured(f"{doing.url} is not an address", f"{reason}.", "Correct SWIFT_AUTHURL, or the address in the service catalogue.")
    if isinstance(error, (JSONDecodeError, UnicodeDecodeError)):
        return StoreUnavailable(f"the answer cannot be understood when asked to {doing.verb} {doing.url}", f"{reason}.")
    unavailable = unreachable(reason, doing, timed_out=isinstance(error, Timeout) and not isinstance(error, ConnectTimeout))
    if used_before and isinstance(error, RequestBroken) and error.args and isinstance(error.args[0], ProtocolError):
        unavailable.wait_s = 0
    return unavailable


def unreachable(reason: str, doing: Doing, *, timed_out: bool = False) -> StoreUnavailable:
    """The error for a service that gave no answer."""
    what = "no answer in time when asked to" if timed_out else "the connection failed when asked to"
    return StoreUnavailable(f"{what} {doing.verb} {doing.url}", f"{reason}.", "See whether the address of the service is right and can be reached from here.")


def untrusted(reason: str, doing: Doing) -> StoreMisconfigured:
    """The error for a certificate that cannot be verified."""
    return StoreMisconfigured(
        f"the certificate of the service cannot be verified when asked to {doing.verb} {doing.url}",
        f"{reason}.",
        "If it is signed by an authority of your own, set REQUESTS_CA_BUNDLE to a file with its certificate in PEM.",
    )


def no_container(container: str, detail: str) -> StoreMisconfigured:
    """The error for a container that is not there."""
    return StoreMisconfigured(
        f"there is no Swift container {container}",
        detail,
        f"Make it with swift post {container}, or correct the storage prefix, the account or SWIFT_REGION.",
    )


def _not_signed_in(answer: Answer, doing: Doing) -> StoreMisconfigured:
    if answer.status < 400 or answer.status == 404:
        return StoreMisconfigured(
            f"there is no authentication service at {doing.url}",
            answer.detail,
            "Correct SWIFT_AUTHURL and SWIFT_AUTH_VERSION; it ends in /auth/v1.0, /v2.0 or /v3.",
        )
    return StoreMisconfigured(
        f"the user, the password or the project was not accepted by {doing.url}",
        answer.detail,
        "Correct SWIFT_USER and SWIFT_PASSWORD, and with version 2 or 3 of the authentication the tenant, project and domains.",
    )


def _unavailable(answer: Answer, doing: Doing) -> StoreUnavailable:
    unavailable = StoreUnavailable(f"Swift cannot {doing.verb} {doing.url} now", answer.detail)
    wanted = answer.headers.get("retry-after", "")
    if answer.status in _KEEPS_BUSY and wanted.isdecimal():
        unavailable.wait_s = float(wanted)
    return unavailable


def innermost(error: BaseException) -> str:
    """The first cause of a chain, in words; what lies around it repeats addresses and paths."""
    reason: BaseException = error
    while True:
        inner = getattr(reason, "reason", None) or (reason.args[0] if reason.args else None)
        if not isinstance(inner, BaseException):
            inner = next((argument for argument in reason.args[1:] if isinstance(argument, BaseException)), None)
        if inner is None:
            return str(reason).rstrip(".") or type(reason).__name__
        reason = inner
