"""What S3 answers when something is wrong, in our tree of errors.

The codes are those of the "Error responses" page of the S3 API reference, and what its clones make
of them. Nothing of an answer is shown but its code, its message and its request id: an answer to a bad signature
repeats what was signed, session token included.
"""

from __future__ import annotations

from wal_e.errors import BlobExists, BlobFrozen, BlobNotFound, StoreError, StoreForbidden, StoreMisconfigured, StoreUnavailable
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from botocore.exceptions import ClientError

_BUSY = ("SlowDown", "Throttling", "RequestLimitExceeded", "TooManyRequests", "Busy")
_PASSING = ("InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "IncompleteBody")
_CHANGED = ("BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "ContentSHA256Mismatch")
_MOVED = ("PermanentRedirect", "TemporaryRedirect", "Redirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "IncorrectEndpoint")
_DENIED = ("AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "UnauthorizedAccess")
_FROZEN = ("InvalidObjectState", "RestoreAlreadyInProgress", "ObjectRestoreInProgress")
_UNFIT = ("InvalidStorageClass", "InvalidBucketName", "InvalidEncryptionAlgorithmError", "KMS.", "UserKeyMustBeSpecified", "QuotaExceeded")
_TOKEN = ("ExpiredToken", "TokenRefreshRequired", "InvalidToken", "ExpiredTokenException", "RequestExpired")
_KEYS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidSecurity",
    "NotSignedUp",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "AuthFailure",
    "AuthorizationHeaderMalformed",
)

CREDENTIALS_HINT = "Credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or the machine's role; see that the right ones are found."
THAWING_HINT = "It is being restored: wait for the end, which takes from minutes to 2 days, and run it again."
_LIST_HINT = "S3 says so of an absent key too, as long as s3:ListBucket is not allowed for the bucket."
_RIGHTS = {
    "read": f"Allow s3:GetObject below this prefix. {_LIST_HINT}",
    "write": "Allow s3:PutObject and s3:AbortMultipartUpload below this prefix, and the use of the key if the bucket is encrypted with KMS.",
    "list": "Allow s3:ListBucket and s3:ListBucketMultipartUploads for the bucket.",
    "delete": "Allow s3:DeleteObject below this prefix; retention locks of the bucket forbid it too.",
}


class Asked(NamedTuple):
    """What was asked for: read, write, list or delete, and the address of the key or prefix."""

    verb: str
    url: str
    bucket: str


class Refused(StoreError):
    """An answer that means something only to the one who asked; ``code`` is S3's, or the HTTP status where S3 gave no reason."""

    code = ""
    http_status = 0
    headers: Mapping[str, str] = {}


def denied(asked: Asked, said: str) -> StoreForbidden:
    """The error for what the credentials do not allow."""
    return StoreForbidden(f"not allowed to {asked.verb} {asked.url}", said, _RIGHTS[asked.verb])


def absent(asked: Asked, said: str) -> BlobNotFound:
    """The error for a key that S3 says is not there."""
    return BlobNotFound(f"there is no {asked.url}", said)


def not_s3(asked: Asked) -> StoreError:
    """The error for a success in another language than S3's, as a page for people is one."""
    return StoreError(
        f"could not {asked.verb} {asked.url}", "The answer is none of S3's.", "Check WALE_S3_ENDPOINT, and for a proxy that answers in its place."
    )


def no_bucket(asked: Asked, said: str) -> StoreMisconfigured:
    """The error for a bucket that does not exist."""
    return StoreMisconfigured(
        f"there is no bucket {asked.bucket}", said, "Create it, or correct the storage prefix; the region or endpoint may be another too."
    )


def unavailable(message: str, detail: str, wait_s: float | None = None) -> StoreUnavailable:
    """Transient trouble, with the seconds to wait where they are known."""
    trouble = StoreUnavailable(message, detail)
    trouble.wait_s = wait_s
    return trouble


def answered(error: ClientError, asked: Asked) -> StoreError:
    """Translate an error document, or a status without one."""
    return _of_answer(_Answer(error), asked)


class _Answer:
    """The parts of an error document and its headers."""

    def __init__(self, error: ClientError) -> None:
        document = error.response.get("Error", {})
        metadata = error.response.get("ResponseMetadata", {})
        self.operation: str = error.operation_name
        self.code = str(document.get("Code") or "")
        self.document: Mapping[str, Any] = document
        self.headers: Mapping[str, str] = metadata.get("HTTPHeaders", {})
        self.status: int = metadata.get("HTTPStatusCode") or 0
        request = str(metadata.get("RequestId") or self.headers.get("x-amz-request-id", "")).partition(",")[0]
        words = " ".join(str(document.get("Message") or "").split()).rstrip(".")
        reason = "without a reason" if self.silent else f"{self.code}: {words}" if words else self.code
        status = f"{self.status} " if self.status else ""
        self.said = f"S3 answered {status}{reason}{f' (request {request})' if request else ''}."

    @property
    def silent(self) -> bool:
        """Whether there was no error document, as in every answer to HEAD."""
        return not self.code or self.code.isdigit()

    def is_one_of(self, codes: tuple[str, ...]) -> bool:
        """Whether the code is one of these, or starts with one."""
        return self.code.startswith(codes)


def _of_answer(answer: _Answer, asked: Asked) -> StoreError:
    if answer.operation.startswith(("AssumeRole", "GetRoleCredentials", "CreateToken", "CreateOAuth2Token", "GetSessionToken")):
        return _of_token_service(answer, asked)
    region = _other_region(answer)
    if region is not None:
        return _moved(answer, asked, region)
    if answer.code == "NoSuchKey":
        return absent(asked, answer.said)
    if answer.code == "NoSuchBucket":
        return no_bucket(asked, answer.said)
    if answer.code == "PreconditionFailed" or answer.status == 412:
        return BlobExists(f"{asked.url} exists already", answer.said) if asked.verb == "write" else _replaced(asked, answer)
    if answer.is_one_of(_FROZEN):
        return _frozen(answer, asked)
    if answer.code == "RequestTimeTooSkewed" or (answer.silent and answer.status == 403 and abs(_skew_s(answer)) > 900):
        return _skewed(answer, asked)
    if answer.is_one_of(_TOKEN):
        return StoreMisconfigured(
            f"the session token for {asked.url} has expired or is not valid", answer.said, "Get new temporary credentials, or log in again."
        )
    if answer.is_one_of(_KEYS) or (answer.status == 401):
        return StoreMisconfigured(f"S3 does not accept the credentials for {asked.url}", answer.said, CREDENTIALS_HINT)
    if answer.is_one_of(_CHANGED):
        return unavailable(f"{asked.url} arrived changed at S3", f"{answer.said} The body was damaged on the way, and nothing was stored.")
    if answer.is_one_of(_BUSY + _PASSING) or answer.status in (408, 409, 429) or (answer.status >= 500 and answer.status != 501):
        return unavailable(f"S3 could not {asked.verb} {asked.url} for the moment", answer.said, _retry_after_s(answer))
    if answer.is_one_of(_DENIED) or (answer.silent and answer.status == 403 and not answer.operation.startswith("Head")):
        return denied(asked, answer.said)
    if answer.is_one_of(_UNFIT):
        return StoreMisconfigured(
            f"S3 cannot {asked.verb} {asked.url} with these settings", answer.said, "Check the bucket, the storage class and the encryption."
        )
    refused = Refused(f"S3 refused to {asked.verb} {asked.url}", answer.said)
    refused.code, refused.http_status, refused.headers = answer.code or str(answer.status), answer.status, answer.headers
    return refused


def _of_token_service(answer: _Answer, asked: Asked) -> StoreError:
    if answer.status == 429 or answer.status >= 500 or answer.is_one_of((*_BUSY, "IDPCommunicationError")):
        return unavailable(f"no credentials for {asked.url} for the moment", answer.said.replace("S3", "The token service", 1), _retry_after_s(answer))
    detail = answer.said.replace("S3", f"{answer.operation} of the token service", 1)
    return StoreMisconfigured(
        f"no credentials could be got for {asked.url}", detail, "Check the role, its trust policy and the identity token, or log in again."
    )


def _other_region(answer: _Answer) -> str | None:
    """The region S3 says the bucket is in, "" when it does not name one; None when the answer is about something else."""
    if not (answer.is_one_of(_MOVED) or answer.status in (301, 302, 307)):
        return None
    region = str(answer.document.get("Region") or answer.headers.get("x-amz-bucket-region") or "")
    return None if not region and answer.code == "AuthorizationHeaderMalformed" else region


def _moved(answer: _Answer, asked: Asked, region: str) -> StoreMisconfigured:
    if region:
        return StoreMisconfigured(f"the bucket {asked.bucket} is in another region: {region}", answer.said, f"Set AWS_REGION={region}.")
    place = answer.document.get("Endpoint")
    detail = answer.said + (f" It names the endpoint {place}." if place else "")
    return StoreMisconfigured(f"the bucket {asked.bucket} is in another region", detail, "Set AWS_REGION to the region of the bucket.")


def _replaced(asked: Asked, answer: _Answer) -> StoreError:
    return StoreError(f"{asked.url} was replaced while it was read", answer.said, "Run it again: it will read the new content.")


def _frozen(answer: _Answer, asked: Asked) -> BlobFrozen:
    from shlex import quote

    tier = answer.document.get("StorageClass") or answer.document.get("AccessTier") or "an archive tier"
    if answer.code != "InvalidObjectState":
        hint = THAWING_HINT
    else:
        key = quote(asked.url.split("/", 3)[3])
        hint = (
            f"Ask for it with: aws s3api restore-object --bucket {asked.bucket} --key {key} --restore-request Days=7; "
            "wait, from 5 hours to 2 days, and run it again. The other objects of a backup are likely to be frozen too."
        )
    return BlobFrozen(f"{asked.url} is frozen in {tier}", answer.said, hint)


def _skewed(answer: _Answer, asked: Asked) -> StoreMisconfigured:
    skew_s = _skew_s(answer)
    by = f"This machine's clock is {abs(skew_s) / 60:.0f} minutes {'ahead' if skew_s > 0 else 'behind'}. " if abs(skew_s) >= 60 else ""
    return StoreMisconfigured(
        f"S3 does not answer for {asked.url} because the clocks differ", by + answer.said, "Set the clock, best with NTP: S3 allows 15 minutes."
    )


def _skew_s(answer: _Answer) -> float:
    """How many seconds the local clock is ahead of the server's."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    try:
        return (datetime.now(UTC) - parsedate_to_datetime(answer.headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return 0.0


def _retry_after_s(answer: _Answer) -> float | None:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None
