"""Become a program of another user, in a session of its own, that does not outlive whoever started it.

Run as a file by itself, by ``python -I -S``, so it imports nothing of ours, needs no installed package, and
nothing in the current directory can come in its way. PostgreSQL refuses to run as root, and a server whose
starter was killed would go on for ever: the kernel then sends it a signal (``PR_SET_PDEATHSIG`` in prctl(2)).
"""

import os
import signal
import sys

FREE = 0  # in place of a signal: live on

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def command(argv: tuple[str, ...], end_signal: int, uid: int, gid: int) -> tuple[str, ...]:
    """The command line that becomes ``argv`` as that user, ended by the signal when this process ends."""
    return (sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), str(end_signal), str(uid), str(gid), *argv)


def _become(parent: int, end_signal: int, uid: int, gid: int, argv: list[str]) -> None:
    os.setsid()
    if os.geteuid() == 0 and uid != 0:
        _change_user(uid, gid)
    os.umask(0o077)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, programs must not inherit that
        signal.signal(number, signal.SIG_DFL)
    if end_signal != FREE:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, end_signal)  # after the change of user, which takes it away
        if os.getppid() != parent:
            sys.exit(1)  # it died before it could be asked for
    try:
        os.execv(argv[0], argv)
    except OSError as error:
        sys.exit(f"{argv[0]} cannot be started: {error.strerror}")


def _change_user(uid: int, gid: int) -> None:
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except KeyError:  # files may belong to a user of another host
        os.setgroups([])
    else:
        os.initgroups(entry.pw_name, gid)
        os.environ |= {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
    os.setgid(gid)
    os.setuid(uid)
    os.chdir("/")


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
