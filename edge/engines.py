"""Opens a pack with one of the engines; the one place that the command line, benchmarks and a server open packs by.

with open_session("my-pack", "onnx") as session:
    session.ask("How many legs have 3 cats?", adapter="math").text
"""

import importlib
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, Unpack, overload

from .errors import InputError
from .options import LEFT_OUT, EngineOptions, LeftOut

if TYPE_CHECKING:
    from .answer.base import SessionBase
    from .answer.settings import AdapterName
    from .onnx.session import OnnxSession
    from .pack.pack import Pack
    from .session.session import Session

# Imported when it is used: a session on one engine needs nothing of the other.
ENGINES: Final = {"llama": ("session.session", "Session"), "onnx": ("onnx.session", "OnnxSession")}


@overload
def open_session(
    pack: "Pack | str | os.PathLike[str] | None" = None,
    engine: Literal["llama"] = "llama",
    *,
    adapter: "AdapterName | LeftOut" = LEFT_OUT,
    allow_pull: bool = False,
    one_answer: bool = False,
    **options: Unpack[EngineOptions],
) -> "Session": ...


@overload
def open_session(
    pack: "Pack | str | os.PathLike[str] | None",
    engine: Literal["onnx"],
    *,
    adapter: "AdapterName | LeftOut" = LEFT_OUT,
    allow_pull: bool = False,
    one_answer: bool = False,
    **options: Unpack[EngineOptions],
) -> "OnnxSession": ...


@overload
def open_session(
    pack: "Pack | str | os.PathLike[str] | None",
    engine: str,
    *,
    adapter: "AdapterName | LeftOut" = LEFT_OUT,
    allow_pull: bool = False,
    one_answer: bool = False,
    **options: Unpack[EngineOptions],
) -> "SessionBase[Any]": ...


def open_session(
    pack: "Pack | str | os.PathLike[str] | None" = None,
    engine: str = "llama",
    *,
    adapter: "AdapterName | LeftOut" = LEFT_OUT,
    allow_pull: bool = False,
    one_answer: bool = False,
    **options: Unpack[EngineOptions],
) -> "SessionBase[Any]":
    """Opens a pack for answers; close it, or use it as a context manager.

    Args:
        pack: a folder, or what `Pack.open` gave; None for the starter pack.
        engine: "llama" for llama.cpp, "onnx" for onnxruntime with the pack's ONNX form.
        adapter: in use from the beginning, as in `Session.use`; "auto" for the base until one is chosen, with the
            pack's router to choose by; left out: the pack's default.
        allow_pull: fetch the base into the cache when it is neither in the pack nor there.
        one_answer: the session will answer once: nothing is kept for a second answer.
        options: see `options.EngineOptions`: context in tokens, memory in bytes, threads.

    Raises:
        InputError: no such pack, engine, adapter or option, or an option that the engine has not.
        UnsupportedError: the pack or its base is of a kind that cannot be used.
        DoesNotFitError: memory or context do not suffice; the message has the numbers.
        DamagedError: a file is not as it was packed.
        EngineError: the engine is missing or cannot load the base.
    """
    kind = _kind(engine)
    return kind.open(pack, adapter=adapter, allow_pull=allow_pull, one_answer=one_answer, **options)


def open_files(
    base: str | os.PathLike[str],
    adapters: Mapping[str, str | os.PathLike[str]],
    engine: str = "llama",
    *,
    adapter: "AdapterName" = None,
    one_answer: bool = False,
    **options: Unpack[EngineOptions],
) -> "SessionBase[Any]":
    """Opens a base file with adapter files by name, no pack; each adapter is checked against the base.

    Args:
        adapter: in use from the beginning.
        engine, one_answer, options: as in `open_session`; errors too.
    """
    kind = _kind(engine)
    start_s = time.perf_counter()
    session = kind.of_files(base, {name: (file, None) for name, file in adapters.items()}, one_answer, **options)
    session.load_s = time.perf_counter() - start_s
    try:
        return session.use(adapter)
    except BaseException:
        session.close()
        raise


def _kind(engine: str) -> "type[SessionBase[Any]]":
    """The session of an engine, imported; InputError if there is none."""
    module, name = ENGINES.get(engine, ("", "")) if isinstance(engine, str) else ("", "")
    if not module:
        raise InputError(f"there is no engine {engine!r}", hint=f"there are: {', '.join(ENGINES)}")
    kind: type[SessionBase[Any]] = getattr(importlib.import_module(f".{module}", __package__), name)
    return kind
