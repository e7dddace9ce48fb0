"""Splits a GGUF file as gguf-py's own writer does."""

from pathlib import Path

import gguf
import numpy as np


def split(base: Path, folder: Path, most: int) -> list[Path]:
    """The parts that gguf-py's writer makes of a file, at most so many tensors in each."""
    reader = gguf.GGUFReader(base)
    writer = gguf.GGUFWriter(folder / "part.gguf", "llama", split_max_tensors=most)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kind, *element = field.types
        writer.add_key_value(field.name, field.contents(), kind, element[-1] if element else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("*.gguf"))
