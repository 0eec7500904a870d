"""What `execute` starts: runs the program that it reads, confined, and exits with 0 if it passed.

It imports nothing of this project. What it confines with, limits and Python's audit hook, every
POSIX system has.
"""

import contextlib
import os
import posix
import resource
import sys
import types

# Of memory and files in bytes; the seconds are an argument
LIMITS = {"AS": 1 << 30, "FSIZE": 4 << 20, "NPROC": 0, "CORE": 0}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What Python tells a hook of before it happens
FORBIDDEN = tuple(
    "os.fork os.exec os.spawn os.posix_spawn os.system os.kill subprocess pty socket ctypes "
    "signal. resource. syslog os.chmod os.chown os.utime os.fchdir os.setxattr".split()
)
CHANGES = "os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.truncate os.chdir".split()


def add_hook():
    """Refuse what Python itself opens to write outside this folder, changes there, and starts."""
    folder, real, decode = os.path.realpath(os.getcwd()), os.path.realpath, os.fsdecode

    def outside(path):
        known = isinstance(path, (str, bytes))
        return known and not (real(decode(path)) + "/").startswith(folder + "/")

    def hook(event, arguments):
        if event.startswith(FORBIDDEN):
            raise PermissionError(event + " is not allowed here")
        changed = list(arguments) if event in CHANGES else []
        if event == "sqlite3.connect":
            changed.append(arguments[0])
        # An open folder would let paths begin there, which no later event tells
        if event == "open" and (arguments[2] & WRITING or os.path.isdir(arguments[0])):
            changed.append(arguments[0])
        if any(map(outside, changed)):
            raise PermissionError("only the program's own folder may change")

    sys.addaudithook(hook)


def run(source):
    """Run a program and end this process: with 0 only behind the program's last line.

    A program that ends itself can't do that, as no function that it finds exits with a status.
    """
    leave = os._exit
    del os._exit, posix._exit
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    try:
        exec(compile(source, "program", "exec"), vars(main))
    except BaseException:
        leave(1)
    leave(0)


def start(seconds):
    """Confine this process, then run the program that stands in stdin."""
    source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    os.closerange(3, 1 << 10)
    for name, value in (LIMITS | {"CPU": seconds}).items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    add_hook()
    run(source)


if __name__ == "__main__":
    start(int(sys.argv[1]))
