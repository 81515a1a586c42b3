"""What botocore and urllib3 raise when no answer came from S3, or nothing could be asked, in our tree of errors."""

from __future__ import annotations

from botocore import exceptions as boto

from wal_e.blobstore.s3.answers import CREDENTIALS_HINT, answered, unavailable
from wal_e.errors import StoreMisconfigured
from wal_e.settings import TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wal_e.blobstore.s3.answers import Asked
    from wal_e.errors import StoreError

_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.TokenRetrievalError,
    boto.NoAuthTokenError,
    boto.ProfileNotFound,
    boto.SSOError,
)

_NETWORK = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.IncompleteReadError,
    boto.ChecksumError,
    boto.FlexibleChecksumError,
)


def explained(error: Exception, asked: Asked) -> StoreError:
    """Translate what botocore or urllib3 raised."""
    if isinstance(error, boto.ClientError):
        return answered(error, asked)
    if isinstance(error, (boto.CredentialRetrievalError, boto.MetadataRetrievalError)):
        return unavailable(f"no credentials for {asked.url} for the moment", _sentence(error))
    if isinstance(error, _NO_CREDENTIALS):
        return _no_credentials(error, asked)
    if isinstance(error, (boto.ParamValidationError, boto.EndpointProviderError, boto.InvalidEndpointConfigurationError, ValueError)):
        return StoreMisconfigured(f"{asked.url} cannot be an address in S3", f"{_sentence(error)}", "Check the name of the bucket and the endpoint.")
    if isinstance(error, boto.BotoCoreError) and not isinstance(error, _NETWORK):
        return StoreMisconfigured(f"the S3 client cannot work on {asked.url}", _sentence(error), "Look through ~/.aws/config and the AWS_ variables.")
    return _of_network(error, asked)


def _no_credentials(error: Exception, asked: Asked) -> StoreMisconfigured:
    if isinstance(error, boto.NoCredentialsError):
        looked = "Nothing was found in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in ~/.aws, in the container's and in the machine's metadata."
        return StoreMisconfigured(f"no credentials for {asked.url}", looked, "Set them, name a profile with AWS_PROFILE, or give the machine a role.")
    return StoreMisconfigured(f"no credentials for {asked.url}", _sentence(error), CREDENTIALS_HINT)


def _of_network(error: Exception, asked: Asked) -> StoreError:
    reason = _reason(error) + _whom(error)
    if "CERTIFICATE_VERIFY_FAILED" in reason or "certificate verify failed" in reason or "doesn't match" in reason:
        row = next(row for row in TABLE if row.field == "s3_ca_file")
        hint = f"If it is signed by an authority of your own, name that one's certificate in {row.variable}."
        return StoreMisconfigured(f"the certificate of the S3 endpoint of {asked.url} cannot be trusted", f"{reason}.", hint)
    if isinstance(error, boto.ConnectionClosedError):
        return unavailable(f"the connection broke while S3 was asked to {asked.verb} {asked.url}", f"{reason}.", 0)
    if isinstance(error, (boto.ReadTimeoutError, TimeoutError)):
        return unavailable(f"S3 does not answer for {asked.url}", f"{reason}.")
    if isinstance(error, boto.ConnectionError):
        return unavailable(f"S3 cannot be reached for {asked.url}", f"{reason}.")
    return unavailable(f"the exchange with S3 about {asked.url} broke", f"{reason}.")


def _whom(error: Exception) -> str:
    """Which host did not do its part, where botocore says: it may be a token service and not S3."""
    from urllib.parse import urlsplit

    kwargs = getattr(error, "kwargs", None)
    host = urlsplit(str(kwargs.get("endpoint_url") or "")).netloc.rpartition("@")[2] if isinstance(kwargs, dict) else ""
    return f" ({host})" if host else ""


def _reason(error: BaseException) -> str:
    """What the innermost error says: those around it speak of objects and addresses."""
    seen: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None and inner not in seen:
        seen.append(inner)
        kwargs = getattr(inner, "kwargs", None)
        within = kwargs.get("error") if isinstance(kwargs, dict) else next((part for part in inner.args if isinstance(part, BaseException)), None)
        inner = within if isinstance(within, BaseException) else inner.__cause__ or getattr(inner, "reason", None)
        inner = inner if isinstance(inner, BaseException) else None
    last = seen[-1]
    text = last.strerror if isinstance(last, OSError) and last.strerror else str(last)
    return " ".join(text.split(": ", 1)[-1].split() if text.startswith("<") else text.split()).rstrip(".") or type(last).__name__


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."
