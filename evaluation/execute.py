"""Run a program that a model wrote, in a process of its own with limits. NO SECURITY SANDBOX.

The limits end accidents: endless loops, memory hogs, files outside the program's own empty folder,
new processes, connections. A program that means harm can get around them, so nothing is run unless
the user says `--allow-code-execution`; run models that you do not trust inside a container or
virtual machine that has nothing to lose.
"""

import contextlib
import os
import secrets
import signal
import sys
import tempfile
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

from support.terminal import BadInput

LIMITS = {"AS": 1 << 30, "FSIZE": 4 << 20, "NPROC": 0, "CORE": 0}  # of memory and files in bytes

# Runs in the child. Limits first, then a hook that Python calls before it opens files, starts
# processes or connects. Only a program that reaches its end makes the child write the token that
# it was given.
CHILD = r"""
import os, sys
token, source, out = sys.stdin.readline(), sys.stdin.read(), os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
os.set_inheritable(out, False)
import resource
for name, value in LIMITS.items():
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    except (AttributeError, ValueError, OSError):
        pass  # a system without this limit; time and the hook below still hold
folder = os.path.realpath(os.getcwd())
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = tuple(
    "os.fork os.exec os.spawn os.posix_spawn os.system os.kill subprocess pty socket ctypes "
    "signal.pthread_kill resource.setrlimit os.chmod os.chown os.utime os.fchdir".split()
)
CHANGES = "os.remove os.rename os.rmdir os.mkdir os.link os.symlink os.truncate os.chdir".split()

def outside(path, real=os.path.realpath, decode=os.fsdecode):
    known = isinstance(path, (str, bytes))
    return known and not (real(decode(path)) + "/").startswith(folder + "/")

def hook(event, arguments):
    if event.startswith(FORBIDDEN):
        raise PermissionError(event + " is not allowed here")
    changes = event in CHANGES
    opens_outside = event == "open" and arguments[2] & WRITING and outside(arguments[0])
    # a path that counts from an open folder (dir_fd) is not looked at: none may be given
    last = arguments[-1] if arguments else None
    below_a_folder = changes and event != "os.truncate" and isinstance(last, int) and last >= 0
    if opens_outside or below_a_folder or changes and any(map(outside, arguments)):
        raise PermissionError("only the program's own folder may change")

sys.addaudithook(hook)
sys.stdin = open(os.devnull)
exec(compile(source, "program", "exec"), {"__name__": "__main__"})
os.write(out, token.encode())
"""


def run_program(source, seconds=5.0):
    """Run Python source -> "passed" if it ran to its end, else "failed" or "timed out".

    The token is a secret of this run, so a program that merely exits early can't claim success.
    Raises BadInput where the system has no such limits (Windows).
    """
    if os.name != "posix":
        raise BadInput("only POSIX systems (Linux, macOS, WSL) can limit the programs they run")
    token = secrets.token_hex(16).encode() + b"\n"
    limits = LIMITS | {"CPU": int(seconds) + 1}
    # -I keeps the folder and the user's packages out of its imports.
    command = [sys.executable, "-I", "-c", f"LIMITS = {limits}{CHILD}"]
    with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as folder:
        # No variables of ours but a PATH; a session of its own, so that all that it may have
        # started ends with it.
        env = {"PATH": os.defpath, "PYTHONHASHSEED": "0", "TMPDIR": folder}
        own = {"cwd": folder, "env": env, "start_new_session": True}
        child = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, **own)
        try:
            said, _ = child.communicate(token + source.encode("utf-8", "surrogatepass"), seconds)
            return "passed" if said == token else "failed"
        except TimeoutExpired:
            return "timed out"
        finally:
            # The child and whatever it left behind, unless they are gone already.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
