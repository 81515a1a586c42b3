"""The launcher: what runs before anything is imported, and what every ending goes through.

Three ways from here. ``version`` needs nothing. The command lines of ``wal_e.cli.fast`` run on
blocking calls, without click and without gevent. Everything else patches the process for
gevent, before any other import, and goes to click. On the way back, every escape is mapped
to an exit status; a signal that asked for the end becomes the cause of death.
"""

from __future__ import annotations

import os
import sys

from wal_e.errors import EXIT_NEVER, Terminated, WaleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sys import UnraisableHookArgs
    from types import FrameType
    from typing import NoReturn

    from wal_e.cli.fast import FastCommand
    from wal_e.pipeline.process import Waits
    from wal_e.settings import Settings

MAX_PUSH_STATUS = 125  # above it, the archiver process dies and pg_stat_archiver counts no failure


def main() -> NoReturn:
    """Run the command line of this process and end it; the console script."""
    _open_standard_descriptors()
    try:
        status = run(sys.argv[1:])
        _flush()
    except Terminated as ended:  # it came when everything was done
        _die_of(ended.signum)
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            pass  # nobody can read it, which is no reason for another status


def run(argv: list[str]) -> int:
    """Run a command line; return its exit status, or die of the signal that ended it."""
    if argv in (["version"], ["--version"]):
        from wal_e import __version__

        return _print(__version__)
    known = _Known()
    try:
        from wal_e.cli import fast

        command = fast.parse(argv)
        if command is not None:
            _run_fast(command, known)
            return 0
        return _run_click(argv, known)
    except Terminated as ended:
        _die_of(ended.signum)
    except KeyboardInterrupt:
        _die_of(2)
    except BaseException as error:
        return _explained(error, argv, known)


class _Known:
    """What was found out before an error, for its exit status."""

    settings: Settings | None = None
    destination = ""


def _run_fast(command: FastCommand, known: _Known) -> None:
    if command.verb == "wal-fetch":
        known.destination = command.positionals[1]
        if command.number > 0 and _is_taken(command):
            return

    from wal_e import log
    from wal_e.cli import run as wal

    settings = known.settings = wal.settings_of(command.options)
    log.configure(settings, "warning")
    if command.verb == "wal-push":
        wanted = wal.Push(command.positionals[0], command.number, "--no-rename" in command.flags)
        wal.wal_push(settings, wanted, lambda others: _many_lanes(settings, wal.push_lanes(settings)) if others else _one_lane())
    elif command.verb == "wal-fetch":
        name, destination = command.positionals
        if wal.promote(name, destination, command.number):
            wal.prefetch_after(settings, name, destination, command.number)
        else:
            wal.wal_fetch(settings, name, destination, command.number, _one_lane())
    else:
        pg_wal, first = command.positionals
        wal.wal_prefetch(settings, pg_wal, first, command.number, _many_lanes(settings, wal.fetch_lanes(command.number)))


def _is_taken(command: FastCommand) -> bool:
    """Take a segment that was prefetched; settings are not read for that, nor anything else."""
    from wal_e.operators.prefetch_directory import take

    return take(*command.positionals)


def _one_lane() -> Waits:
    from wal_e.pipeline.process import Blocking

    _end_main_on_signals()
    return Blocking()


def _many_lanes(settings: Settings, lanes: int) -> Waits:
    """How to wait with several files at once: only where a network is needed, gevent's price is paid."""
    from wal_e.cli import run as wal

    if wal.is_in_files(settings):
        from wal_e.pipeline.side_by_side import SideBySide

        _end_main_on_signals()
        return SideBySide(lanes)
    _patch()
    from wal_e.pipeline.lanes import Cooperative

    _end_main_on_signals_under_gevent()
    return Cooperative(lanes)


def _run_click(argv: list[str], known: _Known) -> int:
    _patch()
    _end_main_on_signals_under_gevent()
    from wal_e.cli import main as cli

    def remember(settings: Settings) -> None:
        known.settings = settings

    return cli.run(argv, remember)


