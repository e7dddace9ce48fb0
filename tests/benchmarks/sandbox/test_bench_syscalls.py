"""The sandbox's system call numbers are those of the kernel's headers, for each architecture with a compiler here."""

import re
import shutil
import struct
import subprocess

import pytest
from slm_edge.benchmarks.sandbox.syscalls import ABSENT, ARCHITECTURES, REFUSED, RULES, seccomp_program

NAMED = {**REFUSED, **ABSENT, **{rule.name: rule.numbers for rule in RULES}}
HEADERS = "#include <asm/unistd.h>\n#include <linux/audit.h>\n#include <fcntl.h>\n#include <linux/sched.h>\n"


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_numbers_are_the_headers(machine):
    compiler = shutil.which(f"{machine}-linux-gnu-gcc")
    if compiler is None:
        pytest.skip(f"no compiler for {machine}")
    source = HEADERS + "".join(f"\n#ifdef __NR_{name}\nIS its_{name} __NR_{name}\n#endif" for name in NAMED)
    constants = (f"AUDIT_ARCH_{machine.upper()}", "F_SETOWN", "O_TRUNC", "CLONE_THREAD")
    source += "".join(f"\nIS its_{name} {name}\n" for name in constants)
    command = [compiler, "-E", "-P", "-D_GNU_SOURCE", "-x", "c", "-"]
    out = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    found = dict(re.findall(r"^IS its_(\w+) (.*)$", out, re.MULTILINE))
    # C octal, and the ELF machine with its bits
    values = {name: eval(re.sub(r"\b0+(?=\d)", "0o", text)) for name, text in found.items()}
    column, audit_arch = ARCHITECTURES[machine]
    assert [values.pop(name) for name in constants] == [audit_arch, 8, 0o1000, 0x10000]
    assert values == {name: numbers[column] for name, numbers in NAMED.items() if numbers[column] is not None}
    assert max(values.values()) < 451


def verdict_of(machine, number, *arguments, arch=None):
    """What the kernel's interpreter would answer: the classic BPF instructions of the filter, one by one."""
    audit_arch = ARCHITECTURES[machine][1] if arch is None else arch
    data = struct.pack("<IIQ6Q", number, audit_arch, 0, *arguments, *[0] * (6 - len(arguments)))
    steps, at, value = seccomp_program(machine), 0, 0
    while True:
        code, if_true, if_false, operand = steps[at]
        at += 1
        if code == 0x20:
            value = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            value &= operand
        elif code == 0x06:
            return {0x80000000: "kill", 0x7FFF0000: "allow", 0x00050001: "EPERM", 0x00050026: "ENOSYS"}[operand]
        else:
            holds = {0x15: value == operand, 0x35: value >= operand}[code]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_the_filter_decides_as_meant(machine):
    column = ARCHITECTURES[machine][0]

    def of(name, *arguments):
        return verdict_of(machine, NAMED[name][column], *arguments)

    assert {of(name) for name, numbers in REFUSED.items() if numbers[column] is not None} == {"EPERM"}
    assert {of(name) for name in ABSENT} == {verdict_of(machine, 451), verdict_of(machine, 0x40000001)} == {"ENOSYS"}
    assert verdict_of(machine, 0, arch=ARCHITECTURES[{"x86_64": "aarch64", "aarch64": "x86_64"}[machine]][1]) == "kill"
    # read, write, futex, exit_group, getrandom
    plain = {"x86_64": (0, 1, 202, 231, 318), "aarch64": (63, 64, 98, 94, 278)}[machine]
    assert {verdict_of(machine, number) for number in plain} == {"allow"}
    assert (of("clone", 0x3D0F00), of("clone", 0x1200011)) == ("allow", "EPERM")
    set_flags, set_owner, set_signal, duplicate = 4, 8, 10, 1030
    found = [of("fcntl", 3, command) for command in (set_flags, duplicate, set_owner, set_signal)]
    assert found == ["allow", "allow", "EPERM", "EPERM"]
    # AT_FDCWD; read, write and cut, read and cut
    found = [of("openat", 0xFFFFFF9C, 0, flags) for flags in (0o2000000, 0o2001101, 0o1000)]
    assert found == ["allow", "allow", "EPERM"]


def test_an_unknown_machine_has_no_filter():
    assert seccomp_program("riscv64") is None
