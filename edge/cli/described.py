"""What is in a pack, for people and for `--json`."""

from typing import TYPE_CHECKING, Any

from ..errors import SlmEdgeError
from ..written import human_bytes

if TYPE_CHECKING:
    from ..pack.card import TaskCard
    from ..pack.pack import Pack


def described(opened: "Pack") -> tuple[dict[str, Any], str]:
    """What is in a pack, for `--json` and as text."""
    from ..onnx.in_pack import has_onnx, onnx_adapters

    base = opened.base
    data = {
        "folder": str(opened.folder),
        "name": opened.name,
        "default_adapter": opened.default_adapter,
        "base": opened.manifest.as_dict()["base"] | {"carried": opened.carries_base},
        "adapters": [
            {
                "name": adapter.name,
                "file": str(adapter.path),
                "sha256": adapter.sha256,
                "size_bytes": adapter.size_bytes,
                "card": adapter.card.as_dict(),
            }
            for adapter in opened.adapters.values()
        ],
        "onnx": {"adapters": list(onnx_adapters(opened))} if has_onnx(opened) else None,
    }
    place = "in the pack" if opened.carries_base else ", ".join(source["kind"] for source in base.sources) or "cache"
    lines = [
        f"pack {opened.name} in {opened.folder}",
        f"base {base.file_name}, {human_bytes(base.size_bytes)}, {place}, fingerprint {base.fingerprint[:12]}",
    ]
    rows = [("", "adapter", "size", "task", "answers", "system")]
    for adapter in opened.adapters.values():
        card = adapter.card
        mark = "*" if adapter.name == opened.default_adapter else ""
        rows.append(
            (mark, adapter.name, human_bytes(adapter.size_bytes), _short(card.task, 16), _sampling(card), _system(card))
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += table if opened.adapters else ["no adapters; slm-edge pack add PACK NAME FILE adds one"]
    said = {None: "none, the base alone", "auto": "auto, the router chooses"}
    lines.append(f"* default: {said.get(opened.default_adapter, opened.default_adapter)}")
    unproved = _unproved(opened)
    data["unproved"] = unproved
    if unproved:
        lines.append(f"not proved here, tried in a process of its own at the first load: {', '.join(unproved)}")
    if has_onnx(opened):
        lines.append(f"ONNX form: base, {', '.join(onnx_adapters(opened)) or 'no adapter'}")
    return data, "\n".join(lines)


def _short(text: str, width: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _sampling(card: "TaskCard") -> str:
    how = "greedy" if card.temperature == 0 else f"temperature {card.temperature:g}"
    scale = "" if card.scale == 1 else f", scale {card.scale:g}"
    guesses = "" if card.speculate == "off" else f", guesses ({card.speculate})"
    return f"<= {card.max_tokens} tokens, {how}{scale}{guesses}"


def _system(card: "TaskCard") -> str:
    return _short(card.system, 40) if card.system else "-"


def _unproved(opened: "Pack") -> list[str] | None:
    """What of the pack's base was not tried here; None where the base is not here yet."""
    from ..gguf.base import BaseInfo

    try:
        return list(BaseInfo.open(opened.base_path()).unproved)
    except SlmEdgeError:
        return None
