"""What tests of exported tokenizers share: texts, the export of a folder, and the comparison."""

import random

from slm_edge.edge.llama.vocab import Vocab
from slm_edge.export.base.base import Options, export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.tokenizer.corpus import ODD, PROSE

NUMBERS = [" ".join(str(n * n * 37 % 100_000) for n in range(k, k + 40)) for k in range(0, 400, 40)]


def exported(tmp_path, name="base.gguf", **options):
    path = tmp_path / name
    return path, export_base(tmp_path / "hf", path, TYPES["q8_0"], Options(**options))


def odd_texts(count=300):
    """Texts that the export never saw: random mixtures of pieces of many scripts, spaces, digits and signs."""
    pieces = [word for line in (*PROSE, *ODD) for word in line.split(" ")] + [
        " ",
        "  ",
        "\n",
        "\t",
        "\n\n",
        " \n",
        "12",
        "'s",
    ]
    rng = random.Random(7)
    return [
        "".join(rng.choice(pieces) + rng.choice(("", " ", "")) for _ in range(rng.randint(1, 14))) for _ in range(count)
    ]


def assert_equal_everywhere(path, encode, texts):
    with Vocab.open(path) as vocab:
        different = [text for text in texts if vocab.encode(text) != encode(text)]
    assert different == []
