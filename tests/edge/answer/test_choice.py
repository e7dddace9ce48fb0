"""Several adapters at once are PEFT's weighted sum; activated LoRA is PEFT's, with the base's cache kept."""

import numpy as np
import pytest
import torch
from build_hf import tiny_checkpoint
from build_peft import real_adapter
from peft import PeftModel
from slm_edge.edge.answer.settings import parse_choice
from slm_edge.edge.errors import InputError, UnsupportedError
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.session.session import Session
from slm_edge.edge.session.shelf import activation_start
from slm_edge.export.base.base import export_base
from slm_edge.export.base.quantize import TYPES
from slm_edge.export.lora.lora import export_lora
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("one_thread")
BOUND = 2e-3
EXACT = {"threads": 1, "kv_type": "f32", "flash_attention": "off"}
LONG = "The cat sat on the mat, and the dog didn't. " * 10
INVOCATION = (70, 71)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, its F32 base, two plain adapters and two activated ones: PEFT folders and GGUF files."""
    folder = tmp_path_factory.mktemp("choice")
    hf = tiny_checkpoint(folder / "hf")
    export_base(hf, folder / "base.gguf", TYPES["f32"])
    configs = {"a": {"r": 8, "lora_alpha": 16}, "b": {"r": 4, "lora_alpha": 12}}
    configs |= {"x": {"r": 8, "lora_alpha": 16}, "y": {"r": 8, "lora_alpha": 8}}
    files = {}
    for seed, (name, config) in enumerate(configs.items(), 1):
        if name in "xy":
            config["alora_invocation_tokens"] = list(INVOCATION)
        real_adapter(folder / f"peft-{name}", hf, seed=seed, **config)
        export_lora(folder / f"peft-{name}", folder / "base.gguf", folder / f"{name}.gguf", kind="f32")
        files[name] = (folder / f"{name}.gguf", None)
    return folder, files


def peft_model(folder, names):
    model = AutoModelForCausalLM.from_pretrained(folder / "hf").float().eval()
    peft = PeftModel.from_pretrained(model, folder / f"peft-{names[0]}", adapter_name=names[0])
    for name in names[1:]:
        peft.load_adapter(folder / f"peft-{name}", adapter_name=name)
    return peft.eval()


def last_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()


def session_of(made, **options):
    folder, files = made
    return Session.of_files(folder / "base.gguf", files, **(EXACT | options))


def test_a_weighted_sum_is_pefts(made):
    peft = peft_model(made[0], ["a", "b"])
    with session_of(made) as session:
        for weights in ({"a": 0.7, "b": 0.3}, {"a": 1.0, "b": 1.0}, {"b": -0.5, "a": 2.0}):
            name = f"sum-{len(peft.peft_config)}"
            peft.add_weighted_adapter(list(weights), list(weights.values()), name, combination_type="cat")
            peft.set_adapter(name)
            answer = session.use(weights).ask(LONG, max_tokens=1)
            expected = last_logits(peft, session.prompt_tokens(LONG))
            logits = session.context.logits()
            assert np.abs(logits - expected).max() <= BOUND
            assert answer.adapter == "+".join(f"{name}:{weights[name]:g}" for name in sorted(weights))
        alone = session.use("a").ask(LONG, max_tokens=1)
        assert alone.n_kept_tokens == 0
        assert np.abs(session.context.logits() - expected).max() > 0.1


def test_a_sum_comes_back_bit_for_bit(made):
    with session_of(made) as session:
        session.use({"a": 0.7, "b": 0.3}).ask(LONG, max_tokens=1)
        first = session.context.logits()
        session.use("a").ask(LONG, max_tokens=1)
        again = session.use({"b": 0.3, "a": 0.7}).ask(LONG, max_tokens=1)
        assert again.n_kept_tokens > 0
        assert np.array_equal(session.context.logits(), first)


def test_sums_and_their_faults_as_text():
    assert parse_choice("math") == {"math": None}
    assert parse_choice("math:0.7+code:-0.3") == {"math": 0.7, "code": -0.3}
    for wrong, why in (("math:x", "is not a scale"), ("math+math:2", "is named twice")):
        with pytest.raises(InputError, match=why):
            parse_choice(wrong)


def test_the_first_ones_card_counts_and_faults_are_told(made):
    folder, files = made
    cards = {"a": TaskCard(task="a", max_tokens=2), "b": TaskCard(task="b", max_tokens=5, scale=0.5)}
    with Session.of_files(folder / "base.gguf", {n: (files[n][0], cards[n]) for n in "ab"}, **EXACT) as session:
        assert session.use({"b": None, "a": 1.0}).ask("Hello").n_tokens == 5
        assert session.adapter == "a:1+b:0.5"
        for wrong in ({"a": 0.0, "b": 1.0}, {"a": float("nan")}, {"a": 1.0, "c": 1.0}):
            with pytest.raises(InputError):
                session.use(wrong)
        with pytest.raises(InputError, match="only with one adapter"):
            session.use({"a": 1.0}, scale=2.0)
        assert session.adapter == "a:1+b:0.5"


def test_where_an_invocation_begins():
    assert activation_start([1, 7, 8, 2, 7, 8, 3], (7, 8)) == 4
    assert activation_start([7, 8], (7, 8)) == 0
    assert activation_start([1, 7, 8, 8], (7, 8)) == 1
    assert activation_start([7, 7, 8], (7, 8)) == 1
    assert activation_start([1, 2], (7, 8)) is None
    assert activation_start([8], (7, 8)) is None


@pytest.mark.parametrize("n_before", [0, 1, 127, 128, 200])
def test_activated_lora_is_pefts(made, n_before):
    """From the first invocation token on, inclusive; what stands before is the base's, found in the cache."""
    ids = np.random.default_rng(n_before).integers(3, 384, n_before).tolist()
    ids = [72 if i in INVOCATION else i for i in ids] + [*INVOCATION, 90, 91]
    with session_of(made) as session:
        for name in "xyx":
            choice = session.choice_of(name)
            session._lane.begin(ids, session.sections(choice, ids))
            expected = last_logits(peft_model(made[0], [name]), ids)
            assert np.abs(session.context.logits() - expected).max() <= BOUND
        kept = session._lane.begin(ids, session.sections(session.choice_of("y"), ids))
        # All whole chunks of the base part, whichever aLoRA was in use before.
        assert kept == n_before


