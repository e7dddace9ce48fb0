"""Sessions on onnxruntime answer as fresh ones do after any swap, and as llama.cpp's do on the same weights."""

import json

import numpy as np
import pytest
from build_gguf import tiny_adapter, tiny_base
from build_onnx import onnx_logits, write_adapter
from click.testing import CliRunner
from slm_edge.edge.cli.main import cli
from slm_edge.edge.cli.run import run
from slm_edge.edge.errors import DamagedError, DoesNotFitError, EngineError, InputError, UnsupportedError
from slm_edge.edge.onnx.engine import MOVE_AFTER_STEPS, OnnxEngine
from slm_edge.edge.onnx.folder import OnnxBase
from slm_edge.edge.onnx.in_pack import add_onnx_adapter, add_onnx_base, has_onnx, onnx_adapters
from slm_edge.edge.onnx.session import OnnxSession
from slm_edge.edge.pack.pack import Pack, verify_folder
from slm_edge.edge.pack.write import NewAdapter, build_pack, remove_adapter
from slm_edge.edge.router.in_pack import open_router, put_router, starter_router
from slm_edge.edge.session.session import Session
from slm_edge.export.onnx.adapter import export_onnx_adapter
from slm_edge.export.onnx.base import export_onnx

LONG = "the world and the rest of it, again and again. " * 8
SEEDS = {"a": 1, "b": 2}
PROBLEM = "A box has 12 eggs. Tom uses 5 of them for a cake. How many eggs are left?"


@pytest.fixture(scope="module", params=[False, True], ids=["pairs", "packed"])
def made(request, tmp_path_factory):
    """A base and two adapters, for llama.cpp and for onnxruntime."""
    folder = tmp_path_factory.mktemp("made")
    gguf = tiny_base(folder / "base.gguf")
    onnx = export_onnx(gguf, folder / "onnx", kind="f32", packed=request.param).base
    ours, theirs = {}, {}
    for name, seed in SEEDS.items():
        theirs[name] = (tiny_adapter(folder / f"{name}.gguf", gguf, seed=seed, rank=4 * seed, task=name), None)
        ours[name] = (folder / f"{name}.onnx_adapter", None)
        export_onnx_adapter(folder / f"{name}.gguf", onnx, folder / f"{name}.onnx_adapter")
    return folder, ours, theirs


def opened(made, threads=1, **options):
    return OnnxSession.of_files(made[0] / "onnx", made[1], threads=threads, **options)


