"""Activated LoRA: the packed pass against PEFT's own aLoRA, row by row; its runs and its export."""

import json

import pytest
import torch
from build_gguf import tiny_base
from build_models import two_models
from build_rows import gsm8k_row, write_jsonl
from slm_edge.edge.errors import InputError
from slm_edge.edge.gguf.adapter import ALORA_TOKENS_KEY
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.export.lora.lora import export_lora
from slm_edge.train.data.examples import Example, shared_prefix_tokens
from slm_edge.train.model.alora import last_place
from slm_edge.train.model.lora import trainable
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.batches import pack
from slm_edge.train.run.job import train
from slm_edge.train.run.loop import packed_loss
from torch.nn import functional as F

pytestmark = pytest.mark.usefixtures("one_thread")
INVOCATION = (90, 91, 92)


def rows():
    generator = torch.Generator().manual_seed(1)

    def some(n):
        return torch.randint(0, 80, (n,), generator=generator).tolist()

    made = []
    for before, prompt, answer in ((4, 3, 5), (7, 0, 6), (2, 6, 3)):
        # the invocation stands twice: only its last place counts
        ids = (1, 2, 3, *some(before), *INVOCATION, *some(2), *INVOCATION, *some(prompt))
        start = last_place(ids, INVOCATION)
        assert start == 3 + before + 5
        made.append(Example((*ids, *some(answer)), len(ids), start))
    return made


@pytest.mark.parametrize("prefix", [0, 3])
def test_loss_and_gradients_are_those_of_pefts_alora(prefix):
    ours, theirs = two_models(invocation=INVOCATION)
    assert prefix <= shared_prefix_tokens(rows())
    loss = packed_loss(ours, pack(rows(), prefix))
    loss.backward()
    expected = 0.0
    for example in rows():
        ids = torch.tensor([example.ids])
        logits = theirs(input_ids=ids).logits[0, example.n_prompt - 1 : -1]
        expected = expected + F.cross_entropy(logits, ids[0, example.n_prompt :], reduction="sum")
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    reference = trainable(theirs)
    for name, parameter in trainable(ours).items():
        torch.testing.assert_close(parameter.grad, reference[name].grad, rtol=1e-4, atol=1e-4)
    everywhere = packed_loss(ours, pack([Example(e.ids, e.n_prompt) for e in rows()], prefix))
    assert abs(everywhere.item() - loss.item()) > 1e-2


def test_a_run_trains_one_that_exports_with_its_tokens(tmp_path):
    base = tiny_base(tmp_path / "tiny.gguf")
    data = write_jsonl(tmp_path / "rows.jsonl", [gsm8k_row(n) for n in range(12)])
    small = {"rank": 4, "batch": 4, "forward_tokens": 160, "held_out": 2, "steps": 2}
    recipe = Recipe(task="math", alora_invocation="<|im_start|>assistant\n", **small)
    record = train(recipe, base=base, data=[data], output=tmp_path / "peft", threads=1)
    assert record["counts"]["train"] == 10
    tokens = json.loads((tmp_path / "peft/adapter_config.json").read_text())["alora_invocation_tokens"]
    export_lora(tmp_path / "peft", base, tmp_path / "math.gguf")
    assert GgufFile.open(tmp_path / "math.gguf").get(ALORA_TOKENS_KEY) == tokens
    with pytest.raises(InputError) as caught:
        never = Recipe(task="math", alora_invocation="<|im_end|><|im_end|>", **small)
        train(never, base=base, data=[data], output=tmp_path / "none", threads=1)
    assert caught.value.problems == ("12 x no invocation in the prompt, or one in the answer",)


def test_alora_with_dropout_is_refused():
    with pytest.raises(InputError, match="not built"):
        Recipe(task="math", alora_invocation="x", dropout=0.1)
