"""The book of a sequence against the plainest one: an adapter state for each token, compared one by one."""

import random

from slm_edge.edge.prefix.chunks import AdapterState, KvRecord, Section, chunks_of

STATES = [AdapterState(), AdapterState((("a", 1.0),)), AdapterState((("a", 1.0),), domain="me")]


def sections_of(rng, n_tokens):
    ends = sorted({rng.randint(1, n_tokens) for _ in range(rng.randint(0, 3))} | {n_tokens})
    return [Section(end, rng.choice(STATES)) for end in ends]


def test_common_and_reusable_are_what_a_list_of_all_tokens_says():
    rng = random.Random(5)
    n_found = 0
    for _ in range(400):
        record, plain, exact = KvRecord(), [], []
        for _ in range(rng.randint(1, 4)):
            prompt = [rng.randint(0, 1) for _ in range(rng.randint(1, 400))]
            if plain and rng.random() < 0.8:
                # As a conversation goes on: what is there, now and then with another end.
                known = [token for token, _ in plain][: rng.randint(1, len(plain))]
                prompt = known + prompt
            sections = sections_of(rng, len(prompt))
            wanted = chunks_of(sections)
            states = [next(s.state for s in sections if i < s.end) for i in range(len(prompt))]
            common = 0
            while common < min(len(plain), len(prompt) - 1) and (prompt[common], states[common]) == plain[common]:
                common += 1
            assert record.common(prompt, sections) == common
            kept = 0
            for i, (end, state) in enumerate(wanted[:-1]):
                if i < len(exact) and exact[i] == (end, state) and [t for t, _ in plain[kept:end]] == prompt[kept:end]:
                    kept = end
                else:
                    break
            assert record.reusable(prompt, wanted) == kept
            at = max(kept, common) if rng.random() < 0.7 else kept
            n_found += at > kept
            record.cut(at)
            del plain[at:]
            exact = [chunk for chunk in exact if chunk[0] <= at]
            for end, state in wanted:
                if end > at:
                    if at == (exact[-1][0] if exact else 0):
                        exact.append((end, state))
                    record.add(prompt[at:end], state)
                    plain += [(token, state) for token in prompt[at:end]]
                    at = end
            for _ in range(rng.randint(0, 30)):
                token = rng.randint(0, 1)
                record.add_answer(token)
                plain.append((token, plain[-1][1]))
            assert record.tokens == [token for token, _ in plain]
            assert record.chunks == exact
    assert n_found > 50
