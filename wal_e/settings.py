"""Every setting, its variable, its default and its meaning. No other module names ``WALE_*``.

Settings come from the environment, from ``--envdir DIR`` and from a few global options. They
are read when asked for, so that a command complains only about what it uses. The table
below is also the source of the configuration page of the documentation.
"""

from __future__ import annotations

import os

from wal_e.errors import ConfigurationError, local_error
from wal_e.record import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Setting(NamedTuple):
    """One row of the table: attribute, variable, parser, default (as text) and documentation."""

    field: str
    variable: str
    parse: Callable[[str], object]
    default: str
    doc: str


def _text(value: str) -> str:
    return value


def _seconds(value: str) -> float:
    seconds = float(value)
    if not 0 < seconds < 1e9:
        raise ValueError("a number of seconds above zero")
    return seconds


def _status(value: str) -> int:
    status = int(value)
    if not 1 <= status <= 255:
        raise ValueError("an exit status from 1 to 255")
    return status


def _count(value: str) -> int:
    count = int(value)
    if count < 1:
        raise ValueError("a whole number of 1 or more")
    return count


def _level(value: str) -> str:
    if value.lower() not in ("", "debug", "info", "warning", "error"):
        raise ValueError("debug, info, warning or error")
    return value.lower()


def _destinations(value: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in value.split(",") if name.strip())
    if not names or not set(names) <= {"stderr", "syslog"}:
        raise ValueError("stderr, syslog, or both with a comma")
    return names


def _one_of(*names: str) -> Callable[[str], object]:
    def parse(value: str) -> str:
        if value not in names:
            raise ValueError(" or ".join(filter(None, names)))
        return value

    return parse


def _flag(value: str) -> bool:
    if value.lower() not in ("", "0", "false", "no", "off", "1", "true", "yes", "on"):
        raise ValueError("true or false")
    return value.lower() in ("1", "true", "yes", "on")


def _gpg_key(value: str) -> str:
    if value and (not value.strip() or value.strip().startswith("-")):
        raise ValueError("a key id, a fingerprint or an address that gpg knows")
    return value.strip()


TABLE = (
    Setting("gpg_key_id", "WALE_GPG_KEY_ID", _gpg_key, "",
            "Recipient key. When set, everything pushed is encrypted for it with gpg; nothing is ever stored in plain."),
    Setting("fetch_deadline_s", "WALE_FETCH_DEADLINE", _seconds, "60",
            "Seconds during which wal-fetch tries again when the store is temporarily away."),
    Setting("push_deadline_s", "WALE_PUSH_DEADLINE", _seconds, "300",
            "Seconds during which wal-push tries again when the store is temporarily away."),
    Setting("archive_timeout_s", "WALE_ARCHIVE_TIMEOUT", _seconds, "3600",
            "Seconds that backup-push waits for the WAL its backup needs to arrive in the store."),
    Setting("no_rename", "WALE_NO_RENAME", _flag, "",
            "true: never rename .ready to .done in archive_status, for hosts where another archiver reads that directory too."),
    Setting("backlog_limit", "WALE_BACKLOG_LIMIT", _count, "128",
            "WAL files that may wait to be archived; more raise an alarm (wal-status, the log, the metrics), and nothing else."),
    Setting("retries", "WALE_RETRIES", _count, "100",
            "At most so many attempts of one operation on the store, within its deadline."),
    Setting("fetch_status_temporary", "WALE_FETCH_STATUS_TEMPORARY", _status, "75",
            "Exit status of wal-fetch for a temporary failure when a standby asks; up to 125 lets the standby ask again."),
    Setting("fetch_status_failure", "WALE_FETCH_STATUS_FAILURE", _status, "200",
            "Exit status of wal-fetch for any other failure; above 125 stops the server instead of letting it promote."),
    Setting("log_destination", "WALE_LOG_DESTINATION", _destinations, "stderr,syslog",
            "Where log records go: stderr, syslog, or both with a comma."),
    Setting("syslog_facility", "WALE_SYSLOG_FACILITY", _text, "user",
            "Syslog facility: user, daemon, local0 to local7."),
    Setting("log_level", "WALE_LOG_LEVEL", _level, "",
            "debug, info, warning or error. Unset: info, and warning for wal-push, wal-fetch and wal-prefetch."),
    Setting("connect_timeout_s", "WALE_CONNECT_TIMEOUT", _seconds, "10",
            "Seconds after which an attempt to connect to a network store is given up."),
    Setting("read_timeout_s", "WALE_READ_TIMEOUT", _seconds, "60",
            "Seconds of silence after which a connection to a network store is given up."),
    Setting("s3_endpoint", "WALE_S3_ENDPOINT", _text, "",
            "Another S3 service than Amazon's: http or https, + and path, virtualhost or subdomain, then ://host:port, for example https+path://minio:9000."),
    Setting("s3_storage_class", "WALE_S3_STORAGE_CLASS", _text, "",
            "Storage class of everything that is stored in S3, for example STANDARD_IA. Unset: the service's default."),
    Setting("s3_sse", "WALE_S3_SSE", _one_of("", "none", "AES256", "aws:kms"), "",
            "Encryption by S3: AES256, aws:kms or none. Unset: AES256 at Amazon, none at another endpoint."),
    Setting("s3_sse_kms_key_id", "WALE_S3_SSE_KMS_KEY_ID", _text, "",
            "With aws:kms, the key; unset, the account's default key."),
    Setting("disable_s3_sse", "WALE_DISABLE_S3_SSE", _flag, "",
            "true: ask S3 for no encryption, as WALE_S3_SSE=none."),
    Setting("s3_checksums", "WALE_S3_CHECKSUMS", _one_of("when_supported", "when_required"), "when_supported",
            "when_required: send no CRC32C to S3 but the older Content-MD5, for clones that know no other."),
    Setting("s3_ca_file", "WALE_S3_CA_FILE", _text, "",
            "File of certificates that the S3 endpoint's certificate is checked against, in PEM."),
)  # fmt: skip

