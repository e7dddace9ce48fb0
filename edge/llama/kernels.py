"""Our products for prompts, which are added to llama.cpp's CPU backend when it is loaded: docs/prompt-kernels.md.

prompt_kernels().name       # "avx512_vnni"
"""

import contextlib
import ctypes
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

LIBRARY: Final = Path(__file__).parent.parent / "prompt_kernels" / "prompt_kernels.so"
# The releases of ggml whose structs the library was written for
GGML_RELEASES: Final = frozenset({"0.25.3"})
# Kinds of machine on which they were measured to be faster; elsewhere they are taken when asked for by name.
MEASURED_ON: Final = frozenset({"x86_64"})
# From so many columns on its products are taken: more than are computed at once of guessed tokens, which must be the
# bits of one token after the other (session/speculation.py).
LEAST_COLUMNS: Final = 9


class PromptKernels(NamedTuple):
    """What computes prompts: the variant of our library, or None, and why; `sha256` of the library."""

    name: str | None
    why: str = ""
    sha256: str | None = None

    @property
    def text(self) -> str:
        """ "avx512_vnni", or "none: not built" """
        return self.name or f"none: {self.why}"


_joined: PromptKernels = PromptKernels(None, "llama.cpp is not loaded")
# The library, which stays mapped: llama.cpp has its addresses.
_library: ctypes.CDLL | None = None


def prompt_kernels() -> PromptKernels:
    """Whether our products for prompts are in use, or why not. Loads llama.cpp."""
    from .binding import lib

    lib()
    return _joined


def join_prompt_kernels(llama_cpp: Any, folder: Path) -> None:
    """Adds our library to the CPU backend, where it is built, fits, and is not switched off by SLM_EDGE_KERNELS=0.

    Args:
        llama_cpp: the binding's module, its backends loaded and no model yet; `folder` has its libraries.
    """
    global _joined
    asked = os.environ.get("SLM_EDGE_KERNELS", "")
    _joined = PromptKernels(None, "SLM_EDGE_KERNELS=0") if asked == "0" else _join(llama_cpp, folder, asked)


@contextlib.contextmanager
def take_from(ours: bool) -> Iterator[None]:
    """For measurements: inside, prompts of this whole process are computed with our products, or with llama.cpp's."""
    if _library is None:
        yield
        return
    _library.prompt_kernels_from(LEAST_COLUMNS if ours else 0)
    try:
        yield
    finally:
        _library.prompt_kernels_from(LEAST_COLUMNS)


def _join(llama_cpp: Any, folder: Path, asked: str) -> PromptKernels:
    global _library
    if not LIBRARY.exists():
        return PromptKernels(None, "not built")
    if not asked and os.uname().machine not in MEASURED_ON:
        return PromptKernels(None, "not measured on this kind of machine; SLM_EDGE_KERNELS=dotprod takes them")
    try:
        version = llama_cpp._lib.ggml_version
        version.restype = ctypes.c_char_p
        release = version().decode()
        if release not in GGML_RELEASES:
            return PromptKernels(None, f"written for ggml {', '.join(sorted(GGML_RELEASES))}, this is {release}")
        base, cpu = llama_cpp._lib, _cpu_backend(llama_cpp, folder)
        types, barrier = cpu._Z39ggml_backend_cpu_get_extra_buffer_typesv, cpu.ggml_barrier
        library = ctypes.CDLL(str(LIBRARY))
        library.prompt_kernels_variant.restype = ctypes.c_char_p
        library.prompt_kernels_tensor_bytes.restype = overhead = ctypes.c_size_t
        base.ggml_tensor_overhead.restype = overhead
        # A tensor and what a context notes of it
        if base.ggml_tensor_overhead() - library.prompt_kernels_tensor_bytes() != 4 * ctypes.sizeof(ctypes.c_size_t):
            return PromptKernels(None, f"this build of ggml {release} has other tensors")
        name = library.prompt_kernels_variant(asked.encode())
        if name is None:
            return PromptKernels(None, f"no {asked} on this CPU" if asked else "none for this CPU")
        addresses = (ctypes.cast(f, ctypes.c_void_p) for f in (types, barrier, base.ggml_backend_buffer_is_host))
        library.prompt_kernels_join(name, *addresses)
        library.prompt_kernels_from(LEAST_COLUMNS)
    except (OSError, AttributeError) as error:
        return PromptKernels(None, f"do not load: {error}")
    _library = library
    return PromptKernels(name.decode(), "", hashlib.sha256(LIBRARY.read_bytes()).hexdigest())


def _cpu_backend(llama_cpp: Any, folder: Path) -> Any:
    """The library of the CPU backend: linked to llama.cpp's, or the one that was chosen of several."""
    if hasattr(llama_cpp._lib, "ggml_barrier"):
        return llama_cpp._lib
    for path in sorted(folder.glob("libggml-cpu-*")):
        try:
            return ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        except OSError:
            continue
    return llama_cpp._lib
