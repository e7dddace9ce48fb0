"""The vocabulary of a tiny base, which has a token for every byte."""

import pytest
from slm_edge.edge.llama.vocab import Vocab


@pytest.fixture(scope="module")
def vocab(base):
    with Vocab.open(base) as opened:
        yield opened
