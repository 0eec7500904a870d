"""Run a program that a model wrote, in a process of its own with limits. NO SECURITY SANDBOX.

The limits end accidents: endless loops, memory hogs, files outside the program's own empty folder,
new processes, connections. A program passes if its process exits with status 0, which only what
follows its last line can do. A program that means harm can get around them, so nothing is run
unless the user says `--allow-code-execution`; run models that you do not trust inside a container
or virtual machine that has nothing to lose.
"""

import os
import subprocess
import sys
import tempfile
from subprocess import DEVNULL

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
        # No variables of ours but a PATH
        env = {"PATH": os.defpath, "PYTHONHASHSEED": "0", "TMPDIR": folder}
        text = source.encode("utf-8", "surrogatepass")
        how = {"cwd": folder, "env": env, "timeout": seconds, "start_new_session": True}
        try:
            child = subprocess.run(command, input=text, stdout=DEVNULL, stderr=DEVNULL, **how)
        except subprocess.TimeoutExpired:
            return "timed out"
        return "passed" if child.returncode == 0 else "failed"