def _patch() -> None:
    """Make blocking calls cooperative; must come before the imports that use them.

    ``os`` stays as it is: gevent's ``os.close`` only promises to close a pipe when the loop next
    runs, which a reader that waits for the end of it never sees. Plug-ins of other packages are not looked for: to read
    what every installed package says of itself takes longer than all the rest.
    """
    from gevent import events, monkey

    events.notify_and_call_entry_points = events.notify
    monkey.patch_all(os=False, signal=False)


def _explained(error: BaseException, argv: list[str], known: _Known) -> int:
    """Log an error and choose its exit status by the verb. Nothing that fails here may be heard."""
    try:
        if isinstance(error, WaleError):
            explained = error
        else:
            import traceback

            explained = WaleError(
                f"internal error: {type(error).__name__}: {error}",
                "".join(traceback.format_exception(error)).rstrip() if os.environ.get("WALE_LOG_LEVEL") == "debug" else _place(error),
                "This is a mistake in wal-e, not in your set-up. WALE_LOG_LEVEL=debug shows where; please report it.",
            )
        verb = next((word for word in argv if word in ("wal-fetch", "wal-push", "wal-prefetch")), "")
        if verb == "wal-fetch":
            from wal_e.operators.wal_fetch import exit_status

            status = exit_status(error, known.destination, known.settings)
        else:
            status = min(explained.status, MAX_PUSH_STATUS)
        _log(explained, verb)
    except BaseException:
        return 200 if "wal-fetch" in argv else EXIT_NEVER
    return status


def _log(error: WaleError, verb: str) -> None:
    """Log an error; a WAL file that is not there is ordinary, and PostgreSQL says so itself."""
    from wal_e.errors import BlobNotFound
    from wal_e.log import Logger

    logger = Logger("wal_e.main")
    if verb == "wal-fetch" and isinstance(error, BlobNotFound):
        logger.info(error.message, error.detail)
    else:
        logger.error(error)


def _place(error: BaseException) -> str:
    """The innermost line of ours that an unexpected error came from."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place = f"It happened in {trace.tb_frame.f_code.co_name}, line {trace.tb_lineno}."
        trace = trace.tb_next
    return place


def _ending_signals() -> list[int]:
    """SIGTERM, SIGHUP, SIGQUIT and, unless the server has it ignored, SIGINT."""
    import signal

    numbers = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGINT]
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


def _end_main_on_signals() -> None:
    """Turn the first ending signal into :class:`Terminated` in the main thread; ignore those after it.

    Python throws away what is raised in a finaliser, an import's own among them: then it is raised again a moment later.
    """
    import signal

    numbers = _ending_signals()

    def end(number: int, _: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        raise Terminated(number)

    def thrown_away(unraisable: UnraisableHookArgs) -> None:
        ended = unraisable.exc_value
        if isinstance(ended, Terminated):
            number = ended.signum
            signal.signal(signal.SIGALRM, lambda _, frame: end(number, frame))
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = thrown_away
    for number in numbers:
        signal.signal(number, end)


def _end_main_on_signals_under_gevent() -> None:
    """The same under gevent: raising in a handler would hit whichever greenlet happens to run."""
    import signal

    import gevent

    main_greenlet = gevent.getcurrent()
    numbers = _ending_signals()

    def end(number: int, _: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        gevent.get_hub().loop.run_callback(gevent.kill, main_greenlet, Terminated(number))

    for number in numbers:
        signal.signal(number, end)


def _die_of(number: int) -> NoReturn:
    """End this process by the signal, as whoever sent it expects; no core file for SIGQUIT."""
    import resource
    import signal

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _print(text: str) -> int:
    try:
        sys.stdout.write(f"{text}\n")
    except (OSError, AttributeError):
        pass
    return 0


def _open_standard_descriptors() -> None:
    """Fill closed descriptors 0 to 2, so that no file of ours becomes somebody's stderr."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


if __name__ == "__main__":
    main()
