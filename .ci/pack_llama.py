"""Makes a wheel of llama-cpp-python from its source and libraries that were built apart from it.

usage: pack_llama.py SOURCE LIBRARIES OUT ARCHITECTURE
"""

import base64
import hashlib
import re
import sys
import zipfile
from pathlib import Path


def main(source: Path, libraries: Path, out: Path, architecture: str) -> None:
    """Writes `llama_cpp_python-VERSION-py3-none-linux_ARCHITECTURE.whl` into `out`."""
    described = (source / "PKG-INFO").read_bytes()
    found = re.search(rb"^Version: (\S+)$", described, re.MULTILINE)
    assert found is not None
    version = found[1].decode()
    tag = f"py3-none-linux_{architecture}"
    files = {f"llama_cpp/{path.name}": path.read_bytes() for path in sorted((source / "llama_cpp").glob("*.py*"))}
    files["llama_cpp/py.typed"] = b""
    for path in sorted(libraries.glob("*.so*")):
        # The names by which the binding and the libraries ask for each other; of each library one is a file.
        if path.name == "libllama.so" or path.name.startswith("libggml-cpu-") or re.search(r"\.so\.\d+$", path.name):
            files[f"llama_cpp/lib/{path.name}"] = path.resolve().read_bytes()
    assert "llama_cpp/lib/libllama.so" in files, libraries
    # libllama.so is what Python loads, and nothing else asks for it.
    files = {name: data for name, data in files.items() if not re.search(r"libllama\.so\.\d", name)}
    info = f"llama_cpp_python-{version}.dist-info"
    files[f"{info}/METADATA"] = described
    files[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: slm-edge\nRoot-Is-Purelib: false\nTag: {tag}\n".encode()
    files[f"{info}/LICENSE.md"] = (source / "LICENSE.md").read_bytes()
    files[f"{info}/LICENSE.llama.cpp"] = (source / "vendor/llama.cpp/LICENSE").read_bytes()
    rows = []
    wheel = out / f"llama_cpp_python-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            rows.append(f"{name},sha256={digest},{len(data)}\n")
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "".join([*rows, f"{info}/RECORD,,\n"]))
    sys.stdout.write(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
