"""Takes updates: a channel is read, its newest release for this machine fetched, tried, and switched to by one write.

    outcome = update("my-pack", "https://host/my-pack/channel.json")
    outcome.state, outcome.words

Each step is whole or not done at all, and doing it again does no harm: blobs by their sha256, the version's folder,
what was seen of the key, the rehearsal, the switch. Whatever is killed, what ran before runs on or the new one does,
and the next update goes on from there. Nothing of a pack is used before its signature, its sha256 and its rehearsal
held.
"""

import contextlib
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Final, Literal

from ..console import note, progress
from ..errors import DamagedError, DoesNotFitError, InputError, SlmEdgeError
from ..files.aside import require_room
from ..files.atomic import locked, make_folder
from ..pack.manifest import MAX_PACK_FILE_BYTES, PACK_FILE, Manifest, parse_manifest
from ..pack.pack import Pack
from ..pack.pull import pull_base
from ..pack.stored import unneeded_now
from ..store.prune import Unneeded, prune
from ..store.store import Store
from ..store.version import Origin, Ref, Version, encoded, is_inside
from ..trust.check import Verdict, judge_bytes
from ..trust.gate import MINISIG_FILE
from ..trust.minisign import MOST_BYTES as MOST_SIGNATURE_BYTES
from ..trust.minisign import Signature, version_parts
from ..trust.seen import Seen, record
from ..written import check_name
from .channel import CHANNEL_FILE, MOST_BYTES, Channel, Release
from .machine import machine_id
from .place import Place, place_of
from .rehearse import rehearse
from .state import changing, read_state, settle, take_back

_SPARE_BYTES: Final = 16 << 20
AGAIN_S: Final = 0.5
_State = Literal["updated", "current", "available", "held", "failed"]


@dataclass(frozen=True)
class Outcome:
    """What became of an update.

    Attributes:
        state: "updated", "current" (there is nothing newer for this machine), "available" (it was only looked), "held"
            (the pack is pinned), "failed" (the new version was tried and is not used; what ran before runs).
        version: what runs now, as it was signed; None if that is not known.
        offered: the version that was or would be taken.
        fetched_bytes: that came over the network or from the folder.
    """

    name: str
    state: _State
    words: str
    version: str | None = None
    offered: str | None = None
    fetched_bytes: int = 0


def update(name: str, address: str | None = None, *, check_only: bool = False, again: bool = False) -> Outcome:
    """Updates one pack from its channel.

    Args:
        name: of the pack; one that is not here yet is installed.
        address: of its channel, kept from then on; None for the one that is kept.
        check_only: say what there is and change nothing.
        again: also versions that failed here or that somebody went back from.

    Raises:
        InputError: there is no channel; it is not signed by a trusted key; it, or the release, is older than what was
            seen; the clock is behind.
        DamagedError: a signature does not fit, or the bytes are not the promised ones.
        DownloadError: it cannot be reached.
        DoesNotFitError: disk or memory do not suffice.
    """
    check_name(name, "a pack")
    store = Store()
    make_folder(store.folder / "state" / "updates")
    with locked(
        store.folder / "state" / "updates" / f"{encoded(name)}.update.lock",
        lambda: note(f"waiting for another update of {name} …"),
    ):
        settle(store, name)
        ref = store.ref(name) or Ref(name)
        address = address or ref.channel
        if address is None:
            raise InputError("has no update channel", where=name, hint=f"slm-edge update {name} --channel ADDRESS")
        if ref.pinned:
            return Outcome(name, "held", "it is pinned")
        place = place_of(address)
        channel = read_channel(place, name)
        refused = {} if again else read_state(store, name).refused
        had = _version_of(store, ref)
        release, why = channel.choice(ref.current, had, machine_id(), metadata.version("slm-edge"), refused)
        if check_only:
            state: _State = "current" if release is None else "available"
            return Outcome(name, state, why, had, release.version if release else None)
        store.switch(name, lambda ref: replace(ref, channel=place.address))
        if release is not None:
            return _take(store, name, place, release, had, why)
        gone = {row.pack for row in channel.releases if row.withdrawn}
        if ref.current in gone and ref.previous is not None and ref.previous not in gone:
            back = _version_of(store, take_back(store, name, str(ref.current), "it was withdrawn"))
            return Outcome(name, "updated", f"{had} -> {back}; {why}, so the one before it is back", back)
        return Outcome(name, "current", why, had)


