"""Single values of a GGUF's keys, with what is wrong about them gathered in a list of faults."""

from typing import Any, Final

from .file import GgufFile, ValueType

# The integer types that llama.cpp's writers have used for counts
COUNTS: Final = (ValueType.UINT32, ValueType.INT32, ValueType.UINT16)


def typed(file: GgufFile, key: str, kind: ValueType, faults: list[str], default: Any = None) -> Any:
    """A scalar of one type; a wrong type, or a missing key without a default, is a fault and gives None."""
    entry = file.metadata.get(key)
    if entry is None:
        if default is None:
            faults.append(f"the key {key} is missing")
        return default
    if entry.type is not kind:
        faults.append(f"{key} is {entry.type.name}, not {kind.name}")
        return None
    return entry.value


def number_of(file: GgufFile, key: str, faults: list[str], default: int | None = None) -> int:
    """A count; 0 after a fault."""
    entry = file.metadata.get(key)
    if entry is None:
        if default is None:
            faults.append(f"the key {key} is missing")
        return default or 0
    if entry.type not in COUNTS:
        faults.append(f"{key} is {entry.type.name}, not UINT32")
        return 0
    return int(entry.value)
