"""Windows, and states that each token changes: whatever is kept, put back or left, answers are a fresh session's."""

from dataclasses import dataclass

import numpy as np
import pytest
from build_gguf import WINDOW_TOKENS, tiny_adapter, tiny_base
from build_other import other_base
from build_walks import adapters_of, same, some_text
from slm_edge.edge.options import CHUNK_TOKENS
from slm_edge.edge.session.session import Session


@dataclass(frozen=True)
class Walk:
    """How long a random walk is: answers, words of a system message and of a question, letters of a conversation."""

    seed: int
    n_answers: int
    most_system_words: int
    most_words: int
    most_tokens: int
    most_letters: int
    asked_words: tuple[int, ...]
    n_ctx_tokens: int | None = None


STATES = Walk(0, 20, 100, 90, 40, 900, (3, 60, 90, 5))
WINDOWS = [Walk(seed, 25, 120, 200, 60, 3000, (3, 90, 200, 5), n_ctx_tokens=3072) for seed in range(2)]
WITH_STATES = ("lfm2", "qwen35", "granitehybrid")
WALKS = [*((architecture, STATES) for architecture in WITH_STATES), *(("gemma3", walk) for walk in WINDOWS)]
# Windows, and layers that read the keys and values of earlier ones
WALKS.append(("gemma4", STATES))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Architecture -> base and two adapters, each made when it is first asked for."""
    made = {}

    def base_of(architecture):
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            if architecture == "gemma3":
                base = tiny_base(folder / "base.gguf", architecture=architecture, n_ctx_train_tokens=4096)
                two = {
                    name: (tiny_adapter(folder / f"{name}.gguf", base, seed=seed), None)
                    for seed, name in enumerate("ab", 1)
                }
            else:
                base = other_base(folder, architecture)[1]
                two = adapters_of(base)
            made[architecture] = base, two
        return made[architecture]

    return base_of


def opened(base, adapters, walk, **options):
    return Session.of_files(base, adapters, **({"threads": 1, "n_ctx_tokens": walk.n_ctx_tokens} | options))


@pytest.mark.parametrize(("architecture", "walk"), WALKS)
def test_random_conversations_are_bit_for_bit_those_of_a_fresh_session(bases, architecture, walk):
    base, two = bases(architecture)
    rng = np.random.default_rng(walk.seed)
    systems = [some_text(rng, walk.most_system_words), some_text(rng, 30), None]
    conversation, kept, longest = [], [], 0
    with opened(base, two, walk) as session:
        for _ in range(walk.n_answers):
            n_letters = sum(len(message["content"]) for message in conversation)
            if not conversation or rng.random() < 0.25 or n_letters > walk.most_letters:
                system = systems[int(rng.integers(3))]
                conversation = [{"role": "system", "content": system}] if system else []
            text = some_text(rng, int(rng.integers(1, walk.most_words)))
            conversation = [*conversation, {"role": "user", "content": text}]
            name = [None, "a", "b"][int(rng.integers(3))]
            max_tokens = int(rng.integers(1, walk.most_tokens))
            answer = session.use(name).ask(conversation, max_tokens=max_tokens)
            logits = session.context.logits()
            with opened(base, two, walk, prefix_budget_bytes=0) as fresh:
                expected = fresh.use(name).ask(conversation, max_tokens=max_tokens)
                assert answer.token_ids == expected.token_ids
                assert same(logits, fresh.context.logits())
            kept.append(answer.n_kept_tokens)
            longest = max(longest, answer.n_prompt_tokens)
            conversation = [*conversation, {"role": "assistant", "content": answer.text or "x"}]
        n_kept = sum(n > 0 for n in kept)
        assert n_kept >= 8
        if architecture == "gemma3":
            assert session.prefixes.store.n_restored == n_kept
            # Beyond what the cells of the windows hold
            assert longest > 3 * (WINDOW_TOKENS + 2 * CHUNK_TOKENS)
        else:
            assert not session.model.memory.cuttable and not session.plan.choices.both_layouts


@pytest.mark.parametrize(("architecture", "walk"), WALKS[:4])
def test_answers_at_once_share_beginnings(bases, architecture, walk):
    base, two = bases(architecture)
    rng = np.random.default_rng(2)
    system = some_text(rng, 150)
    prompts = [some_text(rng, n) for n in walk.asked_words]
    names = ["a", None, "a", "a"]
    with opened(base, two, walk) as session:
        expected = [
            session.ask(prompt, system=system, adapter=name, max_tokens=8).token_ids
            for prompt, name in zip(prompts, names, strict=True)
        ]
    with opened(base, two, walk, n_parallel=3) as session:
        waiting = [
            session.submit(prompt, system=system, adapter=name, max_tokens=8)
            for prompt, name in zip(prompts, names, strict=True)
        ]
        answers = [pending.result() for pending in waiting]
    assert [answer.token_ids for answer in answers] == expected
    assert [answer.n_kept_tokens > CHUNK_TOKENS for answer in answers].count(True) == 2