def read_channel(place: Place, name: str) -> Channel:
    """A channel, once its signature, its age and its number held; errors as `update`."""
    for last in (False, True):
        data = place.small(CHANNEL_FILE, MOST_BYTES)
        signature = place.small(f"{CHANNEL_FILE}.minisig", MOST_SIGNATURE_BYTES)
        try:
            verdict, signed = judge_bytes(data, signature, place.address)
            break
        except DamagedError as error:
            if last:
                raise DamagedError(error.message, where=f"{place.address}.minisig", hint=error.hint) from None
            # Its maker may be between the two files.
            time.sleep(AGAIN_S)
    seen = Seen.read()
    seen.check_clock(signed.time_s or 0)
    try:
        channel = Channel.parse(data)
    except SlmEdgeError as error:
        error.where = place.address
        raise
    if channel.name != name:
        raise InputError(f"is the channel of {channel.name!r}, not of {name!r}", where=place.address)
    digest, noted, key_id = hashlib.sha256(data).hexdigest(), f"channel:{name}", str(verdict.key_id)
    sequence = str(channel.sequence)
    if sequence != verdict.version:
        raise InputError("has another number than its signature", where=place.address)
    seen.check_version(key_id, noted, sequence, digest)
    seen.check_expiry(channel.expires_s, place.address)
    record(lambda seen: seen.take(key_id, noted, sequence, signed.time_s, [digest]))
    return channel


def _take(store: Store, name: str, place: Place, release: Release, had: str | None, why: str) -> Outcome:
    with store.filling():
        version, signed, fetched_bytes = _fetch(store, name, place, release)
        folder = store.add(version)
    Pack.open(folder)
    with changing(store, name) as state:
        state.versions[release.pack] = release.version
        runtime = metadata.version("slm-edge")
        held = state.rehearsed.get(release.pack) == runtime
    if not held:
        try:
            with progress(f"rehearsing {name} {release.version}"):
                rehearse(folder)
        except DoesNotFitError:
            raise
        except SlmEdgeError as error:
            reason = "; ".join([error.message, *error.problems])
            with changing(store, name) as state:
                state.refused[release.pack] = reason
            words = f"version {release.version} is not used: {reason}"
            return Outcome(name, "failed", words, had, release.version, fetched_bytes)
        with changing(store, name) as state:
            state.rehearsed = {release.pack: runtime}
    with changing(store, name) as state:
        state.refused.pop(release.pack, None)
        state.start_watch()
    digest, key_id, called = release.pack, str(signed.key_id), signed.name or ""
    kept = [one for one in ((store.ref(name) or Ref(name)).current, digest) if one is not None]
    record(lambda seen: seen.take(key_id, called, release.version, signed.time_s, kept))
    # What was withdrawn is nothing to go back to.
    before = (store.ref(name) or Ref(name)).current if not why else None
    store.switch(name, lambda ref: replace(ref.moved_to(digest), previous=before, trial=digest))
    _tidy(store, name)
    words = f"{had or 'nothing'} -> {release.version}, {signed.words}" + (f"; {why}" if why else "")
    return Outcome(name, "updated", words, release.version, release.version, fetched_bytes)


def _tidy(store: Store, name: str) -> None:
    """Removes what is older than the version before this one, unless a process uses it."""

    def plan() -> Unneeded:
        found = unneeded_now(store)
        gone = tuple(row for row in found.versions if row[0] == name)
        theirs = {sha256 for row in gone if (version := store.version(*row)) is not None for sha256 in version.blobs}
        return Unneeded(gone, tuple(sha256 for sha256 in found.blobs if sha256 in theirs), (), 0)

    # What cannot be removed now goes with the next update, or with `slm-edge prune`.
    with contextlib.suppress(SlmEdgeError, OSError):
        prune(store, plan, wait=False)


