"""Parameters of models against what is published and against closed forms."""

from typing import Any

import pytest
import yaml
from transformers import AutoConfig

from quadriga.data.errors import UserError
from quadriga.launch.config.load import PRESETS
from quadriga.launch.plan.model_shape import ModelShape, shape_of

P8, P70 = 8_030_261_248, 70_553_706_496
"""Parameters of Llama 3.1 8B and 70B, as published."""


def preset(name: str) -> ModelShape:
    """The shape of a preset of this package."""
    fields = yaml.safe_load((PRESETS / f"models/{name}.yaml").read_text())["shape"]
    return shape_of(AutoConfig.for_model(**fields))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-3.1-8b", P8),
        ("llama-3.1-70b", P70),
        ("llama-3.2-1b", 1_235_814_400),
        # Brown et al. 2020 with 2048 positions: GPT-2's 124,439,808 and 1024 more rows of 768.
        ("gpt-125m", 124_439_808 + 1024 * 768),
    ],
)
def test_parameters_of_published_models(name: str, parameters: int) -> None:
    assert preset(name).parameters() == parameters


def test_a_scalar_head_replaces_the_vocabulary() -> None:
    """The head's 128256 x 4096 go, a row and a bias come."""
    assert preset("llama-3.1-8b").parameters("scalar") == P8 - 128256 * 4096 + 4096 + 1


HIDDEN, LAYERS, VOCAB, MLP, QUERIES, KEYS, HEAD_SIZE = 64, 3, 512, 160, 64, 32, 16


def rotary_layer(qkv_bias: bool = False, other_biases: bool = False, head_norms: bool = False) -> tuple[int, int]:
    """(parameters, tensors) of a layer with a gated MLP and two RMSNorms: Touvron et al. 2023, section 2.2."""
    parameters = 2 * HIDDEN * QUERIES + 2 * HIDDEN * KEYS + 3 * HIDDEN * MLP + 2 * HIDDEN
    parameters += (QUERIES + 2 * KEYS) * qkv_bias + (2 * HIDDEN + 2 * MLP) * other_biases + 2 * HEAD_SIZE * head_norms
    return parameters, 9 + 3 * qkv_bias + 4 * other_biases + 2 * head_norms


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("family", "layer"),
    [
        ("llama", rotary_layer(qkv_bias=True, other_biases=True)),
        ("mistral", rotary_layer()),
        ("qwen2", rotary_layer(qkv_bias=True)),
        ("qwen3", rotary_layer(head_norms=True)),
    ],
)
def test_rotary_families(family: str, layer: tuple[int, int], tied: bool) -> None:
    biases: dict[str, Any] = {"attention_bias": True, "mlp_bias": True} if family == "llama" else {}
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": VOCAB}
    heads = {"intermediate_size": MLP, "num_key_value_heads": 2, "head_dim": HEAD_SIZE, "tie_word_embeddings": tied}
    shape = shape_of(AutoConfig.for_model(family, **sizes, **heads, **biases))
    parameters, tensors = layer
    assert shape.inside == LAYERS * parameters
    assert shape.parameters() == LAYERS * parameters + HIDDEN + VOCAB * HIDDEN * (1 if tied else 2)
    assert shape.tensors() == LAYERS * tensors + (2 if tied else 3)
    assert (shape.queries, shape.keys, shape.gated) == (QUERIES, KEYS, True)


def test_gpt2_family() -> None:
    """Radford et al. 2019: biases everywhere, learned positions, norms with a shift."""
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": VOCAB}
    shape = shape_of(AutoConfig.for_model("gpt2", **sizes, max_position_embeddings=128))
    h, m = HIDDEN, 4 * HIDDEN
    layer = (h * 3 * h + 3 * h) + (h * h + h) + (h * m + m) + (m * h + h) + 4 * h
    assert shape.inside == LAYERS * layer
    assert shape.parameters() == LAYERS * layer + VOCAB * h + 128 * h + 2 * h
    assert shape.tensors() == LAYERS * 12 + 4
    assert not shape.gated


def test_another_vocabulary() -> None:
    sizes = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "vocab_size": VOCAB}
    config = AutoConfig.for_model("llama", **sizes, tie_word_embeddings=True)
    larger = shape_of(config, VOCAB + 100)
    assert larger.parameters() == shape_of(config).parameters() + 100 * HIDDEN
    assert config.vocab_size == VOCAB


@pytest.mark.parametrize("family", ["t5", "mamba"])
def test_what_is_not_a_decoder_with_attention(family: str) -> None:
    with pytest.raises(UserError, match=f"A {family} model cannot be planned"):
        shape_of(AutoConfig.for_model(family))
