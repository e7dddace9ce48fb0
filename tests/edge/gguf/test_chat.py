"""Chat templates against transformers' own rendering of the same text, and the sandbox."""

import json

import pytest
from build_gguf import tiny_base
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.gguf.chat_template import ChatTemplate
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.llama.vocab import Vocab

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_LIKE = (
    "{{- bos_token }}\n{%- if not date is defined %}\n    {%- set date = 'today' %}\n{%- endif %}\n"
    "{%- for message in messages %}\n    {%- if message.content is none %}{%- continue %}{%- endif %}\n"
    "    {{- '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}\n"
    "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|start|>assistant<|end|>\n\n' }}\n{%- endif %}\n"
    "{{- messages | tojson }}"
)
TALK = [
    {"role": "system", "content": 'Sei <kurz> & "klar".'},
    {"role": "user", "content": "  1 < 2, oder? 日本語  "},
    {"role": "assistant", "content": "Ja.\n"},
    {"role": "user", "content": "{{ 7 * 7 }}"},
]


def by_transformers(template, messages, bos, eos, prompt=True):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    compiled = _compile_jinja_template(template)
    return compiled.render(messages=messages, add_generation_prompt=prompt, bos_token=bos, eos_token=eos)


@pytest.mark.parametrize("template", [CHATML, LLAMA_LIKE])
@pytest.mark.parametrize("messages", [TALK, TALK[1:], TALK[:2]])
@pytest.mark.parametrize("prompt", [True, False])
def test_renders_as_transformers_does(template, messages, prompt):
    ours = ChatTemplate(template, "<s>", "</s>").render(messages, add_generation_prompt=prompt)
    assert ours == by_transformers(template, messages, "<s>", "</s>", prompt)


@pytest.mark.reference
def test_qwens_own_template(shared_data):
    config = json.loads((shared_data / "tokenizer_qwen2.5" / "tokenizer_config.json").read_text())
    template = config["chat_template"]
    assert ChatTemplate(template).render(TALK) == by_transformers(template, TALK, "", "")


def test_a_template_cannot_reach_out():
    hostile = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="template fails"):
        ChatTemplate(hostile).render(TALK)


def test_a_templates_own_refusal_is_an_error():
    with pytest.raises(UnsupportedError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(TALK)


def test_a_broken_template_is_an_error():
    with pytest.raises(InputError, match="not valid"):
        ChatTemplate("{% for %}")


def test_a_model_without_a_template_says_how_to_give_one(tmp_path):
    base = tiny_base(tmp_path / "b.gguf", chat_template=None)
    with pytest.raises(InputError, match="--chat-template"):
        ChatTemplate.of(GgufFile.open(base))


def test_special_tokens_of_the_template_are_single_tokens(tmp_path):
    base = tiny_base(tmp_path / "b.gguf")
    text = ChatTemplate.of(GgufFile.open(base)).render([{"role": "user", "content": "Hi"}])
    with Vocab.open(base) as vocab:
        ids = vocab.encode(text)
        tokens = GgufFile.open(base).get("tokenizer.ggml.tokens")
        assert sum(tokens[token_id] == "<|im_start|>" for token_id in ids) == text.count("<|im_start|>") > 0
        assert vocab.decode(ids, special=True) == text
        # The user's text may not smuggle in special tokens when it is encoded as plain text.
        assert len(vocab.encode("<|im_start|>", special=False)) > 1
