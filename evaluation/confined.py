"""What `execute` starts: runs the program that it reads, confined, and exits with 0 if it passed.

It imports nothing of this project. Each way to confine that the system lacks is printed.
"""

import contextlib
import ctypes
import os
import posix
import resource
import sys
import types

# Of memory and files in bytes; the seconds are an argument
LIMITS = {"AS": 1 << 30, "FSIZE": 4 << 20, "NPROC": 0, "CORE": 0}
NEW_USER, NEW_MOUNTS, NEW_IPC, NEW_PIDS, NEW_NET = 1 << 28, 1 << 17, 1 << 27, 1 << 29, 1 << 30
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38  # of prctl
# What Landlock calls opening to write, removing, making, linking and cutting, by its version
WRITES = {1: 0x1FF2, 2: 0x2000, 3: 0x4000}

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# What Python tells a hook of before it happens
FORBIDDEN = tuple(
    "os.fork os.exec os.spawn os.posix_spawn os.system os.kill subprocess pty socket ctypes "
    "signal. resource. syslog os.chmod os.chown os.utime os.fchdir os.setxattr".split()
)
CHANGES = "os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.truncate os.chdir".split()


def own_namespaces(libc):
    """No network and shared memory of others; processes end together; a small disk in memory."""
    user, group, folder = os.getuid(), os.getgid(), os.getcwd()
    checked(libc.unshare(NEW_USER | NEW_MOUNTS | NEW_IPC | NEW_PIDS | NEW_NET))
    for name, text in (("setgroups", "deny"), ("uid_map", user), ("gid_map", group)):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text if name == "setgroups" else f"{text} {text} 1")
    size = b"size=64m,nr_inodes=4096,mode=700"
    checked(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, size))
    os.chdir(folder)


def landlock(libc):
    """No file is written, made or removed but in this folder, whatever library asks for it."""
    create, add, restrict = 444, 445, 446  # the numbers of these calls, on every architecture
    version = checked(libc.syscall(create, None, 0, 1))
    writes = sum(bits for since, bits in WRITES.items() if since <= version)
    rules = checked(libc.syscall(create, (ctypes.c_uint64 * 1)(writes), 8, 0))
    for path, allowed in ((".", writes), ("/dev/null", 2)):
        folder = os.open(path, os.O_PATH)
        beneath = allowed.to_bytes(8, sys.byteorder) + folder.to_bytes(4, sys.byteorder)
        checked(libc.syscall(add, rules, 1, beneath, 0))
        os.close(folder)
    checked(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    checked(libc.syscall(restrict, rules, 0))
    os.close(rules)


def checked(result):
    """What a call of the C library returned. Raises OSError where it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def confine():
    """All that this system offers, one after the other -> the C library."""
    libc = ctypes.CDLL(None, use_errno=True)
    ways = {
        "without namespaces: in reach of network and shared memory": lambda: own_namespaces(libc),
        "without Landlock: libraries in C may write anywhere": lambda: landlock(libc),
    }
    for missing, way in ways.items():
        try:
            if sys.platform != "linux":  # the numbers of its calls mean others elsewhere
                raise OSError("only Linux offers it")
            way()
        except (OSError, AttributeError) as problem:
            print(f"{missing} ({problem})", flush=True)
    return libc


def add_hook():
    """What Python itself opens, changes and starts: all there is where Linux offers no more."""
    folder, real, decode = os.path.realpath(os.getcwd()), os.path.realpath, os.fsdecode

    def outside(path):
        known = isinstance(path, (str, bytes))
        return known and not (real(decode(path)) + "/").startswith(folder + "/")

    def hook(event, arguments):
        if event.startswith(FORBIDDEN):
            raise PermissionError(event + " is not allowed here")
        changes = event in CHANGES
        opens_outside = event == "open" and arguments[2] & WRITING and outside(arguments[0])
        opens_outside |= event == "sqlite3.connect" and outside(arguments[0])
        # a path that counts from an open folder (dir_fd) is not looked at: none may be given
        last = arguments[-1] if arguments else None
        below_a_folder = changes and event != "os.truncate" and isinstance(last, int) and last >= 0
        if opens_outside or below_a_folder or changes and any(map(outside, arguments)):
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
    """Confine this process, run the program in a child and exit as that did."""
    source = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    libc = confine()
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(0 if status == 0 else 1)
    with contextlib.suppress(AttributeError):  # if the parent is killed, so is the program
        libc.prctl(PARENT_DEATH_SIGNAL, 9, 0, 0, 0)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.closerange(3, 1 << 10)
    for name, value in (LIMITS | {"CPU": seconds}).items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not on every system
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    add_hook()
    run(source)


if __name__ == "__main__":
    start(int(sys.argv[1]))
