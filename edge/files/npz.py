"""Arrays with a table about them in one .npz, read as what an unknown hand may have written.

    write_npz("router.npz", {"format": 1}, {"weights": weights})       # the same content gives the same bytes
    meta, arrays = read_npz(Path("router.npz"), "a router's file", most_bytes=64 << 20)

The table is JSON under the name `meta`. Nothing in it can run code: arrays of numbers, no pickles.
"""

import io
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DamagedError, InputError
from .atomic import atomic_file


def write_npz(path: str | os.PathLike[str], meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes the file, aside and then renamed.

    Raises:
        InputError: the folder cannot be written to.
    """
    table = np.frombuffer(json.dumps(meta, ensure_ascii=False, sort_keys=True).encode(), dtype=np.uint8)
    contents: dict[str, Any] = {"meta": table, **arrays}
    with atomic_file(path) as aside, aside.open("wb") as stream:
        np.savez(stream, **contents)


def read_npz(path: Path, what: str, most_bytes: int) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The table and the arrays.

    Args:
        what: the file should be, for the message.
        most_bytes: that the file, and what it unpacks to, may have.

    Raises:
        InputError: there is no such file.
        DamagedError: it is no such file, cut short, too large, or its table has no format number.
    """
    if not path.is_file():
        raise InputError("no such file", where=path)
    try:
        if path.stat().st_size > most_bytes:
            raise ValueError("it is too large")
        data = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(data) as archive:
            # Nothing in it is compressed by us: a claim of more than the limit is a bomb.
            if sum(entry.file_size for entry in archive.infolist()) > most_bytes:
                raise ValueError("it would unpack to too much")
        data.seek(0)
        with np.load(data, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        meta = json.loads(arrays.pop("meta").astype(np.uint8).tobytes())
        if not isinstance(meta, dict) or not isinstance(meta.get("format"), int):
            raise ValueError("its meta has no format")
    # What zipfile, numpy and json raise over bytes that are no such file.
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, OSError, NotImplementedError) as error:
        raise DamagedError(f"is not {what} ({error})", where=path, hint="copy the pack again") from None
    return meta, arrays
