"""Run a program that a model wrote, in a process of its own with limits. THIS IS NO SECURITY SANDBOX.

The limits end accidents: endless loops, memory hogs, files outside the program's own empty folder, new processes, connections.
A program that means harm can get around them, so nothing is run unless the user says `--allow-code-execution`; run models that
you do not trust inside a container or virtual machine that has nothing to lose.
"""
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile

from terminal import BadInput

SECONDS, MEGABYTES, FILE_MEGABYTES = 5.0, 1024, 4

# Runs in the child. Limits first, then a hook that Python calls before it opens files, starts processes or connects. Only a
# program that reaches its end makes the child write the token that it was given.
CHILD = r'''
import os, sys
token, source, out = sys.stdin.readline(), sys.stdin.read(), os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
os.set_inheritable(out, False)
import resource
for name, value in (("CPU", SECONDS + 1), ("AS", MEGABYTES << 20), ("FSIZE", FILE_MEGABYTES << 20), ("NPROC", 0), ("CORE", 0)):
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
    except (AttributeError, ValueError, OSError):
        pass  # a system without this limit; time and the hook below still hold
folder = os.path.realpath(os.getcwd())
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = ("os.fork", "os.exec", "os.spawn", "os.posix_spawn", "os.system", "os.kill", "subprocess", "pty", "socket",
             "ctypes", "signal.pthread_kill", "resource.setrlimit", "os.chmod", "os.chown", "os.utime", "os.fchdir")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chdir")

def outside(path, real=os.path.realpath, decode=os.fsdecode):
    return isinstance(path, (str, bytes)) and not (real(decode(path)) + "/").startswith(folder + "/")

def hook(event, arguments):
    if event.startswith(FORBIDDEN):
        raise PermissionError(event + " is not allowed here")
    opens_outside = event == "open" and arguments[2] & WRITING and outside(arguments[0])
    below_a_folder = event in CHANGES and event != "os.truncate" and isinstance(arguments[-1], int) and arguments[-1] >= 0
    if opens_outside or below_a_folder or event in CHANGES and any(map(outside, arguments)):
        raise PermissionError("only the program's own folder may change")

sys.addaudithook(hook)
sys.stdin = open(os.devnull)
exec(compile(source, "program", "exec"), {"__name__": "__main__"})
os.write(out, token.encode())
'''


def run_program(source, seconds=SECONDS, megabytes=MEGABYTES):
    """Run Python source -> "passed" if it ran to its end, else "failed" or "timed out".

    Raises BadInput where the system has no such limits (Windows).
    """
    if os.name != "posix":
        raise BadInput("running programs needs a POSIX system (Linux, macOS, WSL): this one can't limit them")
    token, folder = secrets.token_hex(16), tempfile.mkdtemp(prefix="program-")
    limits = f"SECONDS, MEGABYTES, FILE_MEGABYTES = {int(seconds)}, {megabytes}, {FILE_MEGABYTES}\n"
    try:
        child = subprocess.Popen([sys.executable, "-I", "-c", limits + CHILD], cwd=folder, stdin=subprocess.PIPE, text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
                                 encoding="utf-8", errors="surrogatepass", env={"PATH": os.defpath, "PYTHONHASHSEED": "0", "TMPDIR": folder})
        try:
            said, _ = child.communicate(f"{token}\n{source}", timeout=seconds)
            return "passed" if said == token + "\n" else "failed"
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            try:
                os.killpg(child.pid, signal.SIGKILL)       # the child and whatever it left behind
            except (ProcessLookupError, PermissionError):
                pass                                       # it is gone already
            child.communicate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
