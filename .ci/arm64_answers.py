"""The starter pack's answers token by token, to be made on two machines and compared (see arm64-proof).

    python arm64_answers.py make N_TOKENS > here.json
    python arm64_answers.py compare here.json there.json
    python arm64_answers.py first code "How much is 3 + 4?"        # the best first tokens with their logits

Each step keeps the best tokens with their logits. Two builds round differently, so where the first token differs, what
counts is how near the two candidates were to each other: nearer than the logits of the builds lie apart, it is a tie.
Exit 1 where prompts are split into other tokens, or a token differs that is no tie.
"""

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from slm_edge.devices.profile.measure import adapter_set
from slm_edge.edge.cli.demo import EXAMPLES
from slm_edge.edge.llama.model import cpu_features
from slm_edge.edge.options import CHUNK_TOKENS
from slm_edge.edge.session.session import Session

N_KEPT = 5


def first(adapter: str, prompt: str) -> str:
    """What an answer may begin with, the best first."""
    name = None if adapter == "none" else adapter
    with Session.open(None, threads=1, n_ctx_tokens=512, prefix_cache=None) as session:
        session.use(name)
        session.context.set_adapters(adapter_set(session, name))
        session.context.decode(session.prompt_tokens(prompt), 0)
        logits = session.context.logits()
        vocab = session.model.vocab
        best = np.argsort(-logits, kind="stable")[:N_KEPT]
        return ", ".join(f"{vocab.piece(int(token)).decode(errors='replace')!r} {logits[token]:.3f}" for token in best)


def make(n_tokens: int) -> dict[str, Any]:
    """Greedy answers of each adapter and the base, with the N_KEPT best logits of each step."""
    cases = []
    with Session.open(None, threads=1, n_ctx_tokens=512, prefix_cache=None) as session:
        context, vocab = session.context, session.model.vocab
        for name, messages in dict(EXAMPLES).items():
            session.use(name)
            ids = session.prompt_tokens(messages)
            context.set_adapters(adapter_set(session, name))
            context.clear()
            for at in range(0, len(ids), CHUNK_TOKENS):
                context.decode(ids[at : at + CHUNK_TOKENS], at)
            steps: list[list[tuple[int, float]]] = []
            while True:
                logits = context.logits()
                best = np.argsort(-logits, kind="stable")[:N_KEPT]
                steps.append([(int(token), float(logits[token])) for token in best])
                token = int(best[0])
                if vocab.is_end(token) or len(steps) == n_tokens:
                    break
                context.decode([token], len(ids) + len(steps) - 1)
            answer = [step[0][0] for step in steps]
            cases.append({"adapter": name, "prompt_ids": ids, "steps": steps, "text": vocab.decode(answer)})
            click.echo(f"  {name or 'none'}: {cases[-1]['text']!r}", err=True)
    return {"features": sorted(cpu_features()), "cases": cases}


def compare(here: dict[str, Any], there: dict[str, Any]) -> bool:
    """Prints what agrees; whether all does."""
    click.echo(f"features here {' '.join(here['features'])}\n        there {' '.join(there['features'])}")
    good = True
    for mine, other in zip(here["cases"], there["cases"], strict=True):
        name = mine["adapter"] or "none"
        same_prompt = mine["prompt_ids"] == other["prompt_ids"]
        tokens, others = ([step[0][0] for step in case["steps"]] for case in (mine, other))
        n_same = next((i for i, (a, b) in enumerate(zip(tokens, others, strict=False)) if a != b), len(tokens))
        # Up to the first difference both saw the same text; the best token of either is among the kept of the other.
        apart = [
            abs(logit - dict(map(tuple, step))[token])
            for row, step in zip(mine["steps"][: n_same + 1], other["steps"], strict=False)
            for token, logit in row
            if token in dict(map(tuple, step))
        ]
        line = f"{name:10} prompt of {len(mine['prompt_ids'])} tokens {'the same' if same_prompt else 'DIFFERENT'}; "
        if tokens == others:
            line += f"all {len(tokens)} tokens of the answer the same"
        else:
            rows = [dict(map(tuple, case["steps"][n_same])) for case in (mine, other)]
            margins = [row.get(tokens[n_same], -np.inf) - row.get(others[n_same], -np.inf) for row in rows]
            tie = max(abs(margin) for margin in margins) <= 2 * max(apart)
            line += f"token {n_same} differs, {'a tie' if tie else 'NO TIE'}: margin {margins[0]:+.3f} here, "
            line += f"{margins[1]:+.3f} there"
            good &= tie
        good &= same_prompt
        click.echo(f"{line}; logits of the best {N_KEPT} at most {max(apart):.3f} apart, median {np.median(apart):.3f}")
    return good


if __name__ == "__main__":
    if sys.argv[1] == "make":
        click.echo(json.dumps(make(int(sys.argv[2]))))
    elif sys.argv[1] == "first":
        click.echo(first(*sys.argv[2:4]))
    else:
        sys.exit(0 if compare(*(json.loads(Path(path).read_text()) for path in sys.argv[2:4])) else 1)
