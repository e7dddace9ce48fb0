"""All about the package is in pyproject.toml; this lets type checkers see an editable install too.

`pip install -e .` hands out the checkout by an import hook, which mypy does not run. The wheel made for it therefore
also gets a .pth file that names `.typing/installed`, where the checkout stands as a package of stubs.
"""

import base64
import hashlib
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

NAME = "slm_edge_types.pth"


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


setup(cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel})
