"""Reads a GGUF's header alone: from a local file, or over HTTP with range requests, without downloading the model.

    with open_header("https://hub/x.gguf") as file:
        Workload.of_file(file)

The bytes fetched are written into a sparse file of the model's whole length, so that the one strict reader
(`edge.gguf.file`) checks them as it checks every file; tensor data reads as zeros and is not looked at.
"""

import contextlib
import http.client
import re
import tempfile
import urllib.error
from collections.abc import Iterator
from pathlib import Path

from ...edge.errors import DamagedError, InputError, SlmEdgeError, UnsupportedError
from ...edge.files.web import DownloadError, access_of, hub_token, opened, request_of
from ...edge.gguf.file import GgufFile

FIRST_BYTES = 2 << 20
# A vocabulary of 262,144 tokens with merges takes about 15 MB.
MOST_BYTES = 128 << 20


def is_url(text: str) -> bool:
    """Whether `text` is an address of the web."""
    return text.startswith(("http://", "https://"))


@contextlib.contextmanager
def open_header(place: str) -> Iterator[GgufFile]:
    """An open GGUF whose tables can be read.

    Args:
        place: a path or an address.

    Raises:
        InputError, DamagedError, UnsupportedError: as `GgufFile.open`.
        DownloadError: the server cannot be reached, refuses, or does not serve ranges.
    """
    if not is_url(place):
        yield GgufFile.open(place)
        return
    with tempfile.TemporaryDirectory(prefix="slm-edge-header-") as folder:
        yield _fetched(place, Path(folder) / _file_name(place))


def _file_name(url: str) -> str:
    return re.sub(r"[?#].*", "", url).rsplit("/", 1)[-1] or "model.gguf"


def _fetched(url: str, path: Path) -> GgufFile:
    """Fetches more and more of the beginning until the tables are whole."""
    have, total, want = 0, None, FIRST_BYTES
    while True:
        data, total = _range(url, have, want - 1)
        with path.open("r+b" if have else "wb") as stream:
            stream.seek(have)
            stream.write(data)
            stream.truncate(total)
        have += len(data)
        try:
            # Most of it is a hole until it is fetched.
            file = GgufFile.open(path, whole=False)
            if file.data_start_bytes <= have:
                return file
            problem: SlmEdgeError = DamagedError("the header is longer than what came", where=url)
        except InputError as error:
            error.where = url
            raise
        except (DamagedError, UnsupportedError) as error:
            # Beyond what was fetched there are zeros: only with the next bytes it is known whether that is a fault.
            problem = error
        if have >= total or have >= MOST_BYTES or not data:
            problem.where = url
            raise problem
        want = min(4 * have, total, MOST_BYTES)


def _range(url: str, start: int, end: int) -> tuple[bytes, int]:
    """Bytes `start` to `end` (included) of a file, and the whole file's length."""
    access = access_of(url)
    try:
        with opened(request_of(url, {"Range": f"bytes={start}-{end}"}, access, hub_token(url)), access) as answer:
            if answer.status != 206:
                raise DownloadError(
                    "the server does not serve ranges of a file", where=url, hint="download it and give its path"
                )
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != start:
                raise DownloadError("the server answers with another range than was asked", where=url)
            return answer.read(end - start + 1), int(found[2])
    except urllib.error.HTTPError as error:
        raise DownloadError(f"the server answers {error.code} {error.reason}", where=url) from None
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"cannot be read: {getattr(error, 'reason', error)}", where=url) from None
