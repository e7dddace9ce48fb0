"""Data of one's own: every form as messages, what is refused by line, and which tokens of a conversation are learned.

What is learned is proved by reading the chat template prefix by prefix with transformers' own jinja: behind the
prompt of each answer, exactly the text that the template adds for it, up to the token that ends it.
"""

import json
import os
from pathlib import Path

import pytest
from build_gguf import keys_with_marks, tiny_base
from build_rows import write_jsonl
from gguf import GGUFValueType
from slm_edge.edge.errors import InputError
from slm_edge.train.data.conversations import form_of, read_conversations
from slm_edge.train.data.examples import Counts, split_held_out
from slm_edge.train.data.task import find_task
from slm_edge.train.data.tokenize import tokenize
from slm_edge.train.model.bases import open_base
from slm_edge.train.run.batches import pack

SAID = [
    {"role": "user", "content": "Two and two?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And one?"},
    {"role": "assistant", "content": "Five."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
FORMS = {
    "messages": {"messages": SAID},
    "prompt and completion": {"prompt": SAID[:3], "completion": SAID[3:]},
    "Alpaca": {
        "instruction": "And",
        "input": "one?",
        "output": "Five.",
        "history": [["Two and two?", "Four."]],
    },
    "ShareGPT": {
        "conversations": [
            {"from": "human" if turn["role"] == "user" else "gpt", "value": turn["content"]} for turn in SAID
        ]
    },
}
CALL = {"name": "add", "arguments": {"a": 2, "b": 2}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
# In the manner of the real ones, with what their turns end with
TEMPLATES = {
    "qwen2.5": (
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|im_start|>user\n<r>' + m.content + '</r>' }}"
        "{% elif m.tool_calls %}<|im_start|>assistant{% for call in m.tool_calls %}{{ '\n<tool_call>\n' }}"
        "{{ call.function | tojson }}{{ '\n</tool_call>' }}{% endfor %}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "llama-3.2": (
        "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m.role + '<|tail|>\n\n' + m.content | trim }}"
        "{{ '<|eot|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|tail|>\n\n' }}{% endif %}",
        ("<|head|>", "<|tail|>", "<|eot|>"),
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
        "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    # As Qwen3: thoughts of past turns are dropped, the last turn has some, if empty ones
    "qwen3": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}"
        "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% set content = m.content %}{% set thought = '' %}"
        "{% if '</think>' in content %}"
        "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
        "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
        "{{ '<|im_start|>assistant\n<think>\n' + thought + '\n</think>\n\n' + content }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
        "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
}


def base_of(folder, template, marks):
    """A tiny base with these control tokens, of which the last ends a turn."""
    keys = keys_with_marks(*marks)
    end = keys["tokenizer.ggml.tokens"][0].index(marks[-1])
    keys |= {"tokenizer.ggml.eos_token_id": (end, GGUFValueType.UINT32)}
    return open_base(tiny_base(folder / "base.gguf", chat_template=template, keys=keys))


def rendered(template, messages, prompt=False, **told):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    given = {"bos_token": "<|endoftext|>", "eos_token": "", "tools": None, "documents": None, **told}
    return _compile_jinja_template(template).render(messages=messages, add_generation_prompt=prompt, **given)


def read_off(template, turns, end, **told):
    """Prompt and answer of each assistant turn, as the template writes them."""
    for at, turn in enumerate(turns):
        if turn["role"] == "assistant":
            prompt = rendered(template, turns[:at], True, **told)
            whole = rendered(template, turns[: at + 1], **told)
            assert whole.startswith(prompt)
            yield prompt, whole[len(prompt) : whole.index(end, len(prompt)) + len(end)]


def shown(base, ids):
    return base._vocab.decode(list(ids), special=True)


def tokens_of(base, rows, max_tokens=10_000, **changes):
    import dataclasses

    pairs = [dataclasses.replace(pair, **changes) for pair in find_task("chat").pairs(rows, pytest.fail)]
    counts = Counts()
    return tokenize(base, pairs, max_tokens, counts), counts


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_conversation(form, tmp_path, capsys):
    row = FORMS[form]
    assert form_of(row) == form
    path = write_jsonl(tmp_path / "rows.jsonl", [row, row])
    found = list(read_conversations(path))
    wanted = [{**turn, "content": turn["content"].replace("And one", "And\none")} for turn in SAID]
    assert found == [{"messages": wanted if form == "Alpaca" else SAID}] * 2
    assert f"rows of the form {form}" in capsys.readouterr().err
    if form != "messages":
        with_system = write_jsonl(tmp_path / "system.jsonl", [{**row, "system": "Be brief."}])
        assert next(read_conversations(with_system))["messages"][0] == SYSTEM


def test_tools_and_calls_of_both_styles(tmp_path):
    sharegpt = {
        "conversations": [
            {"from": "human", "value": "2 + 2?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "4"},
            {"from": "gpt", "value": "Four."},
        ],
        "tools": json.dumps([TOOL]),
    }
    openai = {
        "messages": [
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "Four."},
        ],
        "tools": [TOOL],
    }
    found = [next(read_conversations(write_jsonl(tmp_path / "a.jsonl", [row]))) for row in (sharegpt, openai)]
    assert found[0] == found[1]
    assert found[0]["tools"] == [TOOL]
    base = base_of(tmp_path, *TEMPLATES["qwen2.5"])
    (example,), _ = tokens_of(base, [openai])
    template, (*_, end) = TEMPLATES["qwen2.5"]
    learned = "".join(answer for _, answer in read_off(template, found[0]["messages"], end, tools=[TOOL]))
    assert shown(base, [example.ids[place] for place in example.learned]) == learned
    assert '"name": "add"' in learned


def test_what_is_no_row_is_refused_by_its_line(tmp_path):
    mixed = [FORMS["messages"], FORMS["ShareGPT"], FORMS["messages"], {"messages": [{"role": "user"}]}, {"text": "x"}]
    with pytest.raises(InputError, match="no messages rows") as caught:
        list(read_conversations(write_jsonl(tmp_path / "mixed.jsonl", mixed)))
    assert list(caught.value.problems) == [
        "line 2: it is a row of another form, ShareGPT",
        "line 4: turn 1 of 'messages': content is no text",
        "line 5: it lacks messages",
    ]
    with pytest.raises(InputError, match="row 1 has no form that is known: text"):
        list(read_conversations(write_jsonl(tmp_path / "text.jsonl", [{"text": "x"}])))
    for broken in (
        {"conversations": [{"from": "narrator", "value": "x"}]},
        {"conversations": [{"from": "function_call", "value": "{"}]},
        {"conversations": "x"},
        {**FORMS["messages"], "tools": "{"},
        {**FORMS["Alpaca"], "history": ["x"]},
        {"prompt": 3, "completion": "x"},
        {"messages": [{"role": "user", "content": "half \ud83d"}]},
    ):
        path = tmp_path / "broken.json"
        path.write_text(json.dumps([broken]))
        with pytest.raises(InputError):
            list(read_conversations(path))


def test_parquet_rows_are_read_too(tmp_path):
    import pyarrow
    from pyarrow import parquet

    row = {"messages": [{**turn, "tool_calls": None} for turn in SAID], "source": "x"}
    parquet.write_table(pyarrow.Table.from_pylist([row, row]), tmp_path / "rows.parquet")
    assert list(read_conversations(tmp_path / "rows.parquet")) == [{"messages": SAID}] * 2


@pytest.mark.parametrize("name", ["qwen2.5", "llama-3.2", "gemma"])
def test_all_answers_share_a_row_where_the_past_stays_as_it_was(name, tmp_path):
    template, marks = TEMPLATES[name]
    base = base_of(tmp_path, template, marks)
    (example,), _ = tokens_of(base, [{"messages": SAID}])
    answers = list(read_off(template, SAID, marks[-1]))
    spans = [example.n_prompt, *(place for gap in example.gaps for place in gap), len(example.ids)]
    for (prompt, answer), start, end in zip(answers, spans[::2], spans[1::2], strict=True):
        assert shown(base, example.ids[:start]) == prompt
        assert shown(base, example.ids[start:end]) == answer
    assert len(answers) == 2
    # What the loss is computed on
    batch = pack([example], 0)
    assert shown(base, batch.targets.tolist()) == "".join(answer for _, answer in answers)
    assert [batch.ids[0, at + 1].item() for at in batch.at.tolist()] == batch.targets.tolist()
    (last,), _ = tokens_of(base, [{"messages": SAID}], all_turns=False)
    assert (last.ids, last.gaps, last.n_prompt) == (example.ids, (), spans[-2])


@pytest.mark.parametrize("told", [{}, {"enable_thinking": False}])
def test_answers_have_rows_of_their_own_where_the_template_rewrites_the_past(told, tmp_path):
    template, marks = TEMPLATES["qwen3"]
    base = base_of(tmp_path, template, marks)
    thought = [dict(turn) for turn in SAID]
    if not told:
        thought[1]["content"] = "<think>\nEasy.\n</think>\n\nFour."
    examples, _ = tokens_of(base, [{"messages": thought}], arguments=told)
    answers = list(read_off(template, thought, marks[-1], **told))
    assert [(shown(base, e.ids[: e.n_prompt]), shown(base, e.ids[e.n_prompt :])) for e in examples] == answers
    assert ("Easy." in answers[0][1]) == (not told)
    assert all("Easy." not in prompt for prompt, _ in answers)
    assert {e.gaps for e in examples} == {()}
    # Both are held out, or none.
    others, _ = tokens_of(base, [{"messages": [{**turn, "content": f"{turn['content']} {n}"} for turn in thought]}
                                 for n in range(6)], arguments=told)  # fmt: skip
    train, held_out = split_held_out([*examples, *others], 3)
    assert not {e.of for e in train} & {e.of for e in held_out}
    assert len(held_out) == 4


def test_answers_that_are_too_long_and_rows_that_are_refused(tmp_path):
    base = base_of(tmp_path, *TEMPLATES["gemma"])
    long = [*SAID, {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because. " * 50}]
    examples, counts = tokens_of(base, [{"messages": long}, {"messages": long}, {"messages": [SYSTEM, *SAID]}], 200)
    (whole,), _ = tokens_of(base, [{"messages": SAID}])
    assert [e.ids for e in examples] == [whole.ids]
    assert counts.dropped == {
        "answers of a conversation, too long": 2,
        "duplicate": 1,
        "refused by the chat template": 1,
    }


def test_conversations_without_an_answer_are_left_out():
    task, reasons = find_task("chat"), []
    open_end = [*SAID, {"role": "user", "content": "And?"}]
    pairs = list(
        task.pairs(
            [
                {"messages": open_end},
                {"messages": SAID[:1]},
                {"messages": [SAID[0], {"role": "assistant", "content": " "}]},
            ],
            reasons.append,
        )
    )
    assert [pair.conversation for pair in pairs] == [SAID]
    assert reasons == ["no answer of the assistant", "the last answer is empty"]


@pytest.mark.reference
def test_real_templates_prefix_by_prefix(tmp_path):
    """Qwen2.5, Qwen3, Llama 3.2, Gemma and others as they are published, in a folder named by SLM_EDGE_TEMPLATES."""
    folder = os.environ.get("SLM_EDGE_TEMPLATES")
    if not folder:
        pytest.skip("no folder of templates (set SLM_EDGE_TEMPLATES)")
    ends = {"<|im_end|>": "<|im_start|>", "<|eot_id|>": "<|start_header_id|>", "<end_of_turn>": "<start_of_turn>"}
    n_read = 0
    for path in sorted(Path(folder).glob("*.jinja")):
        template = path.read_text()
        end = next((end for end in ends if end in template), None)
        if end is None:
            continue
        (tmp_path / path.stem).mkdir()
        base = base_of(tmp_path / path.stem, template, (ends[end], end))
        examples, _ = tokens_of(base, [{"messages": SAID}])
        found = []
        for example in examples:
            spans = [example.n_prompt, *(place for gap in example.gaps for place in gap), len(example.ids)]
            for start, stop in zip(spans[::2], spans[1::2], strict=True):
                found.append((shown(base, example.ids[:start]), shown(base, example.ids[start:stop])))
        try:
            wanted = list(read_off(template, SAID, end))
        except AssertionError:
            continue
        assert found == wanted, path.name
        n_read += 1
    assert n_read >= 4


@pytest.mark.usefixtures("starter_base")
def test_the_starters_own_template(starter_base):
    base = open_base(starter_base)
    (example,), _ = tokens_of(base, [{"messages": SAID}])
    learned = "".join(answer for _, answer in read_off(base.template.source, SAID, "<|im_end|>"))
    assert shown(base, [example.ids[place] for place in example.learned]) == learned == "Four.<|im_end|>Five.<|im_end|>"
