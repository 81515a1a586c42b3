"""The S3 client of one process: endpoint, region, credentials, timeouts, and what botocore must not do by itself.

boto3 hands out a client of botocore with transfer managers around it, which nothing here uses. Asking botocore for the
same client spares 120 ms of processor time, a third of all, in a process that lives for one WAL segment. Credentials are found by boto3's
whole chain, which is botocore's (environment, profile, SSO, web identity, container, instance), or by the instance's metadata alone
where that is asked for.

Switched off: retries (:mod:`wal_e.retry` does them, with log lines and deadlines), the silent following
of a bucket into another region (two requests more for each segment, for ever: saying it once is cheaper), the
checksums that change the body into aws-chunked pieces, which old clones store as they come.
"""

from __future__ import annotations

import os
from io import BytesIO

from botocore.config import Config
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.session import Session

from wal_e import __version__
from wal_e.blobstore.slices import SLICE_BYTES
from wal_e.errors import ConfigurationError
from wal_e.log import hide
from wal_e.record import NamedTuple
from wal_e.settings import TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from wal_e.settings import Settings

DEFAULT_REGION = "us-east-1"
EXPECT_BYTES = 1 << 20  # a refusal is worth a round trip before a body of this size, and none before a smaller one
INSTANCE_ATTEMPTS = 3  # the metadata service answers 404 or nothing for a moment after a start

# The DNS suffixes of Amazon's partitions, from botocore's partitions.json.
AMAZON = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".c2s.ic.gov", ".sc2s.sgov.gov", ".cloud.adc-e.uk", ".csp.hci.ic.gov")

_STYLES = {"path": "path", "virtualhost": "virtual", "subdomain": "virtual"}


class Endpoint(NamedTuple):
    """Where another S3 service is: URL, and botocore's word for how buckets are addressed there."""

    url: str
    addressing: str


def parse_endpoint(text: str) -> Endpoint:
    """Parse WAL-E's form of an endpoint, ``https+path://host:port``.

    Raises: ConfigurationError.
    """
    from urllib.parse import urlsplit

    head, separator, place = text.partition("://")
    protocol, _, style = head.lower().partition("+")
    place = place.removesuffix("/")
    if not separator or protocol not in ("http", "https") or style not in _STYLES:
        raise _unusable("s3_endpoint", "It starts with http or https, +, and path, virtualhost or subdomain.")
    if any(mark in place for mark in "@/?#") or not place:
        raise _unusable("s3_endpoint", "After :// stands a host, or host:port, and nothing else: no user, no password, no path.")
    try:
        parts = urlsplit(f"{protocol}://{place}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _unusable("s3_endpoint", "What stands after :// is not a host with a port.") from None
    if not host or port == 0:
        raise _unusable("s3_endpoint", "What stands after :// is not a host with a port.")
    return Endpoint(f"{protocol}://{place}", _STYLES[style])


def new_client(settings: Settings, endpoint: Endpoint | None, connections: int) -> Any:
    """Make a client, with credentials, which may ask a metadata or token service; S3 itself is not asked.

    Raises: what botocore raises for an unusable profile or incomplete credentials; ValueError for an unusable endpoint.
    """
    session = Session()
    _without_search(session)
    if os.environ.get("AWS_METADATA_SERVICE_NUM_ATTEMPTS") is None:
        session.set_config_variable("metadata_service_num_attempts", INSTANCE_ATTEMPTS)
    if settings.aws_instance_profile:
        resolver = session.get_component("credential_provider")
        resolver.providers = [provider for provider in resolver.providers if provider.METHOD == "iam-role"]
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    _hide(credentials.get_frozen_credentials())
    client = session.create_client(
        "s3",
        region_name=settings.aws_region or session.get_config_variable("region") or DEFAULT_REGION,
        endpoint_url=endpoint.url if endpoint else None,
        verify=settings.s3_ca_file or None,
        config=_config(settings, endpoint, connections),
    )
    client.meta.events.register("before-call.s3", _sliced_body)
    client.meta.events.register_first("needs-retry.s3", _give_up)
    if settings.s3_checksums == "when_required":
        client.meta.events.register("before-sign.s3.DeleteObjects", _md5_instead)
    return client


def is_amazon(client: Any) -> bool:
    """Whether the client speaks to Amazon, and not to a clone."""
    from urllib.parse import urlsplit

    return str(urlsplit(client.meta.endpoint_url).hostname).endswith(AMAZON)


def _hide(credentials: Any) -> None:
    for secret in filter(None, (credentials.secret_key, credentials.token)):
        hide(secret)


def check_ca_file(path: str) -> None:
    """Raise ConfigurationError unless the file of certificates is there."""
    if path and not os.path.isfile(path):
        raise _unusable("s3_ca_file", f"There is no file {path}.")


def _unusable(field: str, detail: str) -> ConfigurationError:
    row = next(row for row in TABLE if row.field == field)
    return ConfigurationError(f"{row.variable} cannot be used", detail, f"Correct or unset it. {row.doc}")


def _config(settings: Settings, endpoint: Endpoint | None, connections: int) -> Config:
    return Config(
        signature_version="s3v4",
        s3={"addressing_style": endpoint.addressing} if endpoint else None,
        connect_timeout=settings.connect_timeout_s,
        read_timeout=settings.read_timeout_s,
        max_pool_connections=max(connections, 1),
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        user_agent_extra=f"wal-e/{__version__}",
    )


def _without_search(session: Session) -> None:
    """Spare botocore the search of its 400 services for those that have a model: 25 ms for a check of the word "s3"."""
    loader = session.get_component("data_loader")

    def names(type_name: str) -> list[str]:  # noqa: ARG001  # as botocore calls it
        return [name for path in loader.search_paths if os.path.isdir(path) for name in os.listdir(path)]

    loader.list_available_services = names


class _Slices(BytesIO):
    """A body that is read, and so sent, in slices: the socket's timeout, that for connecting, is for each of them."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(size if size is None or size < 0 else max(size, SLICE_BYTES))


def _sliced_body(params: Any, context: Any, **_: object) -> None:
    """Send large slices: botocore sends pieces of 16 KiB, and waits for leave however short the body is."""
    getvalue = getattr(params["body"], "getvalue", None)
    if getvalue is None:
        return
    params["body"] = _Slices(getvalue())
    if len(getvalue()) < EXPECT_BYTES:
        params["headers"].pop("Expect", None)
    if "x-amz-checksum-crc32c" in params["headers"]:
        # Told of the checksum, the signer leaves out a SHA-256 of the body over TLS.
        context.setdefault("checksum", {})["request_algorithm"] = {"algorithm": "crc32c", "in": "header", "name": "x-amz-checksum-crc32c"}


def _give_up(response: Any, operation: Any, **_: object) -> None:
    """Make an error of every refusal, before botocore thinks of trying elsewhere."""
    if response is not None and response[0].status_code >= 300:
        raise ClientError(response[1], operation.name)


def _md5_instead(request: Any, **_: object) -> None:
    """Give a DeleteObjects request the checksum that S3 wanted before it knew others."""
    import hashlib
    from base64 import b64encode

    for name in ("x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm"):
        del request.headers[name]
    del request.headers["Content-MD5"]
    request.headers["Content-MD5"] = b64encode(hashlib.md5(request.data, usedforsecurity=False).digest()).decode()
