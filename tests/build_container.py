"""A process that runs programs in the sandbox under a seccomp filter of its own, as in a container."""

import json
import os
import subprocess
import sys

from slm_edge.benchmarks.sandbox.syscalls import number_of

IN_CONTAINER = """
import ctypes, json, struct, sys
refused, programs = json.loads(sys.argv[1]), json.loads(sys.argv[2])
steps = [(0x20, 0, 0, 0)]
for number in refused:
    steps += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]
steps.append((0x06, 0, 0, 0x7FFF0000))
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
header = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
c = ctypes.CDLL(None)
assert c.prctl(38, 1, 0, 0, 0) == 0 and c.prctl(22, 2, ctypes.byref(header), 0, 0) == 0
from slm_edge.benchmarks.sandbox import sandbox as code_sandbox
from slm_edge.edge.errors import UnsupportedError
limits = code_sandbox.Limits(cpu_s=1, wall_s=float(sys.argv[3]), memory_bytes=256 << 20, file_bytes=1 << 16)
found = []
for program in programs:
    try:
        verdict = code_sandbox.run_program(program, ["assert f(1) == 2"], limits=limits)
        found.append([verdict.passed, verdict.reason, verdict.layers])
    except UnsupportedError as error:
        found.append([None, str(error), []])
code_sandbox.allow_unsafe()
found.append(code_sandbox.run_program(programs[0], ["assert f(1) == 2"], limits=limits).passed)
print(json.dumps(found))
"""


def container_command(refused, programs, wall_s=60.0):
    """The command that runs the programs where the calls with these numbers are refused with EPERM."""
    return [sys.executable, "-c", IN_CONTAINER, json.dumps(refused), json.dumps(programs), str(wall_s)]


def unshare_number():
    """The number of the call that makes namespaces."""
    return number_of("unshare", os.uname().machine)


def in_container(also_refused, programs):
    """What becomes of each program where no namespace can be had."""
    command = container_command([unshare_number(), *also_refused], programs)
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
