"""The door to llama.cpp: its low-level binding, loaded on first use, with its log kept instead of printed.

    lib().llama_decode(...)
    prompt_kernels().name       # "avx512_vnni": our products for prompts, which join its CPU backend

What the latter are, docs/prompt-kernels.md says.
"""

import contextlib
import ctypes
import hashlib
import importlib
import importlib.util
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NamedTuple, NoReturn, SupportsIndex, TypeVar

from ..errors import EngineError

_F = TypeVar("_F", bound=Callable[..., Any])
_LEVEL_WARN = 3
_LEVEL_ERROR = 4
_LEVEL_CONT = 5

LIBRARY: Final = Path(__file__).parent.parent / "prompt_kernels" / "prompt_kernels.so"
# The releases of ggml whose structs the library was written for
GGML_RELEASES: Final = frozenset({"0.25.3"})
# Kinds of machine on which they were measured to be faster; elsewhere they are taken when asked for by name.
MEASURED_ON: Final = frozenset({"x86_64"})
# From so many columns on its products are faster and are taken: 9 and more, and for the two types with a scale and a
# least value, which llama.cpp multiplies column by column, 5. Guessed tokens, which must be the bits of one token after
# the other, stay below (session/exactness.py).
LEAST_COLUMNS: Final = 9
LEAST_OF_PAIRS: Final = 5


class PromptKernels(NamedTuple):
    """What computes prompts: the variant of our library, or None, and why; `sha256` of the library.

    `is_missing`: they would be used here, and are not built.
    """

    name: str | None
    why: str = ""
    sha256: str | None = None
    is_missing: bool = False

    @property
    def text(self) -> str:
        """ "avx512_vnni", or "none: not built" """
        return self.name or f"none: {self.why}"


_joined: PromptKernels = PromptKernels(None, "llama.cpp is not loaded")
# The library, which stays mapped: llama.cpp has its addresses.
_library: ctypes.CDLL | None = None

_lock = threading.Lock()
_lib: Any = None
_callback: Any = None
_logs: list["Log"] = []
# What it warned of while nobody listened, the newest last
_unheard: deque[str] = deque(maxlen=50)
_interrupted = False
# Whether Ctrl-C or SIGTERM came; an import broken off by it may raise something else than KeyboardInterrupt.
stop_asked = False
# The code of what llama.cpp calls back, see `interrupt`
_called_by_c: set[CodeType] = set()


class NotCopied:
    """What owns memory of a C library: a copy would free it a second time."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise EngineError(f"a {type(self).__name__} cannot be copied or pickled", hint="open another one")


class Log:
    """What llama.cpp said while it was listened to: `(level, text)` lines; level as in ggml.h."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []

    def add(self, level: int, text: str) -> None:
        """Takes a piece; continuations are joined to the line before."""
        if level == _LEVEL_CONT and self.lines:
            before, line = self.lines[-1]
            self.lines[-1] = (before, line + text)
        else:
            self.lines.append((level, text))

    def errors(self) -> list[str]:
        """The lines of warnings and errors, without their line ends."""
        return [text.strip() for level, text in self.lines if level in (_LEVEL_WARN, _LEVEL_ERROR) and text.strip()]

    def text(self) -> str:
        """Everything, as one text."""
        return "".join(text for _, text in self.lines)


def called_by_c(function: _F) -> _F:
    """Marks a function that llama.cpp calls back: a Ctrl-C anywhere in it is raised after the call."""
    _called_by_c.add(function.__code__)
    return function


@called_by_c
def _listen(level: int, text: bytes, _: Any) -> None:
    global _interrupted
    try:
        line = text.decode("utf-8", errors="replace")
        for log in _logs:
            log.add(level, line)
        if not _logs and level in (_LEVEL_WARN, _LEVEL_ERROR):
            _unheard.append(line.strip())
    except KeyboardInterrupt:
        # A program without our handler: ctypes would print and drop it, an exception cannot pass through C.
        _interrupted = True


def interrupt(signum: int, frame: FrameType | None) -> None:
    """The handler for Ctrl-C and SIGTERM: raises KeyboardInterrupt, but not inside what llama.cpp calls back.

    An exception cannot pass through C, ctypes would print and drop it; it is raised by `quiet_logs` or `unheard` then.
    """
    global _interrupted, stop_asked
    stop_asked = True
    while frame is not None:
        if frame.f_code in _called_by_c:
            _interrupted = True
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def interrupt_waits() -> bool:
    """Whether a Ctrl-C came while llama.cpp was logging; long work in C that asks can end early."""
    return _interrupted


def _binding() -> Any:
    """The low-level module alone: the package around it imports a chat server's worth of code, 0.1 s of start-up.

    The package is not left half made in sys.modules: `import llama_cpp` later works as ever, over this very module.
    """
    if "llama_cpp" in sys.modules:
        return importlib.import_module("llama_cpp.llama_cpp")
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        raise ImportError("No module named 'llama_cpp'")
    sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        del sys.modules["llama_cpp"]


