"""The other side of a proof: base and PEFT adapter in torch, in F32, as transformers and PEFT compute them.

    reference = Reference.from_hf("hf-folder", "peft-folder")
    reference.logits([1, 2, 3])                   # (3, n_vocab)
    reference.logits([1, 2, 3], adapter=False)    # the base alone

Nothing of our own conversion is used here, or the proof would prove nothing.
"""

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...edge.errors import InputError, SlmEdgeError, UnsupportedError
from ...edge.gguf.file import GgufFile
from .mlx import MlxModel, is_mlx_folder


class Reference:
    """A PEFT model in evaluation mode.

    Attributes:
        tokenizer: of the Hugging Face folder; None if there is none.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model
        self.tokenizer = tokenizer

    @classmethod
    def from_hf(cls, folder: str | os.PathLike[str], peft_dir: str | os.PathLike[str]) -> "Reference":
        """The base from a Hugging Face folder.

        Raises:
            InputError: transformers or PEFT cannot load it.
        """
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        _quiet()
        folder = Path(folder)
        if not (folder / "config.json").is_file():
            raise InputError("is not a Hugging Face folder: it holds no config.json", where=folder)
        model = _try(
            "transformers cannot load it",
            folder,
            lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True),
        )
        tokenizer = None
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            tokenizers: Any = AutoTokenizer
            tokenizer = _try(
                "transformers cannot load its tokenizer",
                folder,
                lambda: tokenizers.from_pretrained(folder, local_files_only=True),
            )
        return cls(_adapted(model, peft_dir), tokenizer)

    @classmethod
    def from_gguf(cls, path: str | os.PathLike[str], peft_dir: str | os.PathLike[str]) -> "Reference":
        """The base from a GGUF file, its weights dequantised by transformers.

        Raises:
            UnsupportedError: the file scales its positions in a way that transformers does not read from it.
            InputError: transformers or PEFT cannot load it.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        _quiet()
        file = GgufFile.open(path)
        architecture = file.get("general.architecture")
        scaling = file.get(f"{architecture}.rope.scaling.type", "none")
        if scaling not in ("none", ""):
            raise UnsupportedError(
                f"transformers does not read the rope scaling {scaling!r} from a GGUF",
                where=path,
                hint="give the Hugging Face folder with --hf instead",
            )
        place: dict[str, Any] = {
            "pretrained_model_name_or_path": file.path.absolute().parent,
            "gguf_file": file.path.name,
            "local_files_only": True,
        }

        def load() -> Any:
            config = AutoConfig.from_pretrained(**place)
            # transformers leaves this key out for some architectures and takes its own default.
            head_size = file.get(f"{architecture}.attention.key_length")
            if head_size is not None:
                config.head_dim = head_size
            return AutoModelForCausalLM.from_pretrained(**place, config=config, dtype=torch.float32)

        model = _try("transformers cannot load it", file.path, load)
        if "rope_freqs.weight" in file.tensors:
            # Llama-3's scaling stands in a tensor of divisors that transformers does not read.
            divisors = torch.from_numpy(file.array("rope_freqs.weight").copy())
            model.model.rotary_emb.inv_freq.div_(divisors)
        return cls(_adapted(model, peft_dir), None)

    def logits(self, ids: list[int], *, adapter: bool = True) -> npt.NDArray[np.float32]:
        """Logits after each token, (n_tokens, n_vocab).

        Args:
            adapter: with the adapter, or the base alone.
        """
        import torch

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


def _adapted(model: Any, peft_dir: str | os.PathLike[str]) -> Any:
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
