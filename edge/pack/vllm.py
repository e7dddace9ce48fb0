"""The same adapters for a GPU server: the command that serves a pack's PEFT folders with vLLM.

    print(for_vllm(Pack.open("my-pack"), [Path("out")]).text())

A pack has its adapters as GGUF. Each file says the sha256 of the PEFT weights that it was made from, by which the
folder is found; that folder names the checkpoint of the base. What is not known stays a word in capitals, and is said.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..errors import InputError
from ..files.read import parse_json, read_text, sha256_file
from ..gguf.adapter import ALORA_TOKENS_KEY, BASE_NAME_KEY, RANK_KEY, SOURCE_SHA256_KEY
from ..gguf.file import GgufFile
from .manifest import ROUTER_FILE
from .pack import Pack, PackedAdapter

# What vLLM takes for --max-lora-rank
RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_MAX_CONFIG_BYTES: Final = 1 << 20
_MOST_FOLDERS: Final = 1000


@dataclass(frozen=True)
class ForVllm:
    """A command, and what its reader has to know.

    Attributes:
        command: its words.
        notes: a sentence each.
    """

    command: tuple[str, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"command": list(self.command), "notes": list(self.notes)}

    def text(self) -> str:
        """The command as a shell takes it, the notes as comments before it."""
        # Words of files that anyone may have written stand in them: a line's end would end the comment.
        return "\n".join([*(f"# {' '.join(note.split())}" for note in self.notes), shlex.join(self.command)])


def for_vllm(pack: Pack, places: Sequence[Path] = ()) -> ForVllm:
    """The command for a pack.

    Args:
        places: folders in which PEFT folders are, or these themselves.

    Raises:
        InputError: the pack has no adapters, a place is no folder, or an adapter_config.json cannot be read.
    """
    if not pack.adapters:
        raise InputError("the pack has no adapters", where=pack.folder)
    folders = {sha256_file(folder / WEIGHTS): folder for place in places for folder in _peft_folders(place)}
    files = {name: GgufFile.open(packed.path) for name, packed in pack.adapters.items()}
    notes: list[str] = []
    modules: list[str] = []
    bases: set[str] = set()
    for name, file in files.items():
        sha256 = file.get(SOURCE_SHA256_KEY)
        folder = folders.get(str(sha256))
        if folder is not None:
            modules.append(f"{name}={folder}")
            bases |= _base_of(folder)
        else:
            modules.append(f"{name}=PEFT_FOLDER_OF_{name}")
            notes.append(_not_found(name, sha256, bool(places)))
    if len(bases) == 1:
        base = bases.pop()
    else:
        base = "BASE_CHECKPOINT"
        named = {str(file.get(BASE_NAME_KEY)) for file in files.values() if file.get(BASE_NAME_KEY)}
        what = f" ({', '.join(sorted(named))})" if named else ""
        notes.append(
            f"BASE_CHECKPOINT is not known: the pack names its base as a GGUF file, {pack.base.file_name}; vLLM takes "
            f"the Transformers checkpoint that it was made from{what}."
            if not bases
            else f"BASE_CHECKPOINT is not known: the PEFT folders name several: {', '.join(sorted(bases))}."
        )
    ranks = [int(file.get(RANK_KEY, 0)) for file in files.values()]
    rank = next((one for one in RANKS if one >= max(ranks)), RANKS[-1])
    if max(ranks) > RANKS[-1]:
        notes.append(f"An adapter has the rank {max(ranks)}; vLLM takes {RANKS[-1]} at most.")
    if not all(ranks):
        notes.append("An adapter does not say its rank; raise --max-lora-rank where vLLM asks for it.")
    notes += _what_changes(pack, files)
    words = ["vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(rank), "--max-loras", str(len(modules))]
    return ForVllm((*words, "--lora-modules", *modules), tuple(notes))


def _peft_folders(place: Path) -> Iterator[Path]:
    """A PEFT folder itself, or those below a folder."""
    if not place.is_dir():
        raise InputError("no such folder", where=place)
    found = 0
    for folder, _, names in os.walk(place):
        if WEIGHTS in names:
            yield Path(folder)
            found += 1
            if found == _MOST_FOLDERS:
                return
    if not found:
        raise InputError(f"there is no PEFT folder in it: none has {WEIGHTS}", where=place)


def _base_of(folder: Path) -> set[str]:
    """The checkpoint that a PEFT folder names, if it names one."""
    path = folder / CONFIG
    config = parse_json(read_text(path, _MAX_CONFIG_BYTES), path)
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return {named} if isinstance(named, str) and named else set()


def _not_found(name: str, sha256: Any, looked: bool) -> str:
    if not sha256:
        return f"The folder of {name} is not known: its file does not say which PEFT adapter it was made from."
    where = "is in none of the folders named" if looked else "is not known; --peft FOLDER looks for it"
    return f"The folder of {name} {where}: its {WEIGHTS} has the sha256 {sha256}."


def _what_changes(pack: Pack, files: dict[str, GgufFile]) -> Iterator[str]:
    """What a pack does by itself, and a client of vLLM has to do."""
    for name, packed in pack.adapters.items():
        if said := _said_by_card(packed):
            yield f"vLLM reads no task card; send with each request to {name}: {', '.join(said)}."
        if packed.card.scale != 1:
            yield f"vLLM adds {name} as it was trained; its task card has the strength {packed.card.scale:g}."
        if files[name].get(ALORA_TOKENS_KEY):
            yield f"{name} is an activated LoRA; whether your vLLM takes it is not known here."
    if ROUTER_FILE in pack.manifest.files:
        yield "vLLM has no router: the model auto is not there."


def _said_by_card(packed: PackedAdapter) -> list[str]:
    card = packed.card
    said = [f"max_tokens {card.max_tokens}", f"temperature {card.temperature:g}"]
    said += ["its system message"] if card.system else []
    said += ["its stop texts"] if card.stop else []
    said += ["its schema"] if card.schema is not None else ["its grammar"] if card.grammar else []
    said += [f"chat_template_kwargs {dict(card.template)}"] if card.template else []
    return said
