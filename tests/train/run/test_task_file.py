"""A task as a TOML file: the example of docs/training.md from rows to a pack, and what is refused."""

import json
import random
import re
import tomllib
from pathlib import Path

import pytest
import torch
from build_gguf import CHATML, tiny_base
from build_rows import write_jsonl
from click.testing import CliRunner
from slm_edge.edge.errors import InputError
from slm_edge.edge.pack.card import TaskCard
from slm_edge.edge.pack.write import NewAdapter, build_pack
from slm_edge.edge.session.session import Session
from slm_edge.export.lora.lora import export_lora
from slm_edge.train.cli.group import train as train_command
from slm_edge.train.data.examples import Example
from slm_edge.train.data.prepare import Data
from slm_edge.train.data.task_file import read_task
from slm_edge.train.model.gguf_model import load_gguf_model
from slm_edge.train.model.lora import add_lora
from slm_edge.train.recipe import Recipe
from slm_edge.train.run.loop import Machine, held_out_share
from slm_edge.train.run.ranks import Ranks
from slm_edge.train.run.workers import Workers

DOC = Path(__file__).parents[3] / "docs" / "training.md"
QUEUES = ("billing", "delivery", "other")


def example():
    return re.search(r"```toml\n(name = \"tickets\".*?)```", DOC.read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("task") / "tickets.toml"
    path.write_text(example())
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    rng = random.Random(1)
    rows = [
        {"subject": queue, "body": f"It is number {n}.", "queue": queue, "language": "en" if n % 8 else "de"}
        for n in range(64)
        for queue in [rng.choice(QUEUES)]
    ]
    return write_jsonl(tmp_path_factory.mktemp("rows") / "rows.jsonl", rows)


def invoke(*args):
    return CliRunner().invoke(train_command, list(map(str, args)), catch_exceptions=False)


def test_rows_become_what_the_file_says(task):
    made = read_task(task)
    row = {"subject": "Invoice", "body": "I paid twice.", "queue": "billing", "language": "en"}
    told = tomllib.loads(example())
    (pair,) = made.pairs([row], pytest.fail)
    assert pair.messages == [
        {"role": "system", "content": told["system"]},
        {"role": "user", "content": "Subject: Invoice\n\nI paid twice."},
    ]
    assert pair.completion == "billing"
    assert (made.name, made.metric, made.defaults) == ("tickets", "exact", {"lr": 2e-3, "batch": 4})
    reasons = []
    odd = [{**row, "language": "de"}, {**row, "body": None}, {**row, "queue": " "}, {**row, "subject": 7}]
    assert len(list(made.pairs(odd, reasons.append))) == 1
    assert reasons == ["another language", "the cell 'body' is no text", "no prompt or no completion"]
    card = TaskCard.open(task)
    assert (card.task, card.description, card.max_tokens, card.stop) == ("tickets", told["about"], 8, ("\n",))
    assert card.system == told["system"]


def test_from_rows_to_a_pack(task, rows, base, tmp_path):
    output = tmp_path / "peft"
    small = ["--rank", 4, "--held-out", 8, "--steps", 60, "--threads", 1, "--lr", "1e-2"]
    done = invoke(task, "--base", base, "--data", rows, "-o", output, *small, "--json")
    assert done.exit_code == 0, done.output
    record = json.loads((output / "train.json").read_text())
    assert record["recipe"]["task"] == record["task"]["name"] == "tickets"
    assert record["recipe"]["batch"] == 4
    assert record["counts"]["dropped"]["another language"] == 8
    shares = record["held_out_exact"]
    assert shares["base"] == 0.0
    assert shares["adapter"] > 0.5

    adapter = tmp_path / "tickets.gguf"
    export_lora(output, base, adapter)
    card = TaskCard.open(task)
    pack = build_pack(tmp_path / "pack", base=base, adapters=[NewAdapter("tickets", adapter, card)])
    assert pack.adapters["tickets"].card == card
    # The device asks as the training rows did.
    made = read_task(task)
    all_rows = [json.loads(line) for line in rows.read_text().splitlines()]
    with Session.open(pack, adapter="tickets", threads=1) as session:
        asked = list(made.pairs(all_rows, lambda _: None))[:12]
        right = sum(session.ask(pair.messages[1]["content"]).text == pair.completion for pair in asked)
        assert right > 6
        assert session.prompt_tokens(asked[0].messages[1]["content"]) == session.vocab.encode(
            session.template.render(asked[0].messages)
        )


def test_a_recipe_names_it_beside_itself(task, rows, base, tmp_path):
    (tmp_path / "tickets.toml").write_text(example())
    recipe = f'task = "tickets.toml"\nbase = "{base}"\ndata = ["{rows}"]\noutput = "peft"\nsteps = 1\nrank = 2\n'
    (tmp_path / "my.toml").write_text(recipe)
    done = invoke(tmp_path / "my.toml", "--threads", 1)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "peft" / "train.json").read_text())
    assert (record["task"]["name"], record["recipe"]["lr"]) == ("tickets", 2e-3)
    assert record["held_out_exact"].keys() == {"base", "adapter"}


