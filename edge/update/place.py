"""Where a channel lies: on a web server, or in a folder, such as a stick that is carried to the devices.

    place = place_of("https://host/my-pack/channel.json")       # or a folder, or its channel.json
    place.small("channel.json", most_bytes)
    place.bring(store, sha256, size_bytes)

Plain http will do, because every byte is signed or has a sha256 that is.
"""

from dataclasses import dataclass
from pathlib import Path

from ..console import Advance, note, silent
from ..errors import DamagedError, InputError
from ..files.cache import user_path
from ..files.read import read_bytes
from ..files.web import Access, access_of, read_small
from ..pack.bring import bring, is_here
from ..store.store import Store
from .channel import CHANNEL_FILE


@dataclass(frozen=True)
class Place:
    """A channel's folder.

    Attributes:
        address: of its channel.json, as it is kept and shown.
        folder: None for one on the web.
    """

    address: str
    folder: Path | None = None
    access: Access | None = None

    def _url(self, path: str) -> str:
        return self.address.removesuffix(CHANNEL_FILE) + path

    def small(self, path: str, most_bytes: int) -> bytes:
        """A small file, whole.

        Raises:
            DownloadError, InputError: it cannot be had.
        """
        if self.folder is not None:
            return read_bytes(self.folder / path, most_bytes)
        assert self.access is not None
        return read_small(self._url(path), self.access, most_bytes)

    def bring(self, store: Store, sha256: str, size_bytes: int | None, advance: Advance = silent) -> bool:
        """Brings a blob into the store; returns whether it had to be fetched. What is here is hashed, and not believed.

        Raises:
            DownloadError, InputError: it cannot be had.
            DamagedError: what came is another file.
            DoesNotFitError: the disk is full.
        """
        was_here = store.blob(sha256).is_file()
        if self.folder is not None:
            with store.fetching(sha256, lambda: note("waiting for another pull of the same file …")):
                if not is_here(store, sha256, advance):
                    store.take_file(self.folder / "blobs" / sha256, sha256, advance=advance)
            return not was_here
        assert self.access is not None
        try:
            bring(store, sha256, self._url(f"blobs/{sha256}"), self.access, size_bytes=size_bytes, advance=advance)
        except DamagedError as error:
            hint = "the channel's server has another file there"
            raise DamagedError(error.message, where=error.where, hint=hint) from None
        return not was_here


def place_of(address: str) -> Place:
    """Where a channel is, by what one types.

    Raises:
        InputError: no such folder.
        DownloadError: no such address.
    """
    if "://" in address:
        full = address if address.endswith(CHANNEL_FILE) else address.rstrip("/") + "/" + CHANNEL_FILE
        named = access_of(full, insecure=True)
        return Place(full, access=named)
    folder = user_path(address).absolute()
    folder = folder.parent if folder.name == CHANNEL_FILE else folder
    if not (folder / CHANNEL_FILE).is_file():
        raise InputError("is no channel", where=address, hint="give the address or folder of a channel.json")
    return Place(str(folder / CHANNEL_FILE), folder)
