"""Which system calls a program in the sandbox may not make, as a seccomp filter. Only the standard library.

    program = seccomp_program(platform.machine())    # instructions for prctl(PR_SET_SECCOMP), or None

What is refused reaches beyond the process or its folder: new processes and programs, sockets, signals to others,
tracing, namespaces, mounts, limits, what Landlock leaves open of files (modes, owners, times, truncation by path,
watching), and memory that no limit counts. Calls younger than this list do not exist here.
"""

import struct
from typing import Final, NamedTuple

# Numbers from asm/unistd.h of Linux: x86_64, aarch64 (None: the architecture has no such call)
REFUSED: Final[dict[str, tuple[int | None, int | None]]] = {
    # new processes and programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # sockets
    "socket": (41, 198), "socketpair": (53, 199),
    # signals to others, other processes' memory, speed and limits, leaving the session
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "setpgid": (109, 154), "setsid": (112, 157), "prctl": (157, 167), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "kcmp": (312, 272), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "setpriority": (141, 140), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274), "sched_setaffinity": (203, 122), "ioprio_set": (251, 30),
    "setrlimit": (160, 164), "prlimit64": (302, 261),
    # namespaces, mounts, the kernel's own machines
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "bpf": (321, 280),
    "io_uring_setup": (425, 425), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "syslog": (103, 116),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # memory that no limit counts, and that of others
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # what Landlock does not ask about (truncate: before Linux 6.2), or not yet
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
}  # fmt: skip
# "Does not exist": the C library then takes an older call, which the rules below can look into
ABSENT: Final[dict[str, tuple[int | None, int | None]]] = {"clone3": (435, 435), "openat2": (437, 437)}
FIRST_UNKNOWN: Final = 451


class Rule(NamedTuple):
    """A call that is refused for some values of one argument: where `argument & mask` is one of `values`."""

    name: str
    numbers: tuple[int | None, int | None]
    argument: int
    mask: int
    values: tuple[int, ...]


_CLONE_THREAD, _O_TRUNC, _O_ACCMODE = 0x00010000, 0o1000, 3
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX = 8, 10, 15
RULES: Final = (
    # Threads are no new processes
    Rule("clone", (56, 220), 0, _CLONE_THREAD, (0,)),
    # A file may be told to signal any process of the same user, with any signal
    Rule("fcntl", (72, 25), 1, 0xFFFFFFFF, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX)),
    # Landlock before Linux 6.2 takes a file that is cut and opened to be read for one that is read
    Rule("open", (2, None), 1, _O_TRUNC | _O_ACCMODE, (_O_TRUNC,)),
    Rule("openat", (257, 56), 2, _O_TRUNC | _O_ACCMODE, (_O_TRUNC,)),
)
# uname's machine -> column of the numbers, AUDIT_ARCH of linux/audit.h (ELF machine, 64 bits, little-endian)
ARCHITECTURES: Final[dict[str, tuple[int, int]]] = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# linux/bpf_common.h, linux/seccomp.h; EPERM is 1, ENOSYS 38
_LOAD, _AND, _EQUAL, _AT_LEAST, _GIVE = 0x20, 0x54, 0x15, 0x35, 0x06
_KILL, _ALLOW, _DENIED, _MISSING = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026


def number_of(name: str, machine: str) -> int:
    """A refused call's number on a known machine."""
    number = REFUSED[name][ARCHITECTURES[machine][0]]
    assert number is not None
    return number


def seccomp_program(machine: str) -> list[tuple[int, int, int, int]] | None:
    """The filter as (code, jump if true, jump if false, value); None for a machine that is not known."""
    if machine not in ARCHITECTURES:
        return None
    column, audit_arch = ARCHITECTURES[machine]
    # struct seccomp_data: the number at 0, the architecture at 4, six arguments of 8 bytes from 16 on
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit_arch), (_GIVE, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    # x32's calls, which begin at 0x40000000, are among these
    steps += [(_AT_LEAST, 0, 1, FIRST_UNKNOWN), (_GIVE, 0, 0, _MISSING)]
    for numbers, answer in [(n, _DENIED) for n in REFUSED.values()] + [(n, _MISSING) for n in ABSENT.values()]:
        number = numbers[column]
        if number is not None:
            steps += [(_EQUAL, 0, 1, number), (_GIVE, 0, 0, answer)]
    for rule in RULES:
        number = rule.numbers[column]
        if number is None:
            continue
        inside = [(_LOAD, 0, 0, 16 + 8 * rule.argument), (_AND, 0, 0, rule.mask)]
        for value in rule.values:
            inside += [(_EQUAL, 0, 1, value), (_GIVE, 0, 0, _DENIED)]
        inside.append((_GIVE, 0, 0, _ALLOW))
        steps += [(_EQUAL, 0, len(inside), number), *inside]
    return [*steps, (_GIVE, 0, 0, _ALLOW)]


def packed(steps: list[tuple[int, int, int, int]]) -> bytes:
    """The steps as an array of struct sock_filter."""
    return b"".join(struct.pack("=HBBI", *step) for step in steps)
