"""`slm-edge router`, `pack add --examples` and `run --adapter auto` as they are typed, on a tiny base."""

import json
import subprocess
import sys

import pytest
from build_gguf import tiny_adapter, tiny_base
from build_router import EXAMPLES
from slm_edge.edge.cli.conversation.talk import Talk
from slm_edge.edge.errors import DamagedError, InputError
from slm_edge.edge.pack.pack import Pack
from slm_edge.edge.router.in_pack import open_router
from slm_edge.edge.session.session import Session

MATH = "A box has 12 eggs. Tom uses 5 of them for a cake. How many eggs are left?"


@pytest.fixture
def pack(slm_edge, tmp_path):
    base = tiny_base(tmp_path / "tiny.gguf")
    for seed, name in enumerate(("math", "other", "third"), 1):
        tiny_adapter(tmp_path / f"{name}.gguf", base, seed=seed)
    folder = tmp_path / "pack"
    build = ["pack", "build", "-o", folder, "--base", base, "--adapter", f"math={tmp_path}/math.gguf"]
    assert slm_edge(*build, "--router", "starter")[0] == 0
    return folder


def test_auto_answers_with_what_the_router_chose(slm_edge, pack):
    run = ["run", "--pack", pack, "--max-tokens", "4", "--threads", "1", "--context", "128"]
    code, out, err = slm_edge(*run, "--adapter", "auto", "--json", "--explain", MATH)
    data = json.loads(out)
    assert (code, data["adapter"], data["router"]["adapter"]) == (0, "math", "math")
    assert data["router"]["confidence"] > 0.5 and "runner_up" in data["router"] and data["router"]["reasons"]
    code, out, err = slm_edge(*run, "--adapter", "auto", "--json", "Tell me a joke.")
    assert json.loads(out)["adapter"] is None and "reasons" not in json.loads(out)["router"]
    # An explicit choice is not asked about.
    code, out, err = slm_edge(*run, "--adapter", "math", "--json", "Tell me a joke.")
    assert json.loads(out)["adapter"] == "math" and "router" not in json.loads(out)
    code, out, err = slm_edge(*run, "--adapter", "auto", "--explain", MATH)
    assert code == 0 and "adapter math, confidence" in err and "quantity" in err
    code, out, err = slm_edge(*run, "--explain", MATH)
    assert code == 2 and "--adapter auto" in err


def test_an_adapter_with_examples_is_chosen_at_once_and_forgotten_with_it(slm_edge, pack, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(text for text in EXAMPLES["translate"]["taught"] if "\n" not in text))
    code, _, err = slm_edge("pack", "add", pack, "translate", tmp_path / "other.gguf", "--examples", prompts)
    assert code == 0, err
    assert slm_edge("pack", "verify", pack)[0] == 0
    choose = ["router", "choose", "--pack", pack, "--json"]
    assert json.loads(slm_edge(*choose, "Translate to French: I am tired.")[1])["adapter"] == "translate"
    assert json.loads(slm_edge(*choose, MATH)[1])["adapter"] == "math"
    code, out, _ = slm_edge("router", "show", pack, "--json")
    assert json.loads(out)["adapters"] == {"math": "math", "translate": "translate"}
    assert slm_edge("pack", "remove", pack, "translate")[0] == 0
    assert json.loads(slm_edge(*choose, "Translate to French: I am tired.")[1])["adapter"] is None
    assert slm_edge("pack", "verify", pack)[0] == 0


def test_bad_examples_add_nothing(slm_edge, pack, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    code, _, err = slm_edge("pack", "add", pack, "x", tmp_path / "other.gguf", "--examples", few)
    assert code == 2 and "2 different examples" in err and "x" not in Pack.open(pack).adapters
    few.write_text('{"text": "a"}\n')
    code, _, err = slm_edge("router", "examples", pack, "math", few)
    assert code == 2 and "line 1" in err
    code, _, err = slm_edge("router", "examples", pack, "nobody", few)
    assert code == 2


def test_a_changed_or_missing_router_is_told(slm_edge, pack, tmp_path):
    path = pack / "router.npz"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError):
        open_router(Pack.open(pack))
    assert slm_edge("run", "--pack", pack, "--adapter", "auto", "x")[0] == 5
    assert slm_edge("pack", "verify", pack)[0] == 5
    bare = tmp_path / "bare"
    slm_edge("pack", "build", "-o", bare, "--base", tmp_path / "tiny.gguf", "--adapter", f"a={tmp_path}/math.gguf")
    code, _, err = slm_edge("run", "--pack", bare, "--adapter", "auto", "x")
    assert code == 2 and "has no router" in err and "slm-edge router put" in err
    assert slm_edge("router", "put", bare, "starter")[0] == 0
    with pytest.raises(InputError, match="none of the pack's adapters"):
        open_router(Pack.open(bare))


