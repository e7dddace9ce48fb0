"""Chat templates against transformers' own rendering of the same text, and the sandbox."""

import datetime
import json
import subprocess
import sys

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


DIALECTS = {
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "tojson": "{{ messages | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=true) }}{{ [1] | tojson(2) }}",
    "loop controls": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "loops": "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ loop.length }}{{ loop.last }}"
    "{{ loop.previtem is defined }}{{ loop.nextitem is defined }}{% else %}none{% endfor %}",
    "recursion": "{% for m in [[1, [2]], [3]] recursive %}{{ m if m is number else loop(m) }}{% endfor %}",
    "namespaces": "{% set n = namespace(s='', k=[]) %}{% for m in messages %}{% set n.s = n.s ~ m.role[:2] + '|' %}"
    "{% set n.k = n.k + [m.role] %}{% endfor %}{{ n.s * 2 }}{{ n.k }}{{ messages[::-1][0].role }}",
    "macros": "{% macro f(m, n=1) %}{{ m.role|upper }}{{ caller() }}{% endmacro %}"
    "{% for m in messages %}{% call f(m) %}!{% endcall %}{% endfor %}",
    "filters": "{{ messages|selectattr('role', 'equalto', 'user')|map(attribute='content')|join(', ') }}"
    "{{ messages[0].content|replace('e', 'ee')|indent(4)|trim }}{{ '%s: %d' % ('a', 5) }}{{ '{}-{a}'.format(1, a=2) }}"
    "{{ messages|map('tojson')|list|length }}{{ messages[0].items()|list }}{{ none|default('x', true) }}",
    "undefined": "{% if tools is none %}no tools{% endif %}{{ nothing }}{% for x in nothing %}{% endfor %}",
    "set": "{% set x %}a{{ messages[0].role }}{% endset %}{{ x }}{% set a, b = 1, 2 %}{{ (a, b) }}{{ {'k': a} }}",
    "text": "{{ messages[0].content.split(' ')[-1].strip('\"').rsplit('.', 1) }}{{ 'é'.encode('utf-8') }}",
}


@pytest.mark.parametrize("name", DIALECTS)
@pytest.mark.parametrize("prompt", [True, False])
def test_the_environment_is_that_of_transformers(name, prompt):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    theirs = _compile_jinja_template(DIALECTS[name])
    wanted = theirs.render(messages=TALK, tools=None, documents=None, add_generation_prompt=prompt)
    assert ChatTemplate(DIALECTS[name]).render(TALK, add_generation_prompt=prompt) == wanted


def test_every_special_token_of_a_base_can_be_named(tmp_path):
    template = "{{ bos_token }} {{ eos_token }} {{ pad_token }} {{ messages[0].content }}"
    base = tiny_base(tmp_path / "b.gguf", chat_template=template)
    assert ChatTemplate.of(GgufFile.open(base)).render(TALK[1:2]).startswith("<|endoftext|> <|im_end|> <|endoftext|> ")


HOSTILE = {
    "division": "{{ 1 / (messages|length - 1) }}",
    "lookup": "{{ 'abc'.index('z') }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "codec": "{{ messages[0].content.encode('punycode') }}",
    "break": "{% break %}",
    "brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for x in range(999) recursive %}{{ loop(range(999)) }}{% endfor %}",
    "doubled": "{% set n = namespace(s='a') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
    "doubled lists": "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
    "{{ n.s }}",
    "doubled calls": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "format": "{{ '%999999999s'|format('x') }}",
    "nested format": "{{ '{:>{w}}'.format('x', w=999999999) }}",
    "center": "{{ 'x'|center(999999999) }}",
    "zfill": "{{ 'x'.zfill(999999999) }}",
    "join": "{{ (['x' * 100000] * 99999)|join }}",
    "replace": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "power": "{{ 9 ** 999999999 }}",
    "round": "{{ 1.5|round(999999999, 'floor') }}",
    "generators": "{% for i in range(99999) %}{{ range(99999)|map(attribute='real')|list|length }}{% endfor %}",
    "search": "{% set t = 'a' * 900000 %}{% for i in range(9999) %}{{ t.rfind('b' ~ 'a' * 400000) }}{% endfor %}",
    "text in a loop": "{% for i in range(99999) %}" + "y" * 50000 + "{% endfor %}",
    "include": "{% include 'x' %}",
    "long": "x" * 300_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_with_one_error_within_memory_and_time(name):
    """In a process of its own with limits that a runaway template would meet: it ends the process, not the suite."""
    program = (
        "import resource, sys\n"
        "from slm_edge.edge.errors import InputError\n"
        "from slm_edge.edge.gguf.chat_template import ChatTemplate\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (20, 20))\n"
        "try:\n    ChatTemplate(sys.stdin.read()).render([{'role': 'user', 'content': 'hello'}])\n"
        "except InputError as error:\n    print(str(error)[:300])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=HOSTILE[name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.startswith(("the chat template", "the model's chat template fails")), done.stdout


def test_a_template_of_no_use_is_told_before_it_is_packed():
    ChatTemplate(CHATML).check()
    with pytest.raises(InputError, match=r"takes no conversation: .*not today"):
        ChatTemplate("{{ raise_exception('not today') }}").check()
    with pytest.raises(InputError, match="does not write what the user says"):
        ChatTemplate("hello").check()


def test_a_template_that_writes_the_date_is_known_and_can_be_held():
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }} {{ messages[-1].content }}")
    assert template.is_dated and not ChatTemplate(CHATML).is_dated
    template.fix_date(datetime.date(2024, 7, 26))
    assert template.render(TALK[1:2]).startswith("26 Jul 2024 ")


@pytest.mark.parametrize("template", [CHATML, LLAMA_LIKE])
@pytest.mark.parametrize("last", ["Well, ", "  Ja", "x", "", "<think>", "CONTINUE_FINAL_MESSAGE_TAG"])
def test_an_open_message_ends_where_transformers_ends_it(template, last):
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [*TALK[:2], {"role": "assistant", "content": last}]
    theirs = render_jinja_template(
        [messages], chat_template=template, continue_final_message=True, bos_token="<s>", eos_token="</s>"
    )
    ours = ChatTemplate(template, "<s>", "</s>").render(messages, False, continue_final_message=True)
    assert ours == (theirs[0][0] if isinstance(theirs, tuple) else theirs[0])
