"""The router's second stage: states, its file, its part in a decision, and what it leaves behind in a session."""

import dataclasses
import json

import numpy as np
import pytest
from build_gguf import tiny_adapter, tiny_base
from slm_edge.benchmarks.commands_second import judge_second
from slm_edge.edge.engine import Context, Model
from slm_edge.edge.errors import DamagedError, InputError
from slm_edge.edge.hidden_state import READ_TOKENS, StateReader, hidden_state
from slm_edge.edge.pack import Pack
from slm_edge.edge.pack_router import open_router
from slm_edge.edge.router import Router
from slm_edge.edge.second_stage import (
    SECOND_FILE,
    SecondStage,
    load_second_stage,
    put_second_stage,
    read_second_stage,
    write_second_stage,
)
from slm_edge.edge.session import Session
from slm_edge.edge.talk import Talk
from slm_edge.train.router_prompts import Prompt
from slm_edge.train.second_stage_train import fit_second_stage, second_stage_prompts

UNSURE = "Tables, please."
TASKS = ("math", "code", "summarize")


@pytest.fixture
def pack(slm_edge, tmp_path):
    base = tiny_base(tmp_path / "tiny.gguf")
    for seed, name in enumerate(("math", "code"), 1):
        tiny_adapter(tmp_path / f"{name}.gguf", base, seed=seed)
    adapters = [word for name in ("math", "code") for word in ("--adapter", f"{name}={tmp_path}/{name}.gguf")]
    folder = tmp_path / "pack"
    assert slm_edge("pack", "build", "-o", folder, "--base", base, *adapters, "--router", "starter")[0] == 0
    return folder


def always(fingerprint, n_embd, task, below=1.0):
    """A second stage that is sure of one task whatever the state."""
    bias = np.where(np.array([None, *TASKS]) == task, 30, 0).astype(np.float32)
    return SecondStage(TASKS, fingerprint, np.zeros((4, n_embd), np.float32), bias, below)


def n_embd_of(pack):
    with StateReader(pack.base_path(), threads=1) as reader:
        return len(reader.read("a"))


def test_a_state_is_that_of_the_text_and_leaves_the_prompts_keys_and_values_alone(tmp_path):
    base = tiny_base(tmp_path / "tiny.gguf")
    with StateReader(base, threads=1) as reader, StateReader(base, threads=1) as other:
        one, two = reader.read("hello there"), reader.read("hello where")
        assert not np.array_equal(one, two) and np.isfinite(one).all()
        np.testing.assert_allclose(other.read("hello where"), two, atol=1e-4)
        np.testing.assert_allclose(reader.read("hello there"), one, atol=1e-4)
        # Only the ends of a long text are read.
        middle = "b " * READ_TOKENS
        assert np.array_equal(reader.read(f"a{middle}c{middle}z"), reader.read(f"a{middle}d{middle}z"))
    with Model.load(base) as model, Context(model, n_ctx_tokens=256, threads=1) as context:
        ids = model.vocab.encode("the world and the rest")
        context.decode(ids, 0)
        context.decode((7,), len(ids))
        expected = context.logits()
        context.remove(0, len(ids))
        hidden_state(context, ids[-1], len(ids))
        context.decode((7,), len(ids))
        assert np.array_equal(context.logits(), expected)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "seed": 4}, {"grammar": 'root ::= [a-z ]+ "."'}])
def test_the_bases_answer_begins_where_the_second_stage_ended_and_is_the_same(pack, settings):
    opened = Pack.open(pack)
    put_second_stage(pack, always(opened.base.fingerprint, n_embd_of(opened), None))
    with Session.open(pack, threads=1, n_ctx_tokens=1024) as session, Session.open(pack, threads=1) as fresh:
        for prompt in (UNSURE, "Tables, please. " * 30):
            decision = session.choose(prompt, second_stage=True)
            assert decision.adapter is None and decision.second_stage_s > 0
            answer = session.use(None).ask(prompt, max_tokens=12, **settings)
            assert answer.n_kept_tokens == answer.n_prompt_tokens
            again = fresh.use(None).ask(prompt, max_tokens=12, **settings)
            assert answer.token_ids == again.token_ids
        # After it another prompt, or an adapter, is computed as ever.
        session.choose(UNSURE, second_stage=True)
        for name in ("math", None):
            answer = session.use(name).ask("another one", max_tokens=6)
            assert answer.token_ids == fresh.use(name).ask("another one", max_tokens=6).token_ids


