"""What our made-up GGUF files share: keys of another file, and the end of writing. Exports have their own writer."""

from collections.abc import Callable
from typing import Any

from ...edge.gguf.file import GgufFile, ValueType


def copy_keys(writer: Any, file: GgufFile, renamed: Callable[[str], str] = lambda key: key, only: str = "") -> None:
    """Adds every key of a file that begins with `only`, but its architecture, to a `gguf.GGUFWriter`, with its type."""
    import gguf

    for key, entry in file.metadata.items():
        if key == "general.architecture" or not key.startswith(only):
            continue
        kinds: list[Any] = [gguf.GGUFValueType(entry.type)]
        if entry.type is ValueType.ARRAY:
            assert entry.element_type is not None
            kinds.append(gguf.GGUFValueType(entry.element_type))
        writer.add_key_value(renamed(key), entry.value, *kinds)


def finish(writer: Any) -> None:
    """Writes all that was added, and closes the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
