"""How a process of the sandbox takes rights away from itself. Only the standard library; nothing here is undone.

    held = enter_namespaces()          # before the fork whose child is to be process 1
    private_root(...)                  # in that child
    layers = confine(limits, ...)      # last, in every process of the sandbox

Each function tells what the kernel granted. Nothing is taken for granted: what holds is reported and judged outside.
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import stat
import struct
import sys
from collections.abc import Sequence
from typing import Any

from .syscalls import ARCHITECTURES, number_of, packed, seccomp_program

NOBODY = 65534
# Linux, include/uapi/linux/{sched,mount,prctl}.h
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 1, 2, 4, 32
_MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 4096, 16384, 1 << 18, 2
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 4, 38, 22
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_FS_WRITE_FILE, _FS_READ_FILE, _FS_READ_DIR = 1 << 1, 1 << 2, 1 << 3
# Landlock's file rights known to each ABI: Linux Documentation/userspace-api/landlock.rst
_FS_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}


def libc() -> Any:
    """The C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def readable_paths() -> list[str]:
    """What a Python program needs to read: its standard library, the system's libraries, time zones."""
    return [os.path.dirname(os.__file__), "/usr/lib", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/localtime"]  # noqa: PTH120


def die_with_parent(c: Any, number: int = signal.SIGKILL) -> None:
    """The kernel sends this process a signal when its parent ends (Linux). A change of user takes that away again.

    Whoever calls it must then look whether the parent is still there: it may have ended before.
    """
    if sys.platform == "linux":
        c.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def enter_namespaces(c: Any) -> set[str]:
    """Leaves the system's namespaces for new ones; the next child is process 1 of its own.

    Returns:
        What holds: "network" (no interface but a dead loopback), "processes", "mounts". Empty if nothing is granted.
    """
    most = _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    # Root needs no user namespace, and then has a real user to become: nobody
    if os.geteuid() == 0 and c.unshare(most) == 0:
        return {"network", "processes", "mounts"}
    uid, gid = os.geteuid(), os.getegid()
    if c.unshare(_CLONE_NEWUSER | most) == 0:
        try:
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w") as out:  # noqa: PTH123
                    out.write(text)
        except OSError:
            return {"network", "processes"}
        return {"network", "processes", "mounts"}
    if c.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        return {"network"}
    return set()


def _mount(c: Any, source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    if c.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]) != 0:
        raise OSError(ctypes.get_errno(), f"mount {target}")


