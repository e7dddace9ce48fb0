"""Runs a command line of ours again and again and ends it by SIGKILL at random moments, as a power cut does.

with Killer("slm_edge.export.lora.lora") as killer:          # modules that the command needs, imported once
    for _ in killer.kills(200, rng, "export", "lora", …, "-o", out, folder=out.parent):
        …                                               # what is there now must be whole, or not there
    assert killer.run("export", "lora", …, "-o", out) == 0, killer.said()
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Every command is a fork of one process that has imported everything: a kill costs what the command does, not Python's
# start. It kills its own child, which stays a zombie until it is waited for: no other process is ever hit.
_PARENT = """
import importlib, json, os, signal, sys, time
from slm_edge.edge.cli.main import main
for name in sys.argv[2:]:
    importlib.import_module(name)
out = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_APPEND)
print("ready", flush=True)
for line in sys.stdin:
    words, delay_s, folder, in_writing, environment = json.loads(line)
    os.ftruncate(out, 0)
    before = set(os.listdir(folder)) if folder else set()
    began_s, writing_s = time.monotonic(), None
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(environment)
        sys.argv = ["slm-edge", *words]
        main()
    while folder and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if any(name.endswith((".aside", ".part")) for name in set(os.listdir(folder)) - before):
            writing_s = time.monotonic() - began_s
            break
        if delay_s is not None and not in_writing and time.monotonic() - began_s >= delay_s:
            break
        time.sleep(0.001)
    if delay_s is not None:
        time.sleep(delay_s if in_writing else max(0, began_s + delay_s - time.monotonic()))
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, time.monotonic() - began_s, writing_s]), flush=True)
"""


class Killer:
    """The process that runs commands; it ends with the block.

    Attributes:
        n_killed, n_done: how many of the commands that were to be killed were, and how many were faster.
        n_killed_writing: how many of them had begun to write.
    """

    def __init__(self, *modules):
        self._modules = modules
        self.n_killed = self.n_done = self.n_killed_writing = 0

    def __enter__(self):
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self._out = Path(name)
        command = [sys.executable, "-c", _PARENT, name, *self._modules]
        self._parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._parent.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_):
        self._parent.stdin.close()
        self._parent.wait()
        self._parent.stdout.close()
        self._out.unlink()

    def _run(self, words, delay_s=None, folder=None, in_writing=False):
        """Exit code, seconds until its end, seconds until something new was written in the folder (or None)."""
        order = [[*map(str, words)], delay_s, folder and str(folder), in_writing, dict(os.environ)]
        self._parent.stdin.write(json.dumps(order) + "\n")
        self._parent.stdin.flush()
        return json.loads(self._parent.stdout.readline())

    def run(self, *words):
        """Runs a command to its end; gives its exit code. The environment is the caller's, here and below."""
        return self._run(words)[0]

    def said(self):
        """What the last command wrote on stdout and stderr."""
        return self._out.read_text(errors="replace")

    def kills(self, n, rng, *words, folder, undo=lambda: None):
        """Runs a command whole, `undo`es it, then n times up to a moment within the time that it took.

        Every other moment is one after it began to write.

        Args:
            folder: where it writes.

        Yields:
            After the whole run and after each kill.
        """
        code, whole_s, reading_s = self._run(words, folder=folder)
        assert code == 0, self.said()
        assert reading_s is not None
        yield
        for i in range(n):
            undo()
            longest_s = whole_s - reading_s if i % 2 else whole_s
            code, _, writing_s = self._run(words, float(rng.uniform(0, longest_s)), folder, bool(i % 2))
            assert code in (0, -9), self.said()
            self.n_killed += code != 0
            self.n_done += code == 0
            self.n_killed_writing += code != 0 and writing_s is not None
            yield
