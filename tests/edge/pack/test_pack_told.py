"""What `pack build` and `pack add` say of a base's template and of adapters that name another base."""

import pytest
from build_gguf import tiny_adapter, tiny_base
from click.testing import CliRunner
from slm_edge.edge.cli.pack import pack
from slm_edge.edge.errors import InputError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.edge.pack.write import build_pack
from slm_edge.export.files.gguf_writer import NewTensor, keys_of, text, write_gguf


def build(*arguments):
    done = CliRunner().invoke(pack, ["build", *map(str, arguments)])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("template", [None, "{% for %}", "{{ raise_exception('no') }}"])
def test_a_base_without_a_usable_template_is_not_packed(tmp_path, template):
    base = tiny_base(tmp_path / "base.gguf", chat_template=template)
    with pytest.raises(InputError, match="chat template"):
        build_pack(tmp_path / "pack", base=base)
    assert not (tmp_path / "pack").exists()


def test_a_date_in_prompts_is_told(tmp_path):
    dated = "{{ strftime_now('%d %b %Y') }}{{ messages[-1].content }}"
    base = tiny_base(tmp_path / "base.gguf", chat_template=dated)
    assert "today's date" in build("-o", tmp_path / "pack", "--base", base)
    assert "today's date" not in build("-o", tmp_path / "other", "--base", tiny_base(tmp_path / "b.gguf"))


def test_an_adapter_of_llama_cpp_that_names_another_base_is_told(tmp_path):
    base = tiny_base(tmp_path / "base.gguf")
    source = GgufFile.open(tiny_adapter(tmp_path / "a.gguf", base, seed=3))
    tensors = [NewTensor.copied(source, name) for name in source.tensors]
    keys = {key: value for key, value in keys_of(source).items() if not key.startswith("slm_edge.")}
    for name, told in (("Qwen2.5 0.5B Instruct", True), ("Tiny-Llama", False)):
        named = tmp_path / f"{told}.gguf"
        write_gguf(named, keys | {"general.base_model.0.name": text(name)}, tensors)
        output = build("-o", tmp_path / f"pack{told}", "--base", base, "--adapter", f"x={named}")
        assert (f"made for '{name}'" in output) is told