VENDOR_TABLE = (
    Setting("aws_region", "AWS_REGION", _text, "",
            "Region of the bucket. Unset: AWS_DEFAULT_REGION, the profile's region, or us-east-1."),
    Setting("aws_instance_profile", "AWS_INSTANCE_PROFILE", _flag, "",
            "true: take S3 credentials from the instance's metadata and from nowhere else."),
    Setting("aws_security_token", "AWS_SECURITY_TOKEN", _text, "",
            "Session token that belongs to temporary AWS keys; an older name of AWS_SESSION_TOKEN."),
    Setting("wabs_account_name", "WABS_ACCOUNT_NAME", _text, "",
            "Name of the Azure storage account."),
    Setting("wabs_access_key", "WABS_ACCESS_KEY", _text, "",
            "Key of the Azure storage account."),
    Setting("wabs_sas_token", "WABS_SAS_TOKEN", _text, "",
            "Shared access signature for the Azure container, instead of the key."),
    Setting("wabs_endpoint_suffix", "WABS_ENDPOINT_SUFFIX", _text, "core.windows.net",
            "Domain of the Azure cloud, for example core.chinacloudapi.cn."),
    Setting("wabs_connection_string", "AZURE_STORAGE_CONNECTION_STRING", _text, "",
            "Account, key and endpoints of Azure storage in one string, as the portal shows it; instead of the variables above."),
    Setting("swift_auth_url", "SWIFT_AUTHURL", _text, "",
            "Where Swift's or Keystone's authentication is."),
    Setting("swift_auth_version", "SWIFT_AUTH_VERSION", _one_of("1", "1.0", "2", "2.0", "3", "3.0"), "2",
            "Version of the authentication: 1, 2 or 3."),
    Setting("swift_user", "SWIFT_USER", _text, "", "User of Swift."),
    Setting("swift_password", "SWIFT_PASSWORD", _text, "", "Password, or key, of the user."),
    Setting("swift_tenant", "SWIFT_TENANT", _text, "", "Tenant (project) of the user."),
    Setting("swift_region", "SWIFT_REGION", _text, "", "Region, where the catalogue has several."),
    Setting("swift_endpoint_type", "SWIFT_ENDPOINT_TYPE", _text, "publicURL",
            "Which address of the catalogue to use: publicURL, internalURL or adminURL."),
    *(Setting(f"swift_{name}", f"SWIFT_{name.upper()}", _text, "", f"For version 3 of the authentication: {name.replace('_', ' ')}.")
      for name in ("domain_id", "domain_name", "tenant_id", "user_id", "user_domain_id", "user_domain_name",
                   "project_id", "project_name", "project_domain_id", "project_domain_name")),
)  # fmt: skip

PREFIXES = {
    "file_prefix": "WALE_FILE_PREFIX",
    "gs_prefix": "WALE_GS_PREFIX",
    "s3_prefix": "WALE_S3_PREFIX",
    "swift_prefix": "WALE_SWIFT_PREFIX",
    "wabs_prefix": "WALE_WABS_PREFIX",
}

