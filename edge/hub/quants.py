"""Which GGUF file of a repository is meant: by its quantisation, whole or in parts.

chosen_files(listing, "Q4_K_M")     # ["tiny.Q4_K_M.gguf"], or all parts of it in order
"""

import re
from collections import defaultdict
from typing import Final

from ..errors import InputError
from .listing import Listing

# Where several are there and none is named: as llama.cpp and Ollama take them, then what is nearest in size.
PREFERRED: Final = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL", "Q5_K_M", "Q5_K_S", "Q8_0")
_QUANT: Final = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d_(?:K(?:_(?:XXL|XL|[SML]))?|[01]|XXS|XS|NL|[SM])(?:_\d_\d)?|TQ\d_0|MXFP4(?:_MOE)?"
    r"|BF16|F16|FP16|F32))(?=[-._/]|$)",
    re.IGNORECASE,
)
_SPLIT: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
# They lie beside models and are none.
_NO_MODELS: Final = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix|projector)", re.IGNORECASE)


def quant_of(path: str) -> str | None:
    """The quantisation that a file's path names; None if none is recognised."""
    found = _QUANT.findall(path.removesuffix(".gguf"))
    return str(found[-1]).upper() if found else None


def models_in(listing: Listing) -> dict[str, list[str]]:
    """A repository's models: the name of each, parts taken together -> its files in order."""
    models: dict[str, list[str]] = defaultdict(list)
    for path in sorted(listing.names(".gguf")):
        if not _NO_MODELS.search(path):
            found = _SPLIT.fullmatch(path)
            models[f"{found[1]}.gguf" if found else path].append(path)
    return dict(models)


def chosen_files(listing: Listing, quant: str | None) -> list[str]:
    """The files of the model that is meant.

    Raises:
        InputError: there is none of that quantisation, several are meant, or parts are missing.
    """
    models = models_in(listing)
    where = f"hf:{listing.repo}"
    if quant is not None:
        wanted = quant.upper()
        found = [name for name in models if quant_of(name) in (wanted, f"UD-{wanted}")]
        exact = [name for name in found if quant_of(name) == wanted]
        found = (
            exact or found or [name for name in models if re.search(rf"(?i)(?:^|[-._/]){re.escape(quant)}[-._/]", name)]
        )
        if not found:
            there = sorted({quant_of(name) or name for name in models})
            raise InputError(f"holds no GGUF file of {quant}", where=where, problems=there, hint=f"{where}:{there[0]}")
    else:
        found = list(models)
        for preferred in PREFERRED:
            of_it = [name for name in models if quant_of(name) == preferred]
            if len(models) > 1 and of_it:
                found = of_it
                break
    if len(found) != 1:
        raise InputError(
            "holds several GGUF files; name one of them",
            where=where,
            problems=[f"{where}/{name}" for name in found[:40]],
        )
    files = models[found[0]]
    if (split := _SPLIT.fullmatch(files[0])) and len(files) != int(split[3]):
        raise InputError(f"has {len(files)} of the {int(split[3])} parts of {found[0]}", where=where)
    return files


def parts_of(listing: Listing, path: str) -> list[str]:
    """The files of the model that one of its files belongs to."""
    return next((files for files in models_in(listing).values() if path in files), [path])
