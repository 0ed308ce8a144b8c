"""Bytes a token that the layers of a model produce, counted operation by operation."""

from quadriga.launch.plan.shapes import ModelShape


def training_activations(shape: ModelShape, width: int) -> int:
    """Bytes a token that one forward pass keeps for its backward, all layers; the head keeps its input only.

    Counted over what eager autograd saves (no recomputation, unlike Korthikanti et al. 2022, section 4, whose count has
    dropout masks and attention scores, which are not kept here).
    """
    h, m, kv = shape.hidden, shape.intermediate, shape.kv_size
    attention = 3 * shape.heads * shape.head_size + 2 * kv  # q, k, v, the kernel's output, the projection's input
    if shape.gated:
        # RMSNorm computes in float32: its input there, the scaled input, its output; two norms a layer.
        norms = 2 * h * (12 if width == 4 else 8)
        mlp = 4 * m  # gate, its SiLU, up, their product
    else:
        norms = 2 * 2 * h * width
        mlp = 5 * m  # up, and the four factors of the tanh approximation of GELU
    layer = norms + (attention + mlp) * width
    return shape.layers * layer + 3 * h * width + h * 4


def forward_activations(shape: ModelShape, width: int) -> int:
    """Bytes a token that exist at once in a forward pass without gradient: the widest point of one layer."""
    h, m = shape.hidden, shape.intermediate
    mlp = 2 * h + (3 if shape.gated else 4) * m
    attention = 3 * h + 2 * (shape.heads * shape.head_size + 2 * shape.kv_size)
    return max(mlp, attention) * width