def test_a_card_with_keys_of_a_task_loses_none_in_silence(tmp_path):
    path = tmp_path / "card.toml"
    for text, words in (
        ('name = "x"\nmax_tokens = 3', "max_tokens: unknown"),
        ('task = "x"\nname = "y"', "'name' is not known"),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as caught:
            TaskCard.open(path)
        assert words in "\n".join(caught.value.problems)


def test_conversations_under_a_system_message(tmp_path):
    path = tmp_path / "talk.toml"
    path.write_text('name = "talk"\nsystem = "Be brief."\n[card.template]\nthink = false\n')
    made = read_task(path)
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    (pair,) = made.pairs([row], pytest.fail)
    assert pair.conversation == [{"role": "system", "content": "Be brief."}, *row["messages"]]
    assert pair.arguments == {"think": False}
    assert list(made.read(write_jsonl(tmp_path / "rows.jsonl", [row]))) == [row]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name = 3", "name"),
        ('about = "x"', "name: missing"),
        ('name = "x"\nprompt = "{a}"', "prompt and completion go together"),
        ('name = "x"\nprompt = "{a"\ncompletion = "{}"', "a brace that names no cell"),
        ('name = "x"\nmetric = "bleu"', "metric: 'bleu' is none of loss, tokens, exact"),
        ('name = "x"\nprompts = "x"', "prompts: unknown; did you mean prompt?"),
        ('name = "x"\n[card]\nmax_token = 3', "max_token"),
        ('name = "x"\n[card]\nsystem = "y"', "card.system: system says it"),
        ('name = "x"\n[recipe]\nbase = "y"', "recipe.base: stands in the recipe itself"),
        ("name = ", "is not TOML"),
    ],
)
def test_faults_are_named(text, words, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_task(path)
    assert words in "\n".join([str(caught.value), *caught.value.problems])


def test_shares_of_held_out_rows_are_those_of_plain_logits(tmp_path):
    model = add_lora(load_gguf_model(tiny_base(tmp_path / "base.gguf", chat_template=CHATML)), Recipe(task="x"), "base")
    generator = torch.Generator().manual_seed(2)
    examples = []
    for n_right in (0, 1, 4, 4):
        ids = torch.randint(3, 200, (6,), generator=generator).tolist()
        # Greedy tokens, of which some are then put wrong
        for _ in range(4):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if n_right < 4:
            ids[6 + n_right] = (ids[6 + n_right] + 1) % 200
        examples.append(Example(tuple(ids), 6))
    expected = []
    for example in examples:
        with torch.no_grad():
            best = model(input_ids=torch.tensor([example.ids])).logits[0, :-1].argmax(-1)
        expected.append([int(best[place - 1]) == example.ids[place] for place in example.learned])
    data = Data([], examples, 0)
    with Ranks("cpu") as ranks, Workers(1) as workers:
        machine = Machine(workers, ranks)
        recipe = Recipe(task="x")
        exact = held_out_share(model, data, recipe, machine, "exact")
        tokens = held_out_share(model, data, recipe, machine, "tokens")
        assert held_out_share(model, data, recipe, machine, "loss") is None
    assert exact == sum(map(all, expected)) / 4 == 0.5
    assert tokens == pytest.approx(sum(map(sum, expected)) / 16)
