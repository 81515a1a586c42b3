"""Signing in at Keystone, versions 2 and 3 of its interface, with keystoneauth1.

https://docs.openstack.org/api-ref/identity/. Only a token and the catalogue that comes with it are asked for, in one request: no
discovery of versions. An address without a version gets the one that is configured, as swiftclient does.
"""

from __future__ import annotations

from keystoneauth1 import exceptions, session
from keystoneauth1.identity import v2, v3

from wal_e.blobstore.swift.errors import SIGN_IN, TROUBLE, Answer, Doing, innermost, refusal, trouble, unreachable, untrusted
from wal_e.blobstore.url import shown
from wal_e.errors import StoreMisconfigured

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from keystoneauth1.access import AccessInfo
    from keystoneauth1.identity.base import BaseIdentityPlugin

    from wal_e.blobstore.swift.auth import Credentials
    from wal_e.errors import StoreError

SERVICE = "object-store"


def ask_keystone(found: Credentials) -> tuple[str, str]:
    """Return the address of the account, and a token.

    Raises: StoreMisconfigured, StoreUnavailable.
    """
    doing = Doing(SIGN_IN, shown(found.auth_url))
    method = _version_2(found) if found.version == 2 else _version_3(found)
    try:
        access = method.get_access(_session(method, found.timeouts_s))
    except (exceptions.ClientException, exceptions.RetriableConnectionFailure) as error:
        raise _translated(error, doing) from None
    except TROUBLE as error:
        raise trouble(error, doing, 0) from None
    return _address(access, found, doing), str(access.auth_token)


def _session(method: BaseIdentityPlugin, timeouts_s: tuple[float, float]) -> session.Session:
    made = session.Session(auth=method)
    made.timeout = timeouts_s  # type: ignore[assignment]  # it goes to requests as it is, which takes one for connecting and one for reading
    return made


def _translated(error: Exception, doing: Doing) -> StoreError:
    if isinstance(error, exceptions.HttpError):
        headers = {name.lower(): value for name, value in (error.response.headers if error.response is not None else {}).items()}
        return refusal(Answer(error.http_status or 0, error.message or "", error.request_id or "", headers), doing)
    reason = innermost(error.__context__ or error)
    if isinstance(error, exceptions.SSLError):
        return untrusted(reason, doing)
    if isinstance(error, (exceptions.ConnectionError, exceptions.RetriableConnectionFailure)):
        return unreachable(reason, doing)
    return StoreMisconfigured(f"{doing.url} gave no token", f"{reason}.", "Correct SWIFT_AUTHURL, SWIFT_AUTH_VERSION, and the user's project and domains.")


def _address(access: AccessInfo, found: Credentials, doing: Doing) -> str:
    try:
        return str(access.service_catalog.url_for(service_type=SERVICE, interface=found.interface, region_name=found.region or None))
    except exceptions.CatalogException as error:
        endpoints = access.service_catalog.get_endpoints_data(service_type=SERVICE).get(SERVICE, [])
        there = sorted({f"{endpoint.interface} in region {endpoint.region_name or '(none)'}" for endpoint in endpoints})
        raise StoreMisconfigured(
            f"the catalogue of {doing.url} names no such object store",
            f"{str(error).rstrip('.')}. It has: {', '.join(there) or 'none at all for this project'}.",
            "Correct SWIFT_REGION, SWIFT_ENDPOINT_TYPE or the project.",
        ) from None


def _version_2(found: Credentials) -> BaseIdentityPlugin:
    user: dict[str, Any] = {"username": found.user} if found.user else {"user_id": found.scope["user_id"]}
    tenant: dict[str, Any] = {"tenant_id": found.scope["tenant_id"]} if found.scope["tenant_id"] else {"tenant_name": found.tenant}
    return v2.Password(_with_version(found.auth_url, "v2.0"), password=found.password, **user, **tenant)


def _version_3(found: Credentials) -> BaseIdentityPlugin:
    scope = found.scope
    project = {
        "project_id": scope["project_id"] or scope["tenant_id"],
        "project_name": scope["project_name"] or found.tenant,
        "project_domain_id": scope["project_domain_id"],
        "project_domain_name": scope["project_domain_name"],
    }
    user = {"user_domain_id": scope["user_domain_id"], "user_domain_name": scope["user_domain_name"], "user_id": scope["user_id"]}
    if not any(user.values()):
        user["user_domain_id"] = "default"
    if project["project_name"] and not any((project["project_id"], project["project_domain_id"], project["project_domain_name"])):
        project["project_domain_id"] = "default"
    if not (project["project_id"] or project["project_name"]):
        project = {"domain_id": scope["domain_id"], "domain_name": scope["domain_name"]}
    given: dict[str, Any] = {name: value for name, value in {**user, **project, "username": found.user}.items() if value}
    return v3.Password(_with_version(found.auth_url, "v3"), password=found.password, **given)


def _with_version(url: str, version: str) -> str:
    url = url.rstrip("/")
    return url if url.rpartition("/")[2] in ("v2.0", "v2", "v3", "v3.0") else f"{url}/{version}"