PREFIX_DOC = "Store URL of one cluster, one of these five at a time; the URL's scheme decides the store."

_ROWS = {row.field: row for row in (*TABLE, *VENDOR_TABLE)}


class Settings:
    """The settings of one run: an environment, with options of the command line on top."""

    gpg_key_id: str
    fetch_deadline_s: float
    push_deadline_s: float
    archive_timeout_s: float
    no_rename: bool
    backlog_limit: int
    retries: int
    fetch_status_temporary: int
    fetch_status_failure: int
    log_destination: tuple[str, ...]
    syslog_facility: str
    log_level: str
    connect_timeout_s: float
    read_timeout_s: float
    s3_endpoint: str
    s3_storage_class: str
    s3_sse: str
    s3_sse_kms_key_id: str
    disable_s3_sse: bool
    s3_checksums: str
    s3_ca_file: str
    aws_region: str
    aws_instance_profile: bool
    aws_security_token: str
    wabs_account_name: str
    wabs_access_key: str
    wabs_sas_token: str
    wabs_endpoint_suffix: str
    wabs_connection_string: str
    swift_auth_url: str
    swift_auth_version: str
    swift_user: str
    swift_password: str
    swift_tenant: str
    swift_region: str
    swift_endpoint_type: str

    def __init__(self, environ: Mapping[str, str], options: Mapping[str, str] | None = None) -> None:
        self._environ = environ
        self._options = {field: value for field, value in (options or {}).items() if value}

    def __getattr__(self, field: str) -> object:
        row = _ROWS.get(field)
        if row is None:
            raise AttributeError(field)
        text = self._options.get(field) or self._environ.get(row.variable, "") or row.default
        try:
            value = row.parse(text)
        except ValueError as error:
            reason = str(error) if str(error)[:1].islower() and "invalid" not in str(error) and "convert" not in str(error) else "a number"
            raise ConfigurationError(
                f"{row.variable} cannot be used",
                f"Its value is {text!r}; it takes {reason}.",
                f"Correct or unset {row.variable}. {row.doc}",
            ) from None
        setattr(self, field, value)
        return value

    @property
    def prefix(self) -> str:
        """The one store URL that is configured; options win over the environment.

        Raises: ConfigurationError when there is none, or when there are two different ones.
        """
        option_name = {field: "--" + field.replace("_", "-") for field in PREFIXES}
        given = [(option_name[field], self._options[field]) for field in PREFIXES if field in self._options]
        found = given or [(name, self._environ[name]) for name in PREFIXES.values() if self._environ.get(name)]
        if not found:
            raise ConfigurationError(
                "no storage prefix is set",
                "None of " + ", ".join(PREFIXES.values()) + " is set, and no --*-prefix option was given.",
                "Set one, for example WALE_FILE_PREFIX=file://localhost/var/backups/pg, or keep it in a directory of variables and pass --envdir DIR.",
            )
        if len({url for _, url in found}) > 1:
            raise ConfigurationError(
                "two storage prefixes are set",
                "These disagree: " + ", ".join(name for name, _ in found) + ".",
                "Keep exactly one of them, so that it is certain where backups and WAL go.",
            )
        return found[0][1]

    def prefix_variable(self) -> dict[str, str]:
        """The prefix as the one variable that says the same to a child process."""
        return {PREFIXES["file_prefix"]: self.prefix}

    def unknown_variables(self) -> list[str]:
        """Names in the environment that look like ours and are not, sorted."""
        known = {row.variable for row in TABLE} | set(PREFIXES.values())
        return sorted(name for name in self._environ if name.startswith("WALE_") and name not in known)


def read_envdir(path: str) -> dict[str, str | None]:
    """Read a directory in which each file is a variable, as daemontools' envdir does.

    The value is the first line without trailing white space, NUL bytes become newlines, and
    an empty file means "unset" (``None``). Names starting with a dot are passed over.

    Raises: ConfigurationError when the directory or a file in it cannot be read.
    """
    variables: dict[str, str | None] = {}
    file = path
    try:
        for name in sorted(os.listdir(path)):
            if name.startswith(".") or "=" in name:
                continue
            file = os.path.join(path, name)
            if os.path.isdir(file):
                continue
            with open(file, "rb") as stream:
                content = stream.read()
            line = content.split(b"\n", 1)[0].rstrip().replace(b"\0", b"\n")
            variables[name] = os.fsdecode(line) if content else None
    except OSError as error:
        explained = local_error(error, f"reading {file} for --envdir")
        raise ConfigurationError(explained.message, explained.detail, "Check the path and that this user may read every file in it.") from None
    return variables
