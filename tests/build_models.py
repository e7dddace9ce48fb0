"""The same tiny Llama and adapter twice: as our training computes them, and as transformers and PEFT do."""

import copy

import torch
from peft import LoraConfig, get_peft_model
from slm_edge.train.model import attention
from slm_edge.train.model.lora import add_lora, trainable
from slm_edge.train.recipe import Recipe
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM


def two_models(rslora=False, invocation=(), window_tokens=0):
    """Ours (packed attention, fused LoRA) and theirs; with an invocation both are activated LoRA.

    Args:
        window_tokens: Gemma 3 instead of Llama, whose first layer attends to so many tokens.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config, model_class = LlamaConfig(**sizes), LlamaForCausalLM
    if window_tokens:
        kinds = ["sliding_attention", "full_attention"]
        own = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": window_tokens, "layer_types": kinds}
        config, model_class = Gemma3TextConfig(**sizes, **own, pad_token_id=0, initializer_range=0.2), Gemma3ForCausalLM
    plain = model_class(config)
    packed_config = copy.deepcopy(config)
    packed_config._attn_implementation = attention.register()
    packed = model_class(packed_config)
    packed.load_state_dict(plain.state_dict())
    recipe = Recipe(task="math", rank=4, alpha=8.0, rslora=rslora)
    ours = add_lora(packed, recipe, "base.gguf", invocation)
    for parameter in trainable(ours).values():
        torch.nn.init.normal_(parameter, std=0.2)
    activated = {"task_type": "CAUSAL_LM", "alora_invocation_tokens": list(invocation)} if invocation else {}
    own = LoraConfig(r=4, lora_alpha=8, use_rslora=rslora, target_modules=list(recipe.targets), **activated)
    theirs = get_peft_model(plain, own)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs
