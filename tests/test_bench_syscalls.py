"""The sandbox's system call numbers are those of the kernel's headers, for each architecture with a compiler here."""

import re
import shutil
import subprocess

import pytest
from slm_edge.benchmarks.sandbox_syscalls import ABSENT, ARCHITECTURES, REFUSED, RULES, seccomp_program

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


def test_an_unknown_machine_has_no_filter():
    assert seccomp_program("riscv64") is None
