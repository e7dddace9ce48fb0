"""One file into the store by its sha256: from the store, from what other programs have of it, or from an address.

bring(store, sha256, "https://…", access, size_bytes=…, advance=…)
"""

import contextlib
from pathlib import Path

from ..console import Advance, note, silent
from ..errors import DamagedError, SlmEdgeError
from ..files.aside import remove_leftovers
from ..files.atomic import make_folder
from ..files.download import download
from ..files.read import sha256_file
from ..files.web import Access, hub_token
from ..hub.elsewhere import copies_of
from ..store.blobs import READ_ONLY
from ..store.store import Store


def bring(
    store: Store,
    sha256: str,
    url: str,
    access: Access,
    *,
    size_bytes: int | None = None,
    advance: Advance = silent,
) -> Path:
    """Returns the blob, fetched if it is not here. Of two at once the second waits, and finds it.

    Args:
        advance: told of every byte.

    Raises:
        DownloadError: it could not be fetched.
        DoesNotFitError: the disk is full.
        DamagedError: what came has another sha256.
    """
    with store.fetching(sha256, lambda: note("waiting for another pull of the same file …")):
        if not is_here(store, sha256, advance) and not adopt(store, sha256, advance):
            fetch(store, sha256, url, access, size_bytes=size_bytes, advance=advance)
    return store.blob(sha256)


def is_here(store: Store, sha256: str, advance: Advance = silent) -> bool:
    """Whether the blob is in the store, every byte of it; a damaged one is removed. The caller holds its lock."""
    blob = store.blob(sha256)
    if not blob.is_file():
        return False
    if sha256_file(blob, advance) == sha256:
        return True
    advance(-blob.stat().st_size)
    note(f"{blob} is damaged; it is fetched again")
    blob.unlink()
    return False


def adopt(store: Store, sha256: str, advance: Advance = silent) -> bool:
    """Whether another program has the file, which is linked or copied then; never written to."""
    for path in copies_of(sha256):
        with contextlib.suppress(DamagedError, OSError, SlmEdgeError):
            store.take_file(path, sha256, advance=advance)
            note(f"taken from {path}")
            return True
    return False


def fetch(
    store: Store,
    sha256: str,
    url: str,
    access: Access,
    *,
    size_bytes: int | None = None,
    advance: Advance = silent,
) -> None:
    """Downloads a blob; the caller holds its lock. The hub's token goes to the hub alone."""
    blob = store.blob(sha256)
    make_folder(blob.parent)
    remove_leftovers(blob)
    download(
        url,
        blob,
        part=store.part(sha256),
        sha256=sha256,
        size_bytes=size_bytes,
        access=access,
        advance=advance,
        token=hub_token(url),
    )
    blob.chmod(READ_ONLY)
