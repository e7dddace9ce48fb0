"""An adapter has the pairs that its config names, as PEFT itself reads it: no fewer, and no others."""

import pytest
from build_peft import pair, written_adapter
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from slm_edge.edge.errors import InputError
from slm_edge.edge.gguf.file import GgufFile
from slm_edge.export.lora.lora import export_lora

SIZES = {"q_proj": (64, 64), "k_proj": (64, 32), "v_proj": (64, 32), "o_proj": (64, 64)}
SIZES |= {"gate_proj": (64, 128), "up_proj": (64, 128), "down_proj": (128, 64)}
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?(?:q_proj|k_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|k_proj)))"
)
CONFIGS = {
    "names": {"target_modules": ["q_proj", "v_proj"]},
    "names that are not there": {"target_modules": ["q_proj", "c_attn", "Wqkv"]},
    "parts of names": {"target_modules": ["mlp.up_proj", "0.self_attn.q_proj"]},
    "whole names": {"target_modules": ["model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj"]},
    "an end that is no part": {"target_modules": ["_proj", "o_proj"]},
    "a layer": {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": 1},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 7], "layers_pattern": "layers"},
    "no layers, which are all": {"target_modules": ["gate_proj"], "layers_to_transform": []},
    "a pattern of layers in a list": {
        "target_modules": ["up_proj"],
        "layers_to_transform": [1],
        "layers_pattern": ["h", "layers"],
    },
    "a regular expression": {"target_modules": r".*\.(q|k)_proj"},
    "unsloth's": {"target_modules": UNSLOTH},
    "a layer by expression": {"target_modules": r"model\.layers\.1\..*_proj"},
    "names less some": {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["0.self_attn.o_proj"]},
    "names less an expression": {"target_modules": ["q_proj", "o_proj"], "exclude_modules": r".*0\.self_attn\..*"},
    "an expression less names": {"target_modules": r".*self_attn.*", "exclude_modules": ["v_proj", "k_proj"]},
}


def module(layer, name):
    return f"model.layers.{layer}.{'mlp' if name in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{name}"


MODULES = {module(layer, name): size for layer in (0, 1) for name, size in SIZES.items()}


def written(folder, modules, config):
    pairs = {key: value for name in modules for key, value in pair(name, *MODULES[name]).items()}
    return written_adapter(folder, pairs, **config)


@pytest.mark.parametrize("name", CONFIGS)
def test_as_peft_reads_it(tmp_path, base, name):
    config = CONFIGS[name]
    read = LoraConfig(**config)
    verdicts = {key: check_target_module_exists(read, key) for key in MODULES}
    # A match, or one of PEFT's own that is true and means that it is left out
    named = [key for key, found in verdicts.items() if found and type(found).__name__ != "_ExcludedModule"]
    assert 0 < len(named) < len(MODULES)
    export_lora(written(tmp_path / "whole", named, config), base, tmp_path / "whole.gguf")
    assert len(GgufFile.open(tmp_path / "whole.gguf").tensors) == 2 * len(named)
    if named[1:]:
        with pytest.raises(InputError, match="holds no matrices") as told:
            export_lora(written(tmp_path / "less", named[1:], config), base, tmp_path / "less.gguf")
        layer, _, part = named[0].removeprefix("model.layers.").partition(".")
        assert f"{part} of layers {layer}" in str(told.value)
    other = next(key for key in MODULES if key not in named)
    more = written(tmp_path / "more", [*named, other], config)
    if isinstance(config["target_modules"], list):
        with pytest.raises(InputError, match="does not name"):
            export_lora(more, base, tmp_path / "more.gguf")


def test_all_linear_is_every_matrix_of_a_block(tmp_path, base):
    config = {"target_modules": "all-linear"}
    export_lora(written(tmp_path / "a", MODULES, config), base, tmp_path / "a.gguf")
    with pytest.raises(InputError, match="down_proj of layers 1"):
        export_lora(written(tmp_path / "b", [*MODULES][:-1], config), base, tmp_path / "b.gguf")


def test_a_pattern_of_layers_of_its_own_is_left_to_peft(tmp_path, base):
    config = {"target_modules": ["q_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]}
    assert check_target_module_exists(LoraConfig(**config), module(1, "q_proj"))
    export_lora(written(tmp_path / "a", [module(1, "q_proj")], config), base, tmp_path / "a.gguf")


def test_names_of_a_multimodal_model_in_the_config(tmp_path, base):
    """Whole names, as PEFT saves them where ends would name parts of the vision tower too."""
    config = {"target_modules": [f"model.language_model.{key.removeprefix('model.')}" for key in MODULES]}
    export_lora(written(tmp_path / "a", MODULES, config), base, tmp_path / "a.gguf")


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules"])
@pytest.mark.parametrize(
    ("pattern", "reason"), [("(q_proj", "is not a regular expression"), ("(.*)*" * 9 + "!", "take more than")]
)
def test_patterns_that_cannot_be_tried(tmp_path, base, field, pattern, reason):
    config = {"target_modules": ["q_proj"]} | {field: pattern}
    with pytest.raises(InputError, match=reason) as told:
        export_lora(
            written(tmp_path / "a", [module(0, "q_proj"), module(1, "q_proj")], config), base, tmp_path / "a.gguf"
        )
    assert field in str(told.value)


def test_a_head_and_an_embedding_are_named_too(tmp_path, base):
    both = written_adapter(
        tmp_path / "a",
        pair(module(0, "q_proj"), 64, 64) | pair(module(1, "q_proj"), 64, 64),
        target_modules=["q_proj", "lm_head", "embed_tokens"],
    )
    with pytest.raises(InputError) as told:
        export_lora(both, base, tmp_path / "a.gguf")
    assert "lm_head" in str(told.value) and "model.embed_tokens" in str(told.value)
