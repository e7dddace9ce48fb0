"""Whether a pack's signature must be looked at: what every command that opens a pack asks, and mostly all it imports.

admit(folder, raw)      # raises where the signature does not fit or the policy refuses
"""

from pathlib import Path
from typing import Final

from ..console import note
from ..files.cache import trust_folder

MINISIG_FILE: Final = "pack.json.minisig"
OMS_FILE: Final = "model.sig"
SIGNATURE_FILES: Final = (MINISIG_FILE, OMS_FILE)
POLICY_FILE: Final = "policy.toml"
# Packs whose missing signature was told of
_WARNED: Final[set[Path]] = set()


def signatures_of(folder: Path) -> list[Path]:
    """The signature files of a pack, links too."""
    return [path for path in (folder / name for name in SIGNATURE_FILES) if path.exists() or path.is_symlink()]


def admit(folder: Path, raw: bytes) -> None:
    """Judges a pack's signature, and notes on stderr, once, where the policy wants to be warned.

    Args:
        raw: the bytes of its pack.json, unread.

    Raises:
        DamagedError, InputError: as `check.judge`.
    """
    if not signatures_of(folder) and not (trust_folder() / POLICY_FILE).exists():
        return
    from .check import judge

    verdict = judge(folder, raw)
    if verdict.asked and verdict.key_name is None and folder not in _WARNED:
        _WARNED.add(folder)
        note(f"{folder}: {verdict.words}; the trust policy asks for a signature")