def test_it_is_asked_only_where_the_first_stage_is_unsure_and_its_opinion_counts(pack, slm_edge):
    opened = Pack.open(pack)
    router = open_router(opened)
    first = router.choose(UNSURE)
    with Session.open(pack, threads=1) as session, pytest.raises(InputError, match="no second stage"):
        session.choose(UNSURE, second_stage=True)
    stage = always(opened.base.fingerprint, n_embd_of(opened), "code", below=first.confidence + 0.01)
    put_second_stage(pack, stage)
    sure = "What is 12 * 4?"
    assert router.choose(sure).confidence > stage.below
    with Session.open(pack, threads=1, n_ctx_tokens=128) as session:
        assert session.choose(UNSURE) == first
        assert session.choose(UNSURE, second_stage=True).adapter == "code"
        assert session.choose(sure, second_stage=True) == router.choose(sure)
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        told = [*talk, {"role": "user", "content": UNSURE}]
        assert session.choose(told, second_stage=True) == session.choose(told)
    # Both multiplied, and made whole again.
    given = {None: 0.1, "math": 0.2, "code": 0.6, "summarize": 0.1}
    whole = Router(router.model)
    product = {task: share * given[task] for task, share in whole.shares(UNSURE).items()}
    decision = whole.choose(UNSURE, opinion=given)
    assert decision.confidence == pytest.approx(product[decision.adapter] / sum(product.values()), rel=1e-4)
    assert decision.adapter in (max(product, key=lambda task: product[task]), None)
    run = ["run", "--pack", pack, "--max-tokens", "3", "--threads", "1", "--context", "128", "--json"]
    code, out, err = slm_edge(*run, "--adapter", "auto", "--second-stage", UNSURE)
    assert code == 0, err
    data = json.loads(out)
    assert data["adapter"] == data["router"]["adapter"] == "code" and data["router"]["second_stage_s"] > 0
    assert slm_edge(*run, "--second-stage", UNSURE)[0] == 2
    with Session.open(pack, threads=1, n_ctx_tokens=128) as session:
        for asks, adapter in ((False, first.adapter), (True, "code")):
            talk = Talk(session, settings={"max_tokens": 2}, second_stage=asks)
            talk.use("auto")
            talk.turn(UNSURE)
            assert session.adapter == adapter


def test_files_damaged_or_of_another_base_are_refused(pack, tmp_path):
    opened = Pack.open(pack)
    stage = always(opened.base.fingerprint, 8, "math", below=0.8)
    path = tmp_path / "second.npz"
    write_second_stage(path, stage)
    read = load_second_stage(path)
    assert (read.tasks, read.fingerprint, read.below) == (TASKS, opened.base.fingerprint, 0.8)
    assert np.array_equal(read.bias, stage.bias) and read.opinion(np.ones(8, np.float32))["math"] > 0.99
    whole = path.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"PK" + bytes(200)):
        path.write_bytes(broken)
        with pytest.raises(DamagedError):
            load_second_stage(path)
    for wrong in ({"bias": stage.bias * np.nan}, {"weights": stage.weights[:2]}, {"tasks": ("a", "a", "b")}):
        write_second_stage(path, dataclasses.replace(stage, **wrong))
        with pytest.raises(DamagedError):
            load_second_stage(path)
    put_second_stage(pack, dataclasses.replace(stage, fingerprint="0" * 64))
    with pytest.raises(InputError, match="another base"):
        read_second_stage(Pack.open(pack))
    put_second_stage(pack, stage)
    (pack / SECOND_FILE).write_bytes(whole[:-1] + b"x")
    with pytest.raises(DamagedError, match="bytes changed"):
        read_second_stage(Pack.open(pack))


def test_a_head_learns_what_the_states_tell(tmp_path):
    """States of three directions and noise, told apart; weights of standardised states, folded."""
    draw = np.random.default_rng(0)
    labels = [(None, *TASKS)[i % 4] for i in range(80)]
    states = [draw.normal(5, 0.3, 8) + 3 * np.eye(8)[(None, *TASKS).index(label)] for label in labels]
    stage = fit_second_stage([state.astype(np.float32) for state in states], labels, "f" * 64)
    told = [max(opinion, key=opinion.get) for opinion in map(stage.opinion, states)]
    assert told == labels
    rows = [Prompt(f"prompt {i}", (None, *TASKS)[i % 4], f"source {i % 7}") for i in range(60)]
    chosen = second_stage_prompts(rows)
    assert chosen == second_stage_prompts(rows) and sorted(row.text for row in chosen) == sorted(r.text for r in rows)


def test_the_measure_counts_by_hand(pack):
    opened = Pack.open(pack)
    router = open_router(opened)
    rows = [(UNSURE, "code"), (UNSURE, None), ("What is 12 * 4?", "math")]
    with StateReader(opened.base_path(), threads=1) as reader:
        below = router.choose(UNSURE).confidence + 0.01
        stage = always(opened.base.fingerprint, len(reader.read("a")), "code", below=below)
        (row,) = judge_second(router, stage, reader, {"x": rows})["sets"]
    first = router.choose(UNSURE).adapter
    assert row["n"] == 3 and row["asked"] == pytest.approx(2 / 3) and row["second"] == pytest.approx(1 / 3)
    assert row["first"] == pytest.approx((1 + (first == "code") + (first is None)) / 3)
    assert row["both"] == pytest.approx(2 / 3)
