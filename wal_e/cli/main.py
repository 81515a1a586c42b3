"""The command line: global options, then a verb. Prints nothing but results on stdout."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import click

from wal_e import __version__, log
from wal_e.cli.context import Context
from wal_e.cli.render import show
from wal_e.cli.run import settings_of
from wal_e.errors import UsageError
from wal_e.settings import Settings

_QUIET_VERBS = ("wal-push", "wal-fetch", "wal-prefetch")

FAMILIES = {
    "backup": ("backup-push", "backup-fetch", "backup-list"),
    "backup_verify": ("backup-verify",),
    "delete": ("delete",),
    "wal": ("wal-push", "wal-fetch", "wal-prefetch"),
    "archiver": ("wal-archive",),
    "health": ("wal-status",),
    "receive": ("wal-receive",),
    "restore": ("restore",),
    "verify": ("wal-verify", "wal-show"),
    "check": ("check",),
    "drill": ("drill",),
    "window": ("window",),
}


class Verbs(click.Group):
    """The verbs by their modules here; only that of the verb asked for is imported: all of them take longer than most verbs do."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all verbs, in alphabetical order."""
        return sorted({*super().list_commands(ctx), *(verb for verbs in FAMILIES.values() for verb in verbs)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the verb, if there is one of that name."""
        for module, verbs in FAMILIES.items():
            if cmd_name in verbs and cmd_name not in self.commands:
                for command in importlib.import_module(f"wal_e.cli.{module}").COMMANDS:
                    self.add_command(command)
        return super().get_command(ctx, cmd_name)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="%(version)s")
@click.option("--envdir", metavar="DIR", help="Read variables from files in DIR, one per file, over the environment.")
@click.option("--file-prefix", metavar="URL", help="Store in files, e.g. file://localhost/var/backups/pg; over WALE_FILE_PREFIX.")
@click.option("--s3-prefix", metavar="URL", help="Store in S3; over WALE_S3_PREFIX.")
@click.option("--gs-prefix", metavar="URL", help="Store in Google Cloud Storage; over WALE_GS_PREFIX.")
@click.option("--wabs-prefix", metavar="URL", help="Store in Azure Blob Storage; over WALE_WABS_PREFIX.")
@click.option("--swift-prefix", metavar="URL", help="Store in OpenStack Swift; over WALE_SWIFT_PREFIX.")
@click.option("-k", "--aws-access-key-id", metavar="ID", help="Key id for S3; over AWS_ACCESS_KEY_ID.")
@click.option("--aws-instance-profile", is_flag=True, help="Take S3 credentials from the instance's metadata.")
@click.option("-a", "--wabs-account-name", metavar="NAME", help="Account for Azure; over WABS_ACCOUNT_NAME.")
@click.option("--gpg-key-id", metavar="KEY", help="Encrypt for this key; over WALE_GPG_KEY_ID.")
@click.option("--terse", is_flag=True, help="Log warnings and errors only.")
@click.pass_context
def wal_e(context: click.Context, /, **options: object) -> None:
    """Continuous archiving for PostgreSQL: base backups and WAL, and back to any point in time.

    archive_command = 'wal-e wal-push %p', restore_command = 'wal-e wal-fetch %f %p', and backup-push
    from cron. Options of wal-e itself come before the verb.
    """
    texts = {name: "1" if value is True else str(value) for name, value in options.items() if value}
    settings = settings_of(texts)
    quiet = bool(options["terse"]) or context.invoked_subcommand in _QUIET_VERBS
    log.configure(settings, "warning" if quiet else "info")
    context.obj(settings)
    context.obj = Context(settings, texts)


@wal_e.command("version")
def version() -> None:
    """Print the version."""
    show(f"{__version__}\n")


def _usage_hint(error: click.UsageError) -> str:
    context = error.ctx
    if context is None:
        return ""
    hint = f"The call is: {' '.join([context.command_path, *context.command.collect_usage_pieces(context)])}. See {context.command_path} --help."
    if isinstance(error, click.NoSuchOption) and any(error.option_name in one.opts for one in wal_e.params) and context.parent:
        return f"{error.option_name} is an option of wal-e itself, and stands before the verb. {hint}"
    return hint


def run(argv: list[str], remember: Callable[[Settings], None]) -> int:
    """Run a command line; ``remember`` is told the settings as soon as there are any.

    Return the exit status. Raises: WaleError, for the launcher to map.
    """
    try:
        with wal_e.make_context("wal-e", list(argv), obj=remember) as context:
            wal_e.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else str(error), err=True)
        return UsageError.status
    except click.ClickException as error:
        hint = _usage_hint(error) if isinstance(error, click.UsageError) else ""
        message = error.format_message()
        raise UsageError(message[:1].lower() + message[1:].rstrip("."), "", hint) from None
    except click.Abort:
        raise KeyboardInterrupt from None
    return 0
