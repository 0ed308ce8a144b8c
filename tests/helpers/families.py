"""Tiny random models of the families of docs/models.md, whose outputs differ clearly from token to token."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

USUAL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = USUAL | {"num_key_value_heads": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
WINDOW = 5
"""Tokens of a sliding window: fewer than in the sequences of the tests."""
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}

WHOLE: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 32},
    "gemma": GROUPED | {"head_dim": 32},
    "gemma2": GROUPED | LAYERS | {"head_dim": 32, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0},
    "gemma3_text": GROUPED | LAYERS | {"head_dim": 32, "final_logit_softcapping": 5.0},
    "phi": USUAL,
    "phi3": GROUPED | {"sliding_window": WINDOW, "pad_token_id": 0},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2},
    "gpt_neox": USUAL,
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 64,
    },
    "granite": GROUPED | {"logits_scaling": 8.0, "attention_multiplier": 0.1, "residual_multiplier": 0.5},
    "cohere": GROUPED | {"logit_scale": 0.25},
    "olmo2": GROUPED,
    "glm4": GROUPED | {"head_dim": 32},
    "smollm3": GROUPED | {"no_rope_layers": [1, 0]},
    "starcoder2": GROUPED,
    "mixtral": GROUPED | {"num_local_experts": 4},
    "qwen3_moe": GROUPED | EXPERTS | {"head_dim": 32},
    "deepseek_v3": USUAL
    | {"num_key_value_heads": 2, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    | {"first_k_dense_replace": 1, "topk_method": "noaux_tc"}
    | {"n_group": 2, "topk_group": 1, "q_lora_rank": 32, "kv_lora_rank": 512}
    | {"qk_nope_head_dim": 16, "qk_rope_head_dim": 64, "v_head_dim": 32},
}
"""Families that are trained whole, with the features that distinguish them."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "falcon": (USUAL, "its family takes no attention but its own"),
    "bloom": ({"hidden_size": 64, "n_layer": 2, "n_head": 2}, "does not run on packed sequences"),
    "lfm2": (GROUPED | {"layer_types": ["conv", "full_attention"]}, "lets one sequence see another"),
    "mamba2": (
        {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 32, "state_size": 8, "n_groups": 1},
        "lets one sequence see another",
    ),
    "qwen3_next": (
        GROUPED
        | EXPERTS
        | {"head_dim": 32, "layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 48}
        | {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16}
        | {"linear_value_head_dim": 16},
        "does not run on packed sequences",
    ),
}
"""Families that are refused when a model is loaded, with what the error says is missing."""


def make_family(family: str, folder: Path, fields: dict[str, Any], auto: Any = AutoModelForCausalLM) -> Path:
    """Save a random model. Returns its folder."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, vocab_size=96, **({"pad_token_id": 0} | fields))
    model = auto.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.8 if "embed" in name or "head" in name or "wte" in name else 0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder


def plain_logprobs(folder: Path, sequences: list[list[int]]) -> list[torch.Tensor]:
    """Log-probs of all tokens but first ones by transformers alone, one sequence at a time, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    result = []
    with torch.no_grad():
        for ids in sequences:
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
            result.append(logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0])
    return result


def plain_scalars(folder: Path, sequences: list[list[int]], weight: Any, bias: float) -> list[torch.Tensor]:
    """weight · h + bias at every token, h from transformers' base model alone, one sequence at a time."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        hidden = [model(input_ids=torch.tensor([ids]), use_cache=False)[0][0].double() for ids in sequences]
    return [h @ weight.double() + bias for h in hidden]
