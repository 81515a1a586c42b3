"""Who we are for Swift: from the variables that WAL-E read to the address of an account and a token.

Version 1 asks Swift itself, or what stands beside it (https://docs.openstack.org/swift/latest/overview_auth.html); versions 2
and 3 ask Keystone. A token is fetched when the first request needs one, is shared by all, and is
renewed once when Swift does not take it any more.
"""

from __future__ import annotations

from threading import Lock
from urllib.parse import urlsplit

from wal_e.blobstore.swift.errors import SIGN_IN, TROUBLE, Doing, answer_of, refusal, trouble
from wal_e.blobstore.swift.sdk import client
from wal_e.blobstore.url import shown
from wal_e.errors import StoreMisconfigured
from wal_e.log import hide
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from wal_e.settings import Settings

_V3_FIELDS = ("domain_id", "domain_name", "tenant_id", "user_id", "user_domain_id", "user_domain_name",
              "project_id", "project_name", "project_domain_id", "project_domain_name")  # fmt: skip


class Account(NamedTuple):
    """Where the account is, and the token that opens it."""

    url: str
    token: str


class Credentials(NamedTuple):
    """What is needed to get a token; version is 1, 2 or 3; ``scope`` has what only Keystone knows."""

    version: int
    auth_url: str
    user: str
    password: str
    tenant: str
    region: str
    interface: str
    scope: dict[str, str]
    timeouts_s: tuple[float, float]


def credentials(settings: Settings) -> Credentials:
    """Read the credentials from the settings.

    Raises: StoreMisconfigured when some are missing.
    """
    scope = {name: str(getattr(settings, f"swift_{name}")) for name in _V3_FIELDS}
    found = Credentials(
        int(float(settings.swift_auth_version)), settings.swift_auth_url, settings.swift_user, settings.swift_password, settings.swift_tenant,
        settings.swift_region, settings.swift_endpoint_type, scope, (settings.connect_timeout_s, settings.read_timeout_s),
    )  # fmt: skip
    hide(found.password)
    if found.version > 1 and ":" in found.user and not found.tenant:
        tenant, _, user = found.user.partition(":")
        found = found._replace(tenant=tenant, user=user)
    missing = _missing(found)
    if missing:
        raise StoreMisconfigured(
            "the credentials for Swift are not complete",
            f"Version {found.version} of the authentication needs {', '.join(missing)}.",
            "Set these variables, or SWIFT_AUTH_VERSION if it is another version.",
        )
    if not _is_address(found.auth_url):
        raise StoreMisconfigured(f"{shown(found.auth_url)} is not an address", "It must be like https://host:port/path.", "Correct SWIFT_AUTHURL.")
    return found


class SignIn:
    """The account, from when it is first asked for; for any number of threads."""

    def __init__(self, found: Credentials) -> None:
        self._credentials = found
        self._lock = Lock()
        self._account: Account | None = None

    def account(self) -> Account:
        """Return the account, signing in the first time. Raises: StoreMisconfigured, StoreUnavailable."""
        with self._lock:
            if self._account is None:
                self._account = self._signed_in()
            return self._account

    def renewed(self, refused: Account) -> Account:
        """Return another account than the one that was refused, signing in again unless another thread did."""
        with self._lock:
            if self._account is None or self._account.token == refused.token:
                self._account = None
                self._account = self._signed_in()
            return self._account

    def _signed_in(self) -> Account:
        if self._credentials.version == 1:
            account = _ask_swift(self._credentials)
        else:
            from wal_e.blobstore.swift.keystone import ask_keystone

            account = Account(*ask_keystone(self._credentials))
        hide(account.token)
        return account


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _missing(found: Credentials) -> list[str]:
    needed = {"SWIFT_AUTHURL": found.auth_url, "SWIFT_USER": found.user or found.scope["user_id"], "SWIFT_PASSWORD": found.password}
    if found.version == 2:
        needed["SWIFT_TENANT"] = found.tenant or found.scope["tenant_id"]
    if found.version == 3:
        named = ("project_name", "project_id", "tenant_id", "domain_id", "domain_name")
        needed["SWIFT_PROJECT_NAME (or SWIFT_TENANT)"] = found.tenant or next(filter(None, (found.scope[name] for name in named)), "")
    return [variable for variable, value in needed.items() if not value]


def _ask_swift(found: Credentials) -> Account:
    doing = Doing(SIGN_IN, shown(found.auth_url))
    try:
        url, token = client.get_auth(found.auth_url, found.user, found.password, auth_version="1", timeout=found.timeouts_s)
    except client.ClientException as error:
        raise refusal(answer_of(error), doing) from None
    except TROUBLE as error:
        raise trouble(error, doing, 0) from None
    if not url or not token:
        raise StoreMisconfigured(
            f"{doing.url} gives no token", "The answer has no X-Storage-Url or no X-Auth-Token.", "Correct SWIFT_AUTHURL or SWIFT_AUTH_VERSION."
        )
    return Account(url, token)
