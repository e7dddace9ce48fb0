"""The token that ends an answer is learned in each row, and a base that cannot tell it from others is refused."""

import json

import pytest
import torch
from build_gguf import keys_with_marks, tiny_base
from build_hf import edit_config, tiny_checkpoint
from build_rows import SMALL, gsm8k_row, write_jsonl
from safetensors.torch import load_file, save_file
from slm_edge.edge.errors import UnsupportedError
from slm_edge.edge.gguf.families import FAMILIES
from slm_edge.edge.gguf.types import GgmlType
from slm_edge.export.base.base import export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.train.data.examples import Counts, Pair
from slm_edge.train.data.tokenize import tokenize
from slm_edge.train.model.bases import completion_end, open_base
from slm_edge.train.model.end_token import FEWEST_NEAR, check_end_learned, near_rows
from slm_edge.train.model.frozen import BlockLinear, float_rows
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.batches import pack
from slm_edge.train.run.job import train

PAIRS = [
    Pair([{"role": "user", "content": "Two and two?"}], "Four.\n"),
    Pair([{"role": "user", "content": "Say <end_of_turn>"}], "<end_of_turn>"),
    Pair([{"role": "user", "content": "Code?"}], "```\nx\n```"),
]
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else 'user') }}"
    "{{ '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def assert_ends_are_learned(base, end):
    """Each row, as a pass is given it, has the token that ends generation for its last label and for no other."""
    counts = Counts()
    examples = tokenize(base, PAIRS, 200, counts)
    assert len(examples) == len(PAIRS), counts.dropped
    end_id = completion_end(base)[-1]
    assert base.token_text(end_id) == end
    assert base.is_end(end_id)
    for example in examples:
        labels = pack([example], 0).targets.tolist()
        assert labels[-1] == end_id
        assert labels.count(end_id) == 1
        assert base.decode(labels[:-1]) != ""


@pytest.mark.parametrize("architecture", [name for name, row in FAMILIES.items() if "train" in row.uses])
def test_each_familys_end_of_turn_is_the_last_label(tmp_path, architecture):
    base = tiny_base(tmp_path / "base.gguf", architecture=architecture)
    assert_ends_are_learned(open_base(base), "<|im_end|>")


def test_gemmas_end_of_turn_is_a_label_though_its_file_names_another_end(tmp_path):
    """Real files say `<eos>`, whatever the template writes; llama.cpp stops at `<end_of_turn>` by its text."""
    keys = keys_with_marks("<start_of_turn>", "<end_of_turn>")
    base = tiny_base(tmp_path / "base.gguf", architecture="gemma3", chat_template=GEMMA, keys=keys)
    assert_ends_are_learned(open_base(base), "<end_of_turn>")


@pytest.mark.reference
@pytest.mark.parametrize(("name", "end"), [("tokenizer_qwen2.5", "<|im_end|>"), ("tokenizer_llama3", "<|eot_id|>")])
def test_real_tokenizers_end_their_rows(tmp_path, shared_data, name, end):
    source = shared_data / name
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    (tmp_path / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": "<|begin_of_text|>"}
    if (source / "tokenizer_config.json").is_file():
        config = json.loads((source / "tokenizer_config.json").read_text())
    else:
        config["chat_template"] = LLAMA3
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert_ends_are_learned(open_base(tmp_path), end)


def head_of(n_near, spread=0.05):
    """A head of 100 rows, and the row of token 50, about which `n_near` others lie."""
    torch.manual_seed(0)
    rows = torch.randn(100, 64)
    rows[60 : 60 + n_near] = rows[50] + spread * torch.randn(n_near, 64)
    head = torch.nn.Linear(64, 100, bias=False)
    head.weight.data.copy_(rows)
    return head


def test_rows_near_the_ends_are_found_in_plain_and_in_coded_heads():
    head = head_of(20)
    own, near = near_rows(head, 50)
    assert torch.equal(own, head.weight[50])
    assert torch.equal(near, head.weight[60:80])
    code, kind = float_rows(head.weight)
    assert kind is GgmlType.F32
    assert torch.equal(near_rows(BlockLinear(code, kind), 50)[1], near)


def test_only_a_base_that_prefers_such_tokens_is_refused(base):
    """A tuned model's end may have the same neighbours as an untrained one's: what counts is which it predicts."""
    opened, head = open_base(base), head_of(20)
    with torch.no_grad():
        own = head.weight[50]
        # Away from the neighbours, and towards them
        tells = torch.stack([own - head.weight[60:80].mean(dim=0)] * 4)
        mixes = torch.randn(4, 64)
    check_end_learned(head, tells, 2, opened)
    check_end_learned(head, tells, 50, opened)
    check_end_learned(head_of(FEWEST_NEAR - 1), mixes, 50, opened)
    with pytest.raises(UnsupportedError, match="never learned: 20 other tokens"):
        check_end_learned(head, mixes, 50, opened)


@pytest.mark.parametrize("weights", ["f32", "gguf"])
def test_training_a_base_that_was_only_pretrained_is_refused(tmp_path, weights):
    """As the real Gemma 3 270M: tied, and `<end_of_turn>` one of thousands of rows that no text ever moved."""
    folder = tiny_checkpoint(tmp_path / "hf", "gemma3")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    rows = tensors["model.embed_tokens.weight"]
    torch.manual_seed(0)
    n_unused = 64
    unused = torch.cat([rows, rows[2] + 0.01 * torch.randn(n_unused, rows.shape[1])])
    save_file({**tensors, "model.embed_tokens.weight": unused}, path, metadata={"format": "pt"})
    edit_config(folder, vocab_size=len(unused))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    names = [f"<unused{i}>" for i in range(n_unused)]
    tokenizer["added_tokens"] += [
        {**tokenizer["added_tokens"][0], "id": len(rows) + i, "content": name} for i, name in enumerate(names)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    export_base(folder, tmp_path / "base.gguf", TYPES["f32"])
    data = write_jsonl(tmp_path / "rows.jsonl", [gsm8k_row(n) for n in range(20)])
    recipe = Recipe(task="math", weights=weights, **{**SMALL, "steps": 2})
    with pytest.raises(UnsupportedError, match=f"<.im_end.>.*never learned: {n_unused} other tokens") as refused:
        train(recipe, base=tmp_path / "base.gguf", data=[data], output=tmp_path / "out")
    assert "--chat-template" in refused.value.hint
    assert not (tmp_path / "out").exists()