def test_eval_counts_by_hand(slm_edge, pack, tmp_path, monkeypatch):
    monkeypatch.delenv("SLM_EDGE_DATA", raising=False)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"prompt": prompt, "adapter": adapter})
            for prompt, adapter in ((MATH, "math"), (MATH, None), ("Tell me a joke.", None), ("Hi", "math"))
        )
    )
    code, out, err = slm_edge("router", "eval", "--pack", pack, "--prompts", rows, "--json")
    assert code == 0, err
    (row,) = json.loads(out)["sets"]
    assert (row["n"], row["right"], row["captured"]) == (4, 0.5, 0.5)
    assert row["chosen"] == {"math": 2, "none": 2} and len(row["mistakes"]) == 2


def test_chat_follows_the_router_turn_by_turn(pack):
    """The starter's router on a pipe: a problem, then small talk, and an adapter that the user names is kept."""
    told = [MATH, "Tell me how you feel today, my friend.", "/adapter math", "Write me a poem about the sea."]
    command = [
        sys.executable,
        "-m",
        "slm_edge.edge",
        "chat",
        "--pack",
        str(pack),
        "--threads",
        "1",
        "--max-tokens",
        "4",
    ]
    lines = "".join(f"{line}\n" for line in told)
    done = subprocess.run(
        [*command, "--adapter", "auto"], input=lines, capture_output=True, encoding="utf-8", check=True
    )
    shown = [line for line in done.stderr.splitlines() if line.startswith("[adapter")]
    # with auto a chat begins with the base
    assert shown == ["[adapter math]", "[adapter none]", "[adapter math]"], done.stderr


def test_a_change_of_adapter_tells_what_it_computes_again(pack, capsys):
    """Against the tokens of all that stands before the new question; what is restored from before is not counted."""
    joke = "Tell me how you feel today, my friend. " * 8
    with Session.open(pack, threads=1, n_ctx_tokens=1024) as session:
        talk = Talk(session, settings={"max_tokens": 4})
        talk.use("auto")
        talk.turn(MATH)
        assert talk.recompute is None and "computed again" not in capsys.readouterr().err
        for question, adapter in ((joke, None), (MATH, "math"), (joke, None)):
            talk.turn(question)
            assert (session.adapter, talk.answer.adapter) == (adapter, adapter)
            text = session.template.render(talk.messages[:-1])
            before = session.model.vocab.encode(text[: text.rindex(question)])
            assert talk.recompute.n_tokens == len(before) - talk.answer.n_kept_tokens > 0
            assert 0 < talk.recompute.seconds < talk.answer.prefill_s < talk.answer.first_token_s
            again = f"{talk.recompute.n_tokens} tokens of the conversation computed again"
            assert again in capsys.readouterr().err
        assert talk.answer.n_kept_tokens > 0
        talk.turn("/stats")
        assert again in capsys.readouterr().err
        talk.turn(joke)
        assert talk.recompute is None


def test_a_session_chooses(pack):
    with Session.open(pack, threads=1, n_ctx_tokens=128) as session:
        decision = session.choose(MATH)
        assert decision == open_router(Pack.open(pack)).choose(MATH, current=session.adapter)
        assert session.use(decision.adapter).adapter == "math"
        assert session.choose("Tell me how you feel today, my friend.").adapter is None
    base = Pack.open(pack).base_path()
    with Session.of_files(base, {}) as bare, pytest.raises(InputError, match="no router"):
        bare.choose(MATH)
