"""Optional packages: which extra has them, and the command that installs it for this installation.

extra_hint("export")        # "pip install -e '/home/me/slm-edge[export]'", or the packages' names
"""

import json
from importlib import metadata
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from urllib.request import url2pathname

EXTRA_OF_PACKAGE: Final = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "pyarrow": "train",
    "accelerate": "train",
    "safetensors": "export",
    "tokenizers": "export",
    "sentencepiece": "export",
    "rouge_score": "bench",
    "msgspec": "serve",
    "uvicorn": "serve",
    "h11": "serve",
    "prometheus_client": "serve",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "cryptography": "oms",
}


def extra_hint(*extras: str) -> str:
    """The command that installs what these extras need.

    Where slm-edge was installed from a folder, pip takes the extra from there. Else the packages are named: slm-edge
    itself may be on no index, and what others publish under its name is not ours.
    """
    # In a checkout that was built, the working folder has a second description, without the way it was installed.
    found = sorted(metadata.distributions(name="slm-edge"), key=lambda one: one.read_text("direct_url.json") is None)
    if not found:
        return f"pip install '.[{','.join(extras)}]' in slm-edge's folder"
    installed = found[0]
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    folder = url2pathname(urlsplit(origin.get("url", "")).path)
    if "dir_info" in origin and (Path(folder) / "pyproject.toml").is_file():
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}'{folder}[{','.join(extras)}]'"
    needed = [row.partition(";") for row in installed.requires or ()]
    names = [name.strip() for name, _, marker in needed for extra in extras if f'extra == "{extra}"' in marker]
    return "pip install " + " ".join(f"'{name}'" for name in dict.fromkeys(names))
