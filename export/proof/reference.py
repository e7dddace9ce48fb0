"""The other side of a proof: base and PEFT adapter in torch, in F32, as transformers and PEFT compute them.

    reference = Reference.from_hf("hf-folder", "peft-folder")
    reference.logits([1, 2, 3])                   # (3, n_vocab)
    reference.logits([1, 2, 3], adapter=False)    # the base alone

Nothing of our own conversion is used here, or the proof would prove nothing.
"""

import contextlib
import dataclasses
import io
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...edge.errors import InputError, SlmEdgeError
from ...edge.files.read import read_table
from ...edge.gguf.file import GgufFile
from ...edge.gguf.hf_form import classes_of, dtype_word, hf_config, places, tensor_of, trained_family
from ...edge.gguf.rope import check_rope, gguf_rope, give_rope, settle_rope, with_buffers
from .mlx import MlxModel, is_mlx_folder


class Reference:
    """A PEFT model in evaluation mode.

    Attributes:
        tokenizer: of the Hugging Face folder; None if there is none.
    """

    def __init__(self, model: Any, tokenizer: Any, peft_dir: str | os.PathLike[str]) -> None:
        self._gelus = [*_round_gelus(model), *_unbias_sparsity(model)]
        self._model = _adapted(model, peft_dir)
        self.tokenizer = tokenizer

    @property
    def rounds(self) -> bool:
        """Whether `as_ggml` changes anything."""
        return bool(self._gelus)

    @classmethod
    def from_hf(cls, folder: str | os.PathLike[str], peft_dir: str | os.PathLike[str]) -> "Reference":
        """The base from a Hugging Face folder.

        Raises:
            InputError: transformers or PEFT cannot load it.
        """
        import torch
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
        from transformers import AutoTokenizer as SlowTokenizer

        _quiet()
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise InputError("is not a Hugging Face folder: it holds no config.json", where=folder)

        def load() -> Any:
            raw = read_table(folder / "config.json")
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            rope = settle_rope(config, raw, folder)
            place: dict[str, Any] = {"config": config, "local_files_only": True}
            place[dtype_word(transformers.__version__)] = torch.float32
            model: Any = AutoModelForCausalLM.from_pretrained(folder, **place)
            if rope is not None:
                check_rope(model, rope, folder)
            return model

        model = _try("transformers cannot load it", folder, load)
        _untie(model, folder)
        tokenizer = None
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            # The file as it stands: a class by name may build another tokenizer of it, or be unknown to this release.
            tokenizers: Any = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else SlowTokenizer
            tokenizer = _try(
                "transformers cannot load its tokenizer",
                folder,
                lambda: tokenizers.from_pretrained(folder, local_files_only=True),
            )
        return cls(model, tokenizer, peft_dir)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str], peft_dir: str | os.PathLike[str]) -> "Reference":
        """The base from a GGUF file, its weights dequantised by the gguf package.

        Raises:
            UnsupportedError: an architecture without a class here, or a scaling of positions that is not computed.
            InputError: transformers or PEFT cannot load it.
        """
        import torch
        import transformers

        _quiet()
        file = GgufFile.open(path)
        family, rope = trained_family(file), gguf_rope(file)
        found = places(file)

        def load() -> Any:
            config_class, model_class = classes_of(transformers, family)
            config = config_class(**hf_config(file))
            give_rope(config, dataclasses.replace(rope, divisors=None))
            with torch.device("meta"):
                model: Any = model_class(config)
            state = {
                f"{place.module}.{place.kind}": torch.from_numpy(np.array(place.numbers(tensor_of(file, name))))
                for name, place in found.items()
            }
            if config.tie_word_embeddings:
                state["lm_head.weight"] = state["model.embed_tokens.weight"]
            model.load_state_dict(state, assign=True)
            model.tie_weights()
            return with_buffers(model, config, rope)

        model = _try("transformers cannot load it", file.path, load)
        check_rope(model, rope, file.path)
        return cls(model, None, peft_dir)

    def logits(self, ids: list[int], *, adapter: bool = True, as_ggml: bool = True) -> npt.NDArray[np.float32]:
        """Logits after each token, (n_tokens, n_vocab).

        Args:
            adapter: with the adapter, or the base alone.
            as_ggml: GELU is rounded as ggml rounds it, and Gemma 3n's threshold is llama.cpp's.
        """
        import torch

        for gelu in self._gelus:
            gelu.rounded = as_ggml
        tokens = torch.tensor([ids])
        with torch.inference_mode():
            if adapter:
                # attention_mask: PEFT's activated LoRA looks for its start among the tokens that it covers.
                out = self._model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
            else:
                with self._model.disable_adapter():
                    out = self._model.get_base_model()(input_ids=tokens)
        rows: npt.NDArray[np.float32] = out.logits[0].float().numpy()
        return rows


