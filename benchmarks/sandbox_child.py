"""The inside of the sandbox: a script, run in a fresh interpreter by `code_sandbox`; it imports nothing of slm_edge.

    python -s -S -P -B sandbox_child.py < job.json > result        (job: nonce, setup, program, tests, limits)

It confines itself, runs the program, the set-up code and then each test, and only after the last one writes
`ok <nonce>`.
What it needs after untrusted code has run is bound to local names before: a patched builtin changes nothing.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import struct
import sys
from types import CodeType, ModuleType
from typing import Any

_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 4, 38, 22
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC, _CLONE_THREAD = 0x10000000, 0x40000000, 0x08000000, 0x00010000
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1 << 1, 1 << 2, 1 << 3
# Landlock's file rights known to each ABI: Linux Documentation/userspace-api/landlock.rst
_FS_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}

# arch word of seccomp_data, syscall of plain threads, clone3, and what is refused: new processes, programs, sockets,
# signals to others, tracing, new namespaces, mounts, raised limits (Linux, asm/unistd.h of each architecture)
_SYSCALLS: dict[str, tuple[int, int, int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E, 56, 435,
        (57, 58, 59, 322, 41, 62, 200, 234, 129, 297, 424, 434, 101, 310, 311, 272, 308, 165, 321, 425, 298, 160, 302),
    ),
    "aarch64": (
        0xC00000B7, 220, 435,
        (221, 281, 198, 129, 130, 131, 138, 240, 424, 434, 117, 270, 271, 97, 268, 40, 280, 425, 241, 164, 261),
    ),
}  # fmt: skip


def _limit(name: str, value: int, hard: int | None = None) -> None:
    # Not every system has every limit: macOS refuses RLIMIT_AS
    with contextlib.suppress(AttributeError, ValueError, OSError):
        resource.setrlimit(getattr(resource, name), (value, value if hard is None else hard))


def _namespaces(libc: Any) -> bool:
    """A user namespace without any mapped user, and a network without any interface."""
    return bool(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0)


def _landlock(libc: Any, folder: str) -> bool:
    """Files: the standard library and system libraries can be read, `folder` read and written, nothing else opened."""
    abi = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    rights = _FS_RIGHTS[min(abi, 5)]
    attributes = struct.pack("=QQ", rights, 3 if abi >= 4 else 0)
    ruleset = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(16 if abi >= 4 else 8), 0)
    if ruleset < 0:
        return False
    readable = [os.path.dirname(os.__file__), "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime"]  # noqa: PTH120
    rules = [(path, _FS_READ_FILE | _FS_READ_DIR) for path in readable]
    rules += [("/dev/urandom", _FS_READ_FILE), ("/dev/null", _FS_READ_FILE | _FS_WRITE_FILE), (folder, rights)]
    for path, allowed in rules:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):  # noqa: PTH112
            allowed &= _FS_READ_FILE | _FS_WRITE_FILE
        if libc.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, handle), 0) != 0:
            return False
        os.close(handle)
    done = bool(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0)
    os.close(ruleset)
    return done


def _seccomp(libc: Any) -> bool:
    """Refuses the system calls of `_SYSCALLS` (EPERM). clone3 "does not exist": threads use clone then."""
    known = _SYSCALLS.get(platform.machine())
    if known is None or struct.calcsize("P") != 8:
        return False
    arch, clone, clone3, refused = known
    load, equal, any_bit, at_least, give = 0x20, 0x15, 0x45, 0x35, 0x06
    kill, allow, denied, missing = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026
    program = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, kill), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, denied)]
    for number in refused:
        program += [(equal, 0, 1, number), (give, 0, 0, denied)]
    program += [(equal, 0, 1, clone3), (give, 0, 0, missing)]
    program += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 1, 0, _CLONE_THREAD), (give, 0, 0, denied)]
    program += [(give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(code)))
    return bool(libc.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(header), 0, 0) == 0)


def confine(limits: dict[str, int], folder: str) -> list[str]:
    """Takes away from this process what a function under test doesn't need; the names of the layers in force."""
    layers = ["rlimits"]
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", limits["file_bytes"])
    _limit("RLIMIT_NOFILE", limits["files"])
    _limit("RLIMIT_AS", limits["memory_bytes"])
    _limit("RLIMIT_CPU", limits["cpu_s"], limits["cpu_s"] + 1)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if _namespaces(libc):
            layers.append("network")
        libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            if _landlock(libc, folder):
                layers.append("files")
            if _seccomp(libc):
                layers.append("syscalls")
    if "syscalls" not in layers:
        _limit("RLIMIT_NPROC", 0)
    return layers


def main() -> None:
    """Runs one job. Exit status 0 with `ok <nonce>` written is the only success."""
    job = json.loads(sys.stdin.read())
    result = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nothing, handle)
    os.close(nothing)
    sys.stdin, sys.argv = open(0, encoding="utf-8", closefd=False), ["program.py"]  # noqa: SIM115
    nonce = job.pop("nonce")
    write, leave, execute, name_of, text_of = os.write, os._exit, exec, type, str
    # A module of its own: dataclasses and pickle look a class's module up by name
    module = ModuleType("__main__")
    space = module.__dict__
    sys.modules["__main__"] = module
    layers = confine(job["limits"], job["folder"])
    write(result, f"layers {' '.join(layers)}\n".encode())
    stage = "program"
    try:
        setup = compile(job["setup"], "<setup>", "exec")
        tests: list[CodeType] = [compile(test, "<test>", "exec") for test in job["tests"]]
        execute(compile(job["program"], "<program>", "exec"), space)
        stage = "setup"
        execute(setup, space)
        stage = "test"
        for test in tests:
            execute(test, space)
    except BaseException as error:  # noqa: BLE001 - SystemExit of the program included
        words = f"{stage}: {name_of(error).__name__}: {text_of(error)}"[:300].replace("\n", " ")
        write(result, words.encode("utf-8", "replace"))
        leave(1)
    write(result, f"ok {nonce}\n".encode())
    leave(0)


if __name__ == "__main__":
    main()
