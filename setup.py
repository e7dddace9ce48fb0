"""All about the package is in pyproject.toml; this lets type checkers see an editable install too.

`pip install -e .` hands out the checkout by an import hook, which mypy does not run. The wheel made for it therefore
also gets a .pth file that names `.typing/installed`, where the checkout stands as a package of stubs.

Where a C++ compiler is there, the library of edge/prompt_kernels is built too; without one, or with SLM_EDGE_KERNELS=0,
the wheel is one for every machine and prompts are computed by llama.cpp's own kernels.
"""

import base64
import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

NAME = "slm_edge_types.pth"
KERNELS = "prompt_kernels.so"


class BuildPy(build_py):
    def find_package_modules(self, package: str, package_dir: str) -> list[tuple[str, str, str]]:
        # The root package lies beside this file, which is no part of it.
        return [row for row in super().find_package_modules(package, package_dir) if row[1] != "setup"]


class EditableWheel(editable_wheel):
    def run(self) -> None:
        super().run()
        for wheel in Path(self.dist_dir).glob("slm_edge-*editable*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                files = {info: archive.read(info) for info in archive.infolist()}
            added = f"{Path(__file__).resolve().parent / '.typing' / 'installed'}\n".encode()
            digest = base64.urlsafe_b64encode(hashlib.sha256(added).digest()).decode().rstrip("=")
            with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(NAME, added)
                for info, data in files.items():
                    row = f"{NAME},sha256={digest},{len(added)}\n".encode()
                    archive.writestr(info, row + data if info.filename.endswith(".dist-info/RECORD") else data)


class BuildExt(build_ext):
    """No module of Python's but a library of C functions, so it is one file for every Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], KERNELS))

    def build_extension(self, ext: Extension) -> None:
        out = Path(self.get_ext_fullpath(ext.name))
        build = Path(__file__).resolve().parent / "edge" / "prompt_kernels" / "build.py"
        done = subprocess.run([sys.executable, build, out], capture_output=True, encoding="utf-8", errors="replace")
        if done.returncode:
            self.warn(f"{done.stderr.strip()}\nprompts will be computed by llama.cpp's own kernels")


class BdistWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        built = self.bdist_dir and Path(self.bdist_dir).is_dir() and any(Path(self.bdist_dir).rglob(KERNELS))
        return "py3", "none", super().get_tag()[2] if built else "any"


wanted = os.environ.get("SLM_EDGE_KERNELS") != "0"
setup(
    cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel, "build_ext": BuildExt, "bdist_wheel": BdistWheel},
    ext_modules=[Extension("slm_edge.edge.prompt_kernels.prompt_kernels", [], optional=True)] if wanted else [],
)