def private_root(c: Any, folder: str, disk_bytes: int) -> bool:
    """Makes a root of its own: the readable paths, read-only, two devices, and an empty /tmp of `disk_bytes` in memory.

    Args:
        folder: an empty folder to build it on; only this process's mounts change.

    Returns:
        Whether this process now lives in it, with /tmp as its working folder.
    """
    if platform.machine() not in ARCHITECTURES:
        return False
    pivot_root = number_of("pivot_root", platform.machine())
    try:
        _mount(c, None, "/", None, _MS_REC | _MS_PRIVATE)
        _mount(c, "tmpfs", folder, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
        for path in [*readable_paths(), "/dev/null", "/dev/urandom"]:
            if os.path.exists(path):  # noqa: PTH110
                _show(c, folder, path)
        os.makedirs(f"{folder}/tmp", exist_ok=True)  # noqa: PTH103
        options = f"size={disk_bytes},nr_inodes=256,mode=1777"
        _mount(c, "tmpfs", f"{folder}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, options)
        _mount(c, None, folder, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
        os.chdir(folder)
        # The old root ends up over the new one and is then let go: pivot_root(2), "pivot_root(".", ".")"
        if c.syscall(pivot_root, b".", b".") != 0 or c.umount2(b".", _MNT_DETACH) != 0:
            return False
        os.chdir("/tmp")
    except OSError:
        return False
    return True


def _show(c: Any, root: str, path: str) -> None:
    """Binds `path` read-only at the same place below `root`; a link that leads to it is made anew."""
    real = os.path.realpath(path)
    place = root + real
    if not os.path.exists(place):  # noqa: PTH110
        is_folder = os.path.isdir(real)  # noqa: PTH112
        os.makedirs(place if is_folder else os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
        if not is_folder:
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(c, real, place, None, _MS_BIND | _MS_REC)
        flags = os.statvfs(real).f_flag & 0xF
        if not stat.S_ISCHR(os.stat(real).st_mode):  # noqa: PTH116
            flags |= _MS_NODEV
        _mount(c, None, place, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | flags)
    link = root + path
    if real != path and not os.path.lexists(link):
        os.makedirs(os.path.dirname(link), exist_ok=True)  # noqa: PTH103, PTH120
        os.symlink(real, link)  # noqa: PTH211


def become_nobody() -> None:
    """Root becomes a user who owns nothing; for other users nothing changes."""
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)


def _limit(name: str, value: int, hard: int | None = None) -> None:
    # Not every system has every limit: macOS refuses RLIMIT_AS
    with contextlib.suppress(AttributeError, ValueError, OSError):
        resource.setrlimit(getattr(resource, name), (value, value if hard is None else hard))


def _landlock(c: Any, folder: str | None) -> bool:
    """Files: the readable paths can be read, `folder` read and written, nothing else opened."""
    abi = c.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    rights = _FS_RIGHTS[min(abi, 5)]
    attributes = struct.pack("=QQ", rights, 3 if abi >= 4 else 0)
    ruleset = c.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(16 if abi >= 4 else 8), 0)
    if ruleset < 0:
        return False
    rules = [(path, _FS_READ_FILE | _FS_READ_DIR) for path in readable_paths()]
    rules += [("/dev/urandom", _FS_READ_FILE), ("/dev/null", _FS_READ_FILE | _FS_WRITE_FILE)]
    if folder is not None:
        rules.append((folder, rights))
    for path, allowed in rules:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        if not os.path.isdir(path):  # noqa: PTH112
            allowed &= _FS_READ_FILE | _FS_WRITE_FILE
        if c.syscall(_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, handle), 0) != 0:
            return False
        os.close(handle)
    done = bool(c.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0)
    os.close(ruleset)
    return done


def _seccomp(c: Any) -> bool:
    """Refuses system calls, see `syscalls`."""
    steps = seccomp_program(platform.machine())
    if steps is None or struct.calcsize("P") != 8:
        return False
    code = ctypes.create_string_buffer(packed(steps))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    return bool(c.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(header), 0, 0) == 0)


def _drop_capabilities(c: Any) -> None:
    # capset(2): version 3, this process; effective, permitted and inheritable, two words each
    c.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 0, 0, 0, 0, 0, 0))


def confine(c: Any, limits: dict[str, int], folder: str | None, held: Sequence[str]) -> list[str]:
    """Takes away from this process what a function under test doesn't need.

    Args:
        folder: the only place to write; None: nowhere.
        held: what namespaces hold already: of "network", "processes", "root".

    Returns:
        The layers in force, of "rlimits", "network", "files", "root", "processes", "syscalls".
    """
    layers = {"rlimits"}
    _limit("RLIMIT_CORE", 0)
    _limit("RLIMIT_FSIZE", limits["file_bytes"])
    _limit("RLIMIT_NOFILE", limits["files"])
    _limit("RLIMIT_AS", limits["memory_bytes"])
    _limit("RLIMIT_CPU", limits["cpu_s"], limits["cpu_s"] + 1)
    if sys.platform == "linux":
        layers |= set(held)
        c.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
        if "root" in layers:
            layers.add("files")
        if c.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            if _landlock(c, folder):
                layers.add("files")
            _drop_capabilities(c)
            if _seccomp(c):
                layers |= {"syscalls", "network", "processes"}
    if "syscalls" not in layers:
        _limit("RLIMIT_NPROC", 0)
    return sorted(layers)
