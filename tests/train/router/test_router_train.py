"""The router's prompts and training: the same every time, public texts kept out of what ships."""

import random
import tomllib

from slm_edge.edge.router.file import write_router
from slm_edge.edge.router.router import Router
from slm_edge.train.router.passages import yes_no_questions
from slm_edge.train.router.patterns import FOLDER
from slm_edge.train.router.prompts import TASKS, Prompt, own_prompts
from slm_edge.train.router.texts import context_requests
from slm_edge.train.router.train import held_together, train_router


def test_own_prompts_are_the_same_for_a_seed_and_cover_every_label():
    prompts = own_prompts(3)
    assert prompts == own_prompts(3) != own_prompts(4)
    labels = [prompt.label for prompt in prompts]
    assert all(labels.count(label) > 1000 for label in (None, *TASKS))
    assert not [prompt for prompt in prompts if "{" in prompt.text and "}" in prompt.text and "{q}" in prompt.text]


def test_an_order_for_another_language_is_none_of_these_and_for_python_code():
    """The patterns give the same order for Python and for other languages, so that the language decides."""
    orders = {
        p.text: p.label for p in own_prompts(0) if p.source.startswith("patterns") and " function that " in p.text
    }
    assert {label for text, label in orders.items() if "Write a Java function" in text} == {None}
    assert {label for text, label in orders.items() if "Write a Python function" in text} == {"code"}


def test_every_slot_of_the_patterns_is_filled():
    files = [
        tomllib.loads((FOLDER / f"{name}.toml").read_text()) for name in ("templates", "contrast", "requests", "texts")
    ]
    slots = {f"{{{name}}}" for file in files for name in file["lists"]} - {"{name}", "{what}"} | {
        "{t}",
        "{q}",
        "{a}",
        "{b}",
    }
    left = [
        p.text for p in own_prompts(0) if any(slot in p.text for slot in slots) and not p.source.startswith("written")
    ]
    assert left == []


def test_the_same_texts_stand_with_requests_of_both_kinds_and_in_one_fold():
    contexts = [
        (f"The mill of Dorn {n} was built in 18{n}. It burned in 19{n}.", "When was it built?") for n in range(10, 90)
    ]
    rows = [Prompt(*row) for row in context_requests(contexts, {"n": ["20"]}, random.Random(1))]
    labels = {prompt.label for prompt in rows}
    assert labels == {None, "summarize"}
    assert {held_together(prompt) for prompt in rows} == {"dolly texts"}
    lots: dict[str, set[str | None]] = {}
    for prompt in own_prompts(0):
        if held_together(prompt).startswith("own texts"):
            lots.setdefault(held_together(prompt), set()).add(prompt.label)
    assert lots == {f"own texts {n}": {None, "summarize"} for n in range(5)}


def test_yes_no_questions_are_made_from_a_text_and_its_questions():
    text = "The mill was sold in 1905, to a baker. In winter it was closed. Ida Holm has run it since."
    assert yes_no_questions(text, ["Where was the old mill built?", "Who runs it?"]) == [
        "was the old mill built",
        "was the mill sold in 1905",
        "has ida holm run it since",
    ]


def test_a_training_is_repeatable_and_keeps_public_texts_out_of_the_file(tmp_path):
    prompts = own_prompts(0)[::25] + [Prompt(f"What is {n} + {n}? Secret.", "math", "gsm8k") for n in range(20)]
    for name in ("a.npz", "b.npz"):
        write_router(tmp_path / name, train_router(prompts))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    router = Router.open(tmp_path / "a.npz")
    right = [router.choose(prompt.text).adapter == prompt.label for prompt in prompts]
    assert sum(right) > 0.9 * len(right)
    assert not [text for text, _ in router.model.prompts().prompts if "Secret" in text]
