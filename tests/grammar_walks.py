"""Walks over what a grammar allows, byte by byte on a vocabulary that has every byte as a token."""

import random

import numpy as np
from slm_edge.edge.errors import EngineError
from slm_edge.edge.grammar.matcher import Grammar


def byte_ids(vocab):
    """The token of each byte; 0xFF has none that is text."""
    places = {vocab.piece(i): i for i in reversed(range(vocab.n_tokens))}
    return [places[bytes([byte])] for byte in range(256)]


def accepts(rules, vocab, ids, data):
    """Whether an answer may be these bytes, and end there."""
    grammar = Grammar(rules, vocab)
    tokens = [ids[byte] for byte in data]
    if grammar.n_allowed(tokens) < len(tokens):
        return False
    for token_id in tokens:
        grammar.accept(token_id)
    return any(grammar.allows(token_id) for token_id in vocab.ends())


def random_answer(rules, vocab, seed, most=400):
    """The bytes of an answer in which each token is drawn from those that are allowed; None: it did not end.

    Tokens are drawn by their kind first, so that not nearly all of a text is letters beyond ASCII.
    """
    draw = random.Random(seed)
    grammar = Grammar(rules, vocab)
    ends = set(vocab.ends())
    answer = b""
    for n in range(most):
        allowed = np.flatnonzero(grammar.allowed())
        if not len(allowed):
            raise EngineError("nothing is allowed")
        ending = [int(i) for i in allowed if int(i) in ends]
        closing = [int(i) for i in allowed if vocab.piece(int(i)) in (b'"', b"}", b"]", b",")]
        if ending and (len(ending) == len(allowed) or n > most // 2 or draw.random() < 0.5):
            return answer
        if closing and (n > most // 2 or draw.random() < 0.4):
            allowed = closing
        elif escapes := [int(i) for i in allowed if vocab.piece(int(i)) in (b"\\", b"u", b"0", b"-", b".", b"e")]:
            allowed = escapes if draw.random() < 0.3 else allowed
        token_id = int(draw.choice(list(allowed)))
        if token_id in ends:
            return answer
        answer += vocab.piece(token_id)
        grammar.accept(token_id)
    return None