def _quiet() -> None:
    from transformers.utils import logging

    quiet: Any = logging

    quiet.set_verbosity_error()
    quiet.disable_progress_bar()


def _round_gelus(model: Any) -> list[Any]:
    """Makes a model compute GELU as ggml's CPU backend: from a table of F16, between -10 and 10 (vec.h).

    Else a thousandth of each activation would be another number, and errors of that size would hide in it.

    Returns:
        The activations; `rounded` switches it.
    """
    import torch

    class HalfGelu(torch.nn.Module):
        rounded = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.rounded:
                return torch.nn.functional.gelu(x, approximate="tanh")
            table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
            return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, table))

    found = []
    for module in model.modules():
        if type(getattr(module, "act_fn", None)).__name__ in ("GELUTanh", "PytorchGELUTanh"):
            module.act_fn = HalfGelu()
            found.append(module.act_fn)
    return found


def _unbias_sparsity(model: Any) -> list[Any]:
    """Makes Gemma 3n leave out as many activations as in llama.cpp, which divides by n - 1 in the deviation, not by n.

    Returns:
        What stands in for the models' own functions; `rounded` switches it.
    """
    import torch

    class Sparse:
        rounded = True

        def __init__(self, module: Any) -> None:
            self.own = module._gaussian_topk
            normal: Any = torch.distributions.normal.Normal(0, 1)
            self.factor = normal.icdf(torch.tensor(module.activation_sparsity, dtype=torch.float32))

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            if not self.rounded:
                return torch.as_tensor(self.own(x))
            return torch.relu(x - x.mean(-1, keepdim=True) - self.factor * x.std(-1, keepdim=True, unbiased=True))

    found = []
    for module in model.modules():
        if hasattr(module, "_gaussian_topk"):
            module._gaussian_topk = Sparse(module)
            found.append(module._gaussian_topk)
    return found


def _adapted(model: Any, peft_dir: str | os.PathLike[str]) -> Any:
    # PEFT imports it where it is installed; it then warns of kernels that nothing here would call.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from peft import PeftConfig, PeftModel

    peft_dir = Path(peft_dir)
    if not (peft_dir / "adapter_config.json").is_file():
        raise InputError("is not a folder that PEFT saved: it holds no adapter_config.json", where=peft_dir)
    if is_mlx_folder(peft_dir):
        return MlxModel(model, peft_dir)

    def load() -> Any:
        config = PeftConfig.from_pretrained(str(peft_dir))
        # What it says changes PEFT's wrapper, not the sum; the model here is a causal one.
        config.task_type = "CAUSAL_LM"
        # It told which layers were spread over processes; PEFT would import megatron for it.
        if getattr(config, "megatron_config", None) is not None:
            config.megatron_config = None
        return PeftModel.from_pretrained(model, str(peft_dir), config=config)

    return _try("PEFT cannot load it on this base", peft_dir, load).float().eval()


def _try(message: str, where: Path, load: Any) -> Any:
    """Runs a loader of transformers or PEFT: its errors, which have no common type, become one of ours."""
    try:
        # transformers draws a progress bar of its own while it dequantises.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            # PEFT only warns of modules that stay without the adapter's weights: such a reference proves nothing.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return load()
    except (SlmEdgeError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise InputError(f"{message}: {str(error).strip()[:500]}", where=where) from error


def _untie(model: Any, folder: Path) -> None:
    """Gives a model the head that its folder holds, where config.json says "tied" and transformers believed it."""
    import torch
    from safetensors import safe_open

    name = "lm_head.weight"
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118
                head = file.get_tensor(name).float()
                if not torch.equal(head, model.get_output_embeddings().weight):
                    model.get_output_embeddings().weight = torch.nn.Parameter(head)
                    model.config.tie_word_embeddings = False
