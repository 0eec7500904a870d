"""Run a program that a model wrote, in a process of its own with limits. NO SECURITY SANDBOX.

The limits end accidents: endless loops, memory hogs, files outside the program's own empty folder,
new processes, connections. A program passes if its process exits with status 0, which only what
follows its last line can do. A program that means harm can get around them, so nothing is run
unless the user says `--allow-code-execution`; run models that you do not trust inside a container
or virtual machine that has nothing to lose.
"""

import contextlib
import functools
import os
import signal
import sys
import tempfile
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired

from evaluation import confined
from support.terminal import BadInput


def run_program(source, seconds=5.0):
    """Run Python source -> "passed" if it ran to its end, else "failed" or "timed out".

    Raises BadInput where the system has no such limits (Windows).
    """
    if os.name != "posix":
        raise BadInput("only POSIX systems (Linux, macOS, WSL) can limit the programs they run")
    # -I keeps the folder and the user's packages out of its imports.
    command = [sys.executable, "-I", confined.__file__, str(int(seconds) + 1)]
    with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as folder:
        # No variables of ours but a PATH; a session of its own, so that all that it may have
        # started ends with it.
        env = {"PATH": os.defpath, "PYTHONHASHSEED": "0", "TMPDIR": folder}
        own = {"cwd": folder, "env": env, "start_new_session": True}
        child = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, **own)
        try:
            said, _ = child.communicate(source.encode("utf-8", "surrogatepass"), timeout=seconds)
            for line in said.decode(errors="replace").splitlines():
                warn(line)
            return "passed" if child.returncode == 0 else "failed"
        except TimeoutExpired:
            return "timed out"
        finally:
            # The child and whatever it left behind, unless they are gone already.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


@functools.cache
def warn(line):
    """Say once what this system can't keep from the programs."""
    print(f"note: programs run {line}", file=sys.stderr)