def test_an_alora_is_taken_up_in_the_middle_of_a_conversation(made):
    with session_of(made) as session:
        call = session.model.vocab.decode(list(INVOCATION))
        assert session.model.vocab.encode(call) == list(INVOCATION)
        turns = [{"role": "user", "content": LONG}]
        answer = session.ask(turns, max_tokens=4)
        turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "Right? \n" + call}]
        before = session.prompt_tokens(turns)
        start = activation_start(before, INVOCATION)
        session.use("x", swap="activated")
        assert session.swap == "activated"
        got = session.ask(turns, max_tokens=6)
        assert got.n_kept_tokens >= 128
        assert start > got.n_kept_tokens
        # Greedy text is PEFT's own: the adapter goes on acting on what is generated.
        peft = peft_model(made[0], ["x"])
        made_ids = peft.generate(input_ids=torch.tensor([before]), max_new_tokens=6, do_sample=False)[0].tolist()
        assert made_ids[len(before) :][: got.n_tokens] == list(got.token_ids)
        back = session.use(None).ask(turns, max_tokens=1)
        assert back.n_kept_tokens >= 128


def test_swaps_that_cannot_be_are_refused(made):
    with session_of(made) as session:
        with pytest.raises(UnsupportedError, match="plain LoRA; all keys and values depend on it"):
            session.use("a", swap="activated")
        with pytest.raises(UnsupportedError, match="trained on the base's keys"):
            session.use("x", swap="recompute")
        with pytest.raises(UnsupportedError, match="cannot be added up"):
            session.use({"a": 1.0, "x": 1.0})
        with pytest.raises(InputError, match="does not hold the invocation"):
            session.use("x").ask("Hello")
        assert session.use("a", swap="recompute").swap == "recompute"