def lib() -> Any:
    """The module `llama_cpp.llama_cpp` (ctypes over llama.h), its backend initialised once.

    Raises:
        EngineError: llama-cpp-python is missing or its library does not load.
    """
    global _lib, _callback
    with _lock:
        if _lib is None:
            try:
                llama_cpp = _binding()
            except (ImportError, OSError, RuntimeError) as error:
                raise EngineError(
                    f"llama.cpp's Python bindings do not load: {error}",
                    hint="pip install --force-reinstall --no-cache-dir llama-cpp-python",
                ) from None
            # The callback object must outlive the library's use of it.
            _callback = llama_cpp.llama_log_callback(_listen)
            llama_cpp.llama_log_set(_callback, None)
            place = _load_variants(llama_cpp)
            llama_cpp.llama_backend_init()
            cpu = _cpu_backend(llama_cpp, place)
            _leave_amx_out(cpu)
            _join_prompt_kernels(llama_cpp, cpu)
            _lib = llama_cpp
    return _lib


def _load_variants(llama_cpp: Any) -> Path:
    """Has llama.cpp load the best of several CPU libraries, where its wheel was built with more than one.

    Returns the folder of its libraries.
    """
    given = os.environ.get("LLAMA_CPP_LIB_PATH")
    place = Path(given) if given else Path(llama_cpp.__file__).parent / "lib"
    if any(place.glob("libggml-cpu-*")):
        llama_cpp._lib.ggml_backend_load_all_from_path(os.fsencode(place))
    return place


def unheard() -> list[str]:
    """What llama.cpp warned of outside of `quiet_logs` since this was last asked: less work around a call than that.

    A Ctrl-C that came while llama.cpp was logging is raised here too.
    """
    global _interrupted
    if _interrupted:
        _interrupted = False
        raise KeyboardInterrupt
    if not _unheard:
        return []
    lines = list(_unheard)
    _unheard.clear()
    return lines


@contextlib.contextmanager
def quiet_logs() -> Iterator[Log]:
    """Collects what llama.cpp logs inside the block; outside of such blocks warnings alone are kept, for `unheard`.

    A Ctrl-C that came while llama.cpp was logging is raised at the end of the block.
    """
    global _interrupted
    lib()
    log = Log()
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.remove(log)
    if _interrupted:
        _interrupted = False
        raise KeyboardInterrupt


class _Vector(ctypes.Structure):
    """A std::vector of pointers, as every C++ library in use lays it out"""

    _fields_ = (("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("room", ctypes.c_void_p))


def _leave_amx_out(cpu: Any) -> None:
    """Takes the products by AMX tiles out of the list that llama.cpp's CPU backend asks, on a CPU that has them.

    They would copy the whole base out of its mapped file, and built by gcc 12 they end the process: its
    `_tile_loadconfig` tells the compiler of 8 bytes of the 64 that are read, and the stores of the rest are dropped
    (llama.cpp's issue 20824, pull request 26954).
    """
    try:
        amx, types = cpu._Z28ggml_backend_amx_buffer_typev, cpu._Z39ggml_backend_cpu_get_extra_buffer_typesv
    except AttributeError:  # a build without them
        return
    amx.restype = ctypes.c_void_p
    unwanted = amx()
    if not unwanted:
        return
    types.restype = ctypes.POINTER(_Vector)
    vector = types().contents
    n = (vector.end - vector.begin) // ctypes.sizeof(ctypes.c_void_p)
    kept = [pointer for pointer in (ctypes.c_void_p * n).from_address(vector.begin) if pointer != unwanted]
    (ctypes.c_void_p * len(kept)).from_address(vector.begin)[:] = kept
    vector.end = vector.begin + len(kept) * ctypes.sizeof(ctypes.c_void_p)


def prompt_kernels() -> PromptKernels:
    """Whether our products for prompts are in use, or why not. Loads llama.cpp."""
    lib()
    return _joined


def _join_prompt_kernels(llama_cpp: Any, cpu: Any) -> None:
    """Adds our library to the CPU backend, where it is built, fits, and is not switched off by SLM_EDGE_KERNELS=0.

    Args:
        llama_cpp: the binding's module, its backends loaded and no model yet; `cpu`: the library of the CPU's.
    """
    global _joined
    asked = os.environ.get("SLM_EDGE_KERNELS", "")
    _joined = PromptKernels(None, "SLM_EDGE_KERNELS=0") if asked == "0" else _joined_by(llama_cpp, cpu, asked)


@contextlib.contextmanager
def take_from(ours: bool) -> Iterator[None]:
    """For measurements: inside, prompts of this whole process are computed with our products, or with llama.cpp's."""
    if _library is None:
        yield
        return
    _library.prompt_kernels_from(*((LEAST_COLUMNS, LEAST_OF_PAIRS) if ours else (0, 0)))
    try:
        yield
    finally:
        _library.prompt_kernels_from(LEAST_COLUMNS, LEAST_OF_PAIRS)


def _joined_by(llama_cpp: Any, cpu: Any, asked: str) -> PromptKernels:
    global _library
    if not asked and os.uname().machine not in MEASURED_ON:
        return PromptKernels(None, "not measured on this kind of machine; SLM_EDGE_KERNELS=dotprod takes them")
    if not LIBRARY.exists():
        return PromptKernels(None, "not built", is_missing=True)
    try:
        version = llama_cpp._lib.ggml_version
        version.restype = ctypes.c_char_p
        release = version().decode()
        if release not in GGML_RELEASES:
            return PromptKernels(None, f"written for ggml {', '.join(sorted(GGML_RELEASES))}, this is {release}")
        base = llama_cpp._lib
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
        library.prompt_kernels_from(LEAST_COLUMNS, LEAST_OF_PAIRS)
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
