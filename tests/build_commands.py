"""Every command of the command line with arguments that are cheap to run: on tiny files, or refused for a missing one.

    for name, words in command_lines(make_files(tmp_path)).items(): ...       # {"pack show": ["pack", "show", ...]}

Names and texts have letters that Latin-1 lacks. `{out}` in a word is a folder to write into, `{pack}` a pack to change,
`{n}` a number that is new in each run.
"""

import json
import shutil
from pathlib import Path

import click
from build_gguf import tiny_adapter, tiny_pack
from build_peft import pair, written_adapter
from slm_edge.edge.cli.main import cli
from slm_edge.edge.pack.write import NewAdapter, add_adapter

MISSING = "没有.dat"
EXAMPLES = [f"Translate “{word}” to 中文" for word in ("cat", "dog", "sun", "moon", "rain", "snow", "tea")]


def leaves(command=cli, path=(), context=None):
    """The names of all commands that are no groups, as one types them."""
    context = context or click.Context(command)
    if not isinstance(command, click.Group):
        yield " ".join(path)
        return
    for name in command.list_commands(context):
        yield from leaves(command.get_command(context, name), (*path, name), context)


def make_files(folder: Path) -> Path:
    """A pack, its base, adapters, and rows, in a folder whose name Latin-1 lacks."""
    folder = folder / "包"
    folder.mkdir()
    pack = tiny_pack(folder)
    tiny_adapter(folder / "more.gguf", folder / "base.gguf", seed=5)
    written_adapter(folder / "peft", pair("model.layers.0.self_attn.q_proj", 64, 64))
    (folder / "examples.txt").write_text("\n".join(EXAMPLES), encoding="utf-8")
    (folder / "text.txt").write_text("Zażółć gęślą jaźń. " * 40, encoding="utf-8")
    (folder / "calibrate.json").write_text(json.dumps({"多": 1}))
    add_adapter(pack, NewAdapter("other", folder / "more.gguf"))
    # What writers get: a pack that is theirs
    shutil.copytree(pack, folder / "own" / "pack")
    return folder


def command_lines(files: Path) -> dict[str, list[str]]:
    """Command -> its words, without `--json`."""
    pack, base, adapter = files / "pack", files / "base.gguf", files / "more.gguf"
    data = ["--base", base, "--data", files / MISSING, "-o", "{out}/train{n}"]
    lines = {
        "run": ["--pack", pack, "--max-tokens", 2, "你好"],
        "chat": ["--pack", pack, "--max-tokens", 2],
        "serve": [pack, "--keys", files / MISSING],
        "service": ["--print", pack],
        "ps": [],
        "top": ["--server", "1"],
        "adapter list": ["--server", "1"],
        "adapter add": ["math", adapter, "--server", "1"],
        "adapter remove": ["math", "--server", "1"],
        "demo": ["--pack", pack],
        "pull": [pack],
        "list": [],
        "show": [pack],
        "verify": [pack],
        "rm": ["没有"],
        "prune": [],
        "push": [pack, "{out}/pushed{n}", "--with-base"],
        "cache list": [],
        "cache clean": [],
        "doctor": [],
        "channel release": ["{out}/site{n}", pack, "--key", files / MISSING],
        "channel rollout": [files / MISSING, "1.0", 50, "--key", files / MISSING],
        "channel withdraw": [files / MISSING, "1.0", "--key", files / MISSING],
        "key list": [],
        "key new": ["key{n}", "-o", "{out}", "--passphrase-file", files / "text.txt"],
        "key revoke": ["nobody"],
        "key trust": [files / MISSING],
        "help": ["pack", "build"],
        "pack add": ["{pack}", "m{n}", adapter],
        "pack build": ["-o", "{out}/pack{n}", "--base", base, "--adapter", f"more={adapter}", "--name", "包"],
        "pack onnx": ["{pack}", files / MISSING],
        "pack remove": ["{pack}", "没有"],
        "pack show": [pack],
        "pack sign": [pack, "--key", files / MISSING],
        "pack verify": [pack],
        "rollback": ["nothing"],
        "update": ["nothing"],
        "router train": ["--data", files / MISSING, "-o", "{out}/router{n}.npz"],
        "router eval": ["--router", files / MISSING],
        "router speed": ["--router", files / MISSING],
        "router choose": ["--explain", "多少 12% of 250?"],
        "router examples": ["{pack}", "other", files / "examples.txt"],
        "router put": ["{pack}", "starter"],
        "router show": [],
        "export base": [base, "-o", "{out}/base{n}.gguf", "--type", "keep"],
        "export lora": [files / "peft", "--base", base, "-o", "{out}/lora{n}.gguf"],
        "export merge": [base, adapter, "-o", "{out}/merged{n}.gguf", "--type", "f16"],
        "export onnx": [files / MISSING, "-o", "{out}/onnx{n}"],
        "export onnx-adapter": [files / MISSING, "--base", files / MISSING, "-o", "{out}/a{n}.onnx_adapter"],
        "export verify": [files / MISSING, "--gguf", base, "--lora", adapter],
        "train chat": data,
        "train code": data,
        "train compress": [files / MISSING, "-o", "{out}/small{n}"],
        "train math": data,
        "train memory": [files / MISSING],
        "train own-answers": data,
        "train own-rationales": data,
        "train recipes": [],
        "train starter": ["--base", files / MISSING, "--data-dir", files / MISSING, "-o", "{out}/starter{n}"],
        "train summarize": data,
        "profile": ["--pack", files / MISSING],
        "devices calibrate": [files / "calibrate.json", "--device", "raspberry-pi-5-4gb"],
        "devices fit": ["--device", "raspberry-pi-5-4gb", "--model", base],
        "devices list": [],
        "devices show": ["raspberry-pi-5-4gb"],
        "bench scores": ["gsm8k", "--pack", pack, "--data", files / MISSING, "--out", "{out}/scores{n}"],
        "bench samples": [files / MISSING],
        "bench perplexity": [files / "text.txt", "--pack", pack, "--ctx", 16, "--limit", 1, "--out", "{out}/ppl{n}"],
        "bench loss": ["--pack", pack, "--data", files / MISSING, "--out", "{out}/loss{n}"],
        "bench pack-answers": [files / MISSING],
        "bench join-answers": [files / MISSING, "-o", "{out}/joined{n}"],
        "bench reproduce": ["--base", files / MISSING, "--data", files / MISSING, "-o", "{out}/all{n}"],
    }
    return {name: [*name.split(), *map(str, words)] for name, words in lines.items()}


def filled(words: list[str], out: Path, pack: Path, n: int) -> list[str]:
    """The words of one run."""
    return [word.replace("{out}", str(out)).replace("{pack}", str(pack)).replace("{n}", str(n)) for word in words]
