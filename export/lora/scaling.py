"""How strongly PEFT applies each module's LoRA, and how one `adapter.lora.alpha` can say the same to llama.cpp.

PEFT:       y += s * B(A x),  s = alpha / r, or alpha / sqrt(r) with rsLoRA; alpha and r may differ by module.
llama.cpp:  y += alpha_file / rank * B(A x),  rank = columns of B. What one alpha cannot say is folded into B.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Scaling:
    """The part of a PEFT LoRA config that says ranks and strengths.

    Attributes:
        rank, alpha: `r` and `lora_alpha`, for modules without own ones.
        rslora: `use_rslora`.
        ranks, alphas: own values of modules, by name (as in the model, without `base_model.model.`).
    """

    rank: int
    alpha: float
    rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank that PEFT gives to a module."""
        return self.ranks.get(module, self.rank)

    def scale_of(self, module: str) -> float:
        """PEFT's factor on B(A x) for a module."""
        rank = self.rank_of(module)
        return self.alphas.get(module, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


@dataclass(frozen=True)
class FileScaling:
    """What goes into the GGUF.

    Attributes:
        alpha: `adapter.lora.alpha`, an F32 number above 0 (llama.cpp takes 0 for "no scaling").
        factors: what B is multiplied by, for each module whose scale `alpha` alone does not give.
    """

    alpha: float
    factors: Mapping[str, float]

    def factor_of(self, module: str) -> float:
        """The factor for a module's B; 1.0 if nothing is folded."""
        return self.factors.get(module, 1.0)


def file_scaling(scaling: Scaling, modules: Iterable[str]) -> FileScaling:
    """Chooses the file's alpha and the factors on B so that every module has PEFT's scale, to F32 rounding.

    Where all modules agree on s * r, that is the alpha and nothing is folded (alpha / r: alpha; rsLoRA of one
    rank: alpha * sqrt(r)). Else it is `lora_alpha`, or the largest s * r where that is not above 0.

    Raises:
        ValueError: every module's scale is 0: the adapter does nothing.
    """
    wanted = {module: scaling.scale_of(module) * scaling.rank_of(module) for module in modules}
    largest = max((abs(value) for value in wanted.values()), default=0.0)
    if largest == 0:
        raise ValueError("every module's scale is 0")
    same = all(math.isclose(value, largest, rel_tol=1e-12) for value in wanted.values())
    alpha = float(np.float32(largest if same or scaling.alpha <= 0 else scaling.alpha))
    if same:
        return FileScaling(alpha, {})
    return FileScaling(alpha, {module: value / alpha for module, value in wanted.items() if value != alpha})