def _fetch(store: Store, name: str, place: Place, release: Release) -> tuple[Version, Verdict, int]:
    """Brings a release's files: the version to be put in place, who signed it, and how many bytes came."""
    sizes = release.sizes_bytes
    fetched_bytes = 0

    def bring(sha256: str, most_bytes: int | None = None) -> Path:
        nonlocal fetched_bytes
        size_bytes = sizes.get(sha256)
        if most_bytes is not None and (size_bytes is None or size_bytes > most_bytes):
            raise InputError(f"its release {release.version} lists a file that is too large", where=place.address)
        if place.bring(store, sha256, size_bytes):
            fetched_bytes += store.blob(sha256).stat().st_size
        return store.blob(sha256)

    raw = bring(release.pack, MAX_PACK_FILE_BYTES).read_bytes()
    signature = bring(release.signature, MOST_SIGNATURE_BYTES).read_bytes()
    verdict, _ = judge_bytes(raw, signature, place.address)
    if verdict.version is None or version_parts(verdict.version) != version_parts(release.version):
        raise InputError(f"its release {release.version} is signed as {verdict.version}", where=place.address)
    # The channel is newer than all that was seen: where it leads back to an older version, that may be used.
    ref = store.ref(name) or Ref(name)
    kept = [one for one in (ref.previous, ref.current, release.pack) if one is not None]
    record(lambda seen: seen.allow(str(verdict.key_id), verdict.name or "", kept))
    manifest = parse_manifest(raw, Path(PACK_FILE))
    if faults := [f"{path!r} would leave the pack's folder" for path in manifest.files if not is_inside(path)]:
        raise InputError("the pack is not taken", where=place.address, problems=faults)
    missing = {sha256 for sha256 in manifest.files.values() if not store.blob(sha256).is_file()}
    needed_bytes = sum(sizes.get(sha256, 0) for sha256 in missing)
    require_room(store.folder, needed_bytes + _SPARE_BYTES, f"for {name} {release.version}")
    for sha256 in manifest.files.values():
        bring(sha256)
    if manifest.base.file_name not in manifest.files:
        if not store.blob(manifest.base.sha256).is_file() and manifest.base.sha256 in sizes:
            bring(manifest.base.sha256)
        pull_base(manifest.base, origin=_origin(place))
    return _version(name, release, manifest, place), verdict, fetched_bytes


def _version(name: str, release: Release, manifest: Manifest, place: Place) -> Version:
    files: Mapping[str, str] = {PACK_FILE: release.pack, MINISIG_FILE: release.signature, **manifest.files}
    carried = manifest.base.file_name in manifest.files
    origin = _origin(place)
    return Version(name, release.pack, "pack", files, origin, base=None if carried else manifest.base.sha256)


def _origin(place: Place) -> Origin:
    """What the pack names as its base's sources is not believed to be of this machine."""
    return Origin(place.address, place.address)


def _version_of(store: Store, ref: Ref) -> str | None:
    """The version of what runs: as it was taken, else as its signature says, which only ever stops an update."""
    if ref.current is None:
        return None
    known = read_state(store, ref.name).versions.get(ref.current)
    if known is not None:
        return known
    with contextlib.suppress(SlmEdgeError, OSError):
        data = (store.place(ref.name, ref.current) / MINISIG_FILE).read_bytes()
        version = Signature.parse(data).facts.get("version")
        if version is not None and version_parts(version):
            return version
    return None


def rollback(name: str) -> Outcome:
    """Goes back to the version before, by one write; updates leave the one that was left alone.

    Raises:
        InputError: there is no such pack, or none before it.
    """
    store = Store()
    settle(store, name)
    ref = store.ref(name)
    if ref is None or ref.current is None:
        raise InputError("there is no such pack in the store", where=name, hint="slm-edge update --help")
    if ref.previous is None:
        raise InputError("there is no version before this one", where=name)
    left = _version_of(store, ref)
    after = take_back(store, name, ref.current, "somebody went back from it by hand")
    back = _version_of(store, after)
    return Outcome(name, "updated", f"{left or ref.current[:12]} -> {back or str(after.current)[:12]}", back)


def channels(store: Store) -> list[str]:
    """The names that have an update channel."""
    return [name for name in store.names() if (ref := store.ref(name)) is not None and ref.channel is not None]