def test_after_any_swap_an_answer_is_a_fresh_sessions(made):
    prompts = [LONG + "one", LONG + "two", "short"]
    with opened(made) as session:
        for name in ("a", "b", "a", None, "b", {"a": 0.5, "b": 2.0}, "a", None):
            for prompt in prompts:
                answer = session.use(name).ask(prompt, max_tokens=8)
                row = session.engine.row.copy()
                with opened(made) as fresh:
                    assert fresh.use(name).ask(prompt, max_tokens=8).token_ids == answer.token_ids
                    np.testing.assert_array_equal(fresh.engine.row, row)
        kept = [session.use("a").ask(prompt, max_tokens=1).n_kept_tokens for prompt in prompts[:2]]
        assert kept == [0, len(session.prompt_tokens(LONG)) // 128 * 128]


def test_answers_are_llama_cpps(made):
    """F32 on both sides: greedy and drawn tokens, scales and sums of adapters, stops and the end of the context."""
    with (
        opened(made, n_ctx_tokens=600) as ours,
        Session.of_files(
            made[0] / "base.gguf", made[2], threads=1, kv_type="f32", flash_attention="off", n_ctx_tokens=600
        ) as theirs,
    ):
        for name, scale in (("a", None), ("b", 0.5), (None, None), ({"a": 0.7, "b": -0.3}, None)):
            for prompt, settings in (
                (LONG, {"max_tokens": 12}),
                ("Grüße 🙂", {"max_tokens": 12, "temperature": 1.2, "seed": 7, "top_k": 9}),
                ("x", {"max_tokens": 12, "grammar": 'root ::= [a-c]+ "!"'}),
                ("x", {"max_tokens": 12, "stop": ["a", "e", "\n"]}),
                ([{"role": "user", "content": "x"}], {"system": "You are brief.", "max_tokens": 4}),
            ):
                one = ours.use(name, scale=scale).ask(prompt, **settings)
                two = theirs.use(name, scale=scale).ask(prompt, **settings)
                for field in ("text", "token_ids", "stop_reason", "adapter", "n_prompt_tokens", "n_tokens", "seed"):
                    assert getattr(one, field) == getattr(two, field), (name, prompt, field)
        assert ours.use(None).ask(LONG * 1, max_tokens=1000, temperature=2.0, seed=1).stop_reason in ("context", "end")


def test_answers_at_once_are_those_of_one_at_a_time(made):
    """Prompts of unlike length, more than there are rows, adapters in turns, drawn and greedy, cut and cancelled."""
    names = ["a", "b", "a", None, "b", "a", "a", None, {"a": 0.7, "b": -0.3}]
    with opened(made, n_parallel=3) as session:
        texts = {i: [] for i in range(len(names))}
        asked = [
            (LONG[: 7 + 41 * i], {"max_tokens": 5 + i, "temperature": 1.2 if i % 3 == 1 else 0.0, "seed": i})
            for i in range(len(names))
        ]
        waiting = [
            session.submit(prompt, adapter=session.choice_of(name), on_text=texts[i].append, **settings)
            for i, (name, (prompt, settings)) in enumerate(zip(names, asked, strict=True))
        ]
        given_up = session.submit(LONG, adapter=session.choice_of("a"), max_tokens=3)
        given_up.cancel()
        assert not any(pending.done for pending in waiting)
        for i, (name, (prompt, settings), pending) in enumerate(zip(names, asked, waiting, strict=True)):
            one, alone = pending.result(), session.use(name).ask(prompt, **settings)
            for field in ("text", "token_ids", "stop_reason", "adapter", "n_prompt_tokens", "n_tokens", "seed"):
                assert getattr(one, field) == getattr(alone, field), (i, field)
            assert "".join(texts[i]) == one.text
        with pytest.raises(EngineError, match="given up"):
            given_up.result()
        # Again, now that the rows hold what other answers left, and with one row only
        again = session.use("b").submit(LONG, max_tokens=6)
        assert again.result().token_ids == session.ask(LONG, max_tokens=6).token_ids
        # Prompts that begin alike are computed once, also where the row that has them is in use or free
        alike = [session.submit(LONG * 2 + end, max_tokens=4) for end in ("one", "two", "one", "three", "two")]
        kept = []
        for pending, end in zip(alike, ("one", "two", "one", "three", "two"), strict=True):
            kept.append(pending.result().n_kept_tokens)
            assert pending.result().token_ids == session.ask(LONG * 2 + end, max_tokens=4).token_ids
        assert kept[0] == 0 and min(kept[1:]) >= 128
        late = session.submit("x", max_tokens=500)
    with pytest.raises(EngineError, match="given up"):
        late.result()


def test_a_cache_that_is_full_refuses(made):
    """onnxruntime would write behind it."""
    base = OnnxBase.open(made[0] / "onnx")
    engine = OnnxEngine(base, n_ctx_tokens=8, threads=1, n_rows=2)
    engine.decode(range(3, 10), 0, row=1)
    with pytest.raises(DoesNotFitError, match="8 tokens has no room for 9"):
        engine.decode([3, 4], 7)
    engine.step([3, 4], [2, 7])
    with pytest.raises(DoesNotFitError, match="8 tokens has no room for 9"):
        engine.step([3, 4], [2, 8])
    engine.close()


def test_streams_and_settings(made):
    with opened(made) as session:
        assert session.adapter is None
        stream = session.use("a").stream("hello", max_tokens=6)
        with pytest.raises(EngineError, match="not finished"):
            _ = stream.answer
        assert "".join(stream) == stream.answer.text
        first = session.stream("the world", max_tokens=30)
        next(first)
        session.use("b").ask("other", max_tokens=2)
        with pytest.raises(EngineError, match="another prompt was begun"):
            list(first)
        with pytest.raises(InputError, match="there is no adapter 'c'"):
            session.use("c")
        with pytest.raises(InputError, match="the scale of adapter 'a' is 0"):
            session.use("a", scale=0)
        with pytest.raises(UnsupportedError, match="activated"):
            session.use("a", swap="activated")
        with pytest.raises(InputError, match="empty"):
            session.ask("  ")
        with pytest.raises(DoesNotFitError, match="tokens"):
            session.ask(LONG * 40)
    with pytest.raises(InputError, match="kv_type"):
        opened(made, kv_type="f16")
    with pytest.raises(DoesNotFitError, match="--max-length"):
        opened(made, n_ctx_tokens=1 << 20)
    session.close()


def test_the_base_alone_is_the_graph_without_lora(made):
    """Both graphs give the same with no adapter, and the one without LoRA inputs is the one that runs."""
    ids = list(range(3, 60))
    folder = made[0] / "onnx"
    np.testing.assert_allclose(
        onnx_logits(folder / "base.onnx", ids), onnx_logits(folder / "model.onnx", ids), atol=1e-5
    )
    with opened(made) as session:
        session.ask("hello", max_tokens=2)
        assert list(session.engine._sessions) == ["base.onnx"]
        options = session.engine.session(False).get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert options.intra_op_num_threads == 1


def test_several_threads_spin_for_a_moment_and_never_between_tokens(made):
    with opened(made) as one, opened(made, threads=2) as two:
        options = two.engine.session(False).get_session_options()
        assert options.intra_op_num_threads == 2
        assert 0 < int(options.get_session_config_entry("session.intra_op.spin_duration_us")) <= 1000
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
        assert one.ask("hello", max_tokens=8).token_ids == two.ask("hello", max_tokens=8).token_ids


def test_only_long_answers_move_the_weights_and_the_numbers_stay(made):
    with opened(made) as session:
        engine, adapter = session.engine, session._adapter("a")
        engine.decode([3, 4, 5], 0, key="a", pairs=adapter.arrays)
        rows = []
        for step in range(MOVE_AFTER_STEPS + 2):
            assert (engine._mover is not None) == (step >= MOVE_AFTER_STEPS)
            engine.decode([6], 3, key="a", pairs=adapter.arrays)
            rows.append(engine.row.copy())
        engine.settle()
        engine.decode([6], 3, key="a", pairs=adapter.arrays)
        for row in rows:
            np.testing.assert_array_equal(row, engine.row)


def test_adapters_that_do_nothing_or_overflow(made, tmp_path):
    folder = made[0]
    base = OnnxBase.open(folder / "onnx")
    pair = base.lora[-1]
    width = pair.widths[0]
    tensors = {pair.a: np.zeros((pair.n_in, 2), np.float32), pair.b: np.zeros((2, pair.n_out), np.float32)}
    tensors[pair.a][0, 0], tensors[pair.b][1, width - 1] = 1, 1
    path = write_adapter(tmp_path / "n.onnx_adapter", tensors, model_version=base.version_number)
    with (
        OnnxSession.of_files(folder / "onnx", {"n": (path, None)}, threads=1) as session,
        pytest.raises(EngineError, match="changes nothing"),
    ):
        session.use("n")
    with opened(made) as session:
        adapter = session.use("a")._loaded["a"]
        # A view into the file, and nobody can drop it while it is bound.
        assert not any(values.flags.owndata or values.flags.writeable for values in adapter.arrays.values())
        before = session.ask("hello", max_tokens=4).token_ids
        del adapter
        session._loaded.clear()
        assert session.ask("hello again", max_tokens=4).n_tokens >= 0
        assert session.ask("hello", max_tokens=4).token_ids == before


@pytest.fixture
def pack(made, tmp_path):
    folder, ours, theirs = made
    build_pack(
        tmp_path / "pack",
        base=folder / "base.gguf",
        adapters=[NewAdapter(name, theirs[name][0], card_changes={"max_tokens": 9}) for name in SEEDS],
        default_adapter="a",
        copy_base=False,
    )
    runner = CliRunner()
    for arguments in (["onnx", str(tmp_path / "pack"), str(folder / "onnx")],):
        assert runner.invoke(cli, ["pack", *arguments]).exit_code == 0
    for name in SEEDS:
        result = runner.invoke(cli, ["pack", "add", str(tmp_path / "pack"), name, str(ours[name][0])])
        assert result.exit_code == 0, result.output
    assert "ONNX form: base, a, b" in result.output
    return tmp_path / "pack"


def test_a_pack_runs_without_its_gguf_base(pack, made):
    verify_folder(pack)
    result = CliRunner().invoke(run, ["--pack", str(pack), "--engine", "onnx", "--threads", "1", "--json", "hello"])
    assert result.exit_code == 0, result.output
    numbers = json.loads(result.stdout)
    with opened(made) as session:
        expected = session.use("a").ask("hello", max_tokens=9)
    assert (numbers["text"], numbers["adapter"], numbers["n_tokens"]) == (expected.text, "a", expected.n_tokens)
    result = CliRunner().invoke(
        run, ["--pack", str(pack), "--engine", "onnx", "--threads", "1", "--adapter", "none", "--stats", "hello"]
    )
    assert result.exit_code == 0, result.output
    assert "adapter none, loaded in" in result.stderr


def test_chat_talks_on_onnx_too(pack, made):
    lines = "hello\n/adapter a:0.5+b:2\nhello\n/adapter c\n/stats\n"
    arguments = ["chat", "--pack", str(pack), "--engine", "onnx", "--threads", "1", "--max-tokens", "5"]
    result = CliRunner().invoke(cli, arguments, input=lines)
    assert result.exit_code == 0, result.output
    with opened(made) as session:
        first = session.use("a").ask("hello", max_tokens=5).text
    assert result.stdout.startswith(first)
    assert "[adapter a:0.5+b:2]" in result.stderr
    assert "there is no adapter 'c'" in result.stderr
    assert "adapters in memory: a " in result.stderr and "planned" not in result.stderr
    result = CliRunner().invoke(cli, [*arguments, "--pin", "a"], input="")
    assert "the engine 'onnx' has no option pinned" in str(result.exception)


def test_auto_chooses_among_the_adapters_with_an_onnx_form(made, tmp_path):
    folder, ours, theirs = made
    adapters = [NewAdapter("math", theirs["a"][0]), NewAdapter("code", theirs["b"][0])]
    build_pack(tmp_path / "pack", base=folder / "base.gguf", adapters=adapters, copy_base=False)
    put_router(tmp_path / "pack", starter_router())
    add_onnx_base(tmp_path / "pack", folder / "onnx")
    add_onnx_adapter(tmp_path / "pack", "math", ours["a"][0])
    for prompt, adapter in ((PROBLEM, "math"), ("Write a Python function that reverses a list.", None)):
        with OnnxSession.open(tmp_path / "pack", threads=1) as session:
            decision = session.choose(prompt)
            answer = session.use(decision.adapter).ask(prompt, max_tokens=4)
        assert decision.adapter == answer.adapter == adapter
        arguments = ["--engine", "onnx", "--adapter", "auto", "--threads", "1", "--max-tokens", "4", "--json"]
        result = CliRunner().invoke(run, ["--pack", str(tmp_path / "pack"), *arguments, prompt])
        assert result.exit_code == 0, result.output
        numbers = json.loads(result.stdout)
        assert (numbers["text"], numbers["adapter"]) == (answer.text, adapter)
        assert numbers["router"] == decision.as_dict()
    assert open_router(Pack.open(tmp_path / "pack")).choose(prompt).adapter == "code"
    with opened(made) as session, pytest.raises(InputError, match="no router"):
        session.choose(PROBLEM)


def test_packs_refuse_what_does_not_belong(pack, made, tmp_path):
    folder, ours, _ = made
    with pytest.raises(InputError, match="no adapter 'c'"):
        add_onnx_adapter(pack, "c", ours["a"][0])
    other = export_onnx(tiny_base(tmp_path / "o.gguf", seed=4), tmp_path / "other").base
    with pytest.raises(InputError, match="another base"):
        add_onnx_base(pack, other.folder)
    build_pack(tmp_path / "plain", base=folder / "base.gguf", adapters=[])
    with pytest.raises(InputError, match="has no ONNX form"):
        OnnxSession.open(tmp_path / "plain")
    file = pack / "onnx" / "adapters" / "b.onnx_adapter"
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.unlink()
    file.write_bytes(data)
    with OnnxSession.open(pack, threads=1) as session, pytest.raises(DamagedError, match="bytes changed"):
        session.use("b")
    with pytest.raises(DamagedError, match="not as it was built"):
        verify_folder(pack)


def test_the_onnx_form_is_replaced_and_goes_with_its_adapter(pack, made, tmp_path):
    folder, _, _ = made
    before = OnnxBase.open(pack / "onnx")
    add_onnx_base(pack, folder / "onnx")
    assert list(onnx_adapters(Pack.open(pack))) == ["a", "b"]
    changed = export_onnx(folder / "base.gguf", tmp_path / "other", kind="f32", packed=not before.packed).base
    add_onnx_base(pack, changed.folder)
    assert has_onnx(Pack.open(pack))
    assert list(onnx_adapters(Pack.open(pack))) == []
    export_onnx_adapter(folder / "b.gguf", changed, tmp_path / "b.onnx_adapter")
    add_onnx_adapter(pack, "b", tmp_path / "b.onnx_adapter")
    remove_adapter(pack, "b")
    assert not any("b.onnx_adapter" in name for name in Pack.open(pack).manifest.files)
    verify_folder(pack)


@pytest.mark.parametrize("how", ["cut", "zeroed", "removed"])
def test_an_adapters_file_may_change_while_it_is_used(made, how, tmp_path):
    """It was mapped: a cut ended the process, other bytes were used without a word."""
    file = tmp_path / "a.onnx_adapter"
    file.write_bytes(made[1]["a"][0].read_bytes())
    with OnnxSession.of_files(made[0] / "onnx", {"a": (file, None)}, threads=1) as session:
        before = session.use("a").ask("hello", max_tokens=5).token_ids
        if how == "removed":
            file.unlink()
        else:
            size_bytes = file.stat().st_size
            with file.open("r+b") as out:
                out.truncate(3000)
                out.truncate(3000 if how == "cut" else size_bytes)
        assert session.ask("hello", max_tokens=5).token_ids == before
        assert session.use("a", scale=0.5).ask(LONG, max_tokens=2).n_tokens


def test_a_scale_given_to_use_is_tried_here_too(made):
    with opened(made) as session:
        adapter = session.use("a")._adapter("a")
        adapter.arrays.update({name: np.full_like(values, 3e37) for name, values in adapter.arrays.items()})
        with pytest.raises(EngineError, match="scale 10 the model's output is not a number"):
            session.use("a", scale=10.0)


def test_a_tokenizer_that_ends_llama_cpp_is_refused(made, tmp_path):
    """The folder's description has its hash, so whoever writes the one writes the other."""
    import hashlib
    import shutil

    folder = tmp_path / "onnx"
    shutil.copytree(made[0] / "onnx", folder)
    file = folder / "tokenizer.gguf"
    data = file.read_bytes()
    # Two tokens alike end llama.cpp at load; these have equal lengths.
    file.write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0\xc4\xa0the", b"\x05\0\0\0\0\0\0\0\xc4\xa0and", 1))
    assert file.read_bytes() != data
    description = json.loads((folder / "slm_edge_onnx.json").read_text())
    description["files"]["tokenizer.gguf"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (folder / "slm_edge_onnx.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match="more than once"):
        OnnxBase.open(folder)
