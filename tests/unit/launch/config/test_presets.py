"""The shipped YAML files load, and the model shapes have the published numbers of parameters."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from quadriga.actors.settings import ClusterSettings, ModelSettings
from quadriga.data.errors import UserError
from quadriga.launch.checks.model import check_cpu_head_size, model_config
from quadriga.launch.config.load import PRESETS, load_config

PUBLISHED = {
    # Brown et al. 2020, table 2.1.
    "gpt-125m": 125e6,
    "gpt-350m": 350e6,
    "gpt-760m": 760e6,
    "gpt-1.3b": 1.3e9,
    "gpt-2.7b": 2.7e9,
    "gpt-6.7b": 6.7e9,
    "gpt-13b": 13.0e9,
    "gpt-175b": 175.0e9,
    # Model cards.
    "llama-3.2-1b": 1.23e9,
    "llama-3.1-8b": 8.03e9,
    "llama-3.1-70b": 70.6e9,
}
LAYERS = {"gpt-125m": 12, "gpt-2.7b": 32, "gpt-13b": 40, "gpt-175b": 96, "llama-3.1-70b": 80}


def shape(name: str) -> ModelSettings:
    return ModelSettings.model_validate(yaml.safe_load((PRESETS / "models" / f"{name}.yaml").read_text()))


def test_every_model_preset_has_a_published_size() -> None:
    assert {path.stem for path in (PRESETS / "models").glob("*.yaml")} == {"pocket", *PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name: str) -> None:
    config = model_config(shape(name))
    assert config.num_hidden_layers == LAYERS.get(name, config.num_hidden_layers)
    assert parameters(config) == pytest.approx(PUBLISHED[name], rel=0.025)


def test_the_pocket_model_is_small_and_can_be_served() -> None:
    assert parameters(model_config(shape("pocket"))) < 1e6
    check_cpu_head_size(shape("pocket"))


def parameters(config: Any) -> int:
    import torch
    from transformers import AutoModelForCausalLM

    layers, config.num_hidden_layers = config.num_hidden_layers, 1
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    # All layers are alike: building one of 96 says as much, in a hundredth of the time.
    blocks = model.transformer.h if hasattr(model, "transformer") else model.model.layers
    return total + (layers - 1) * sum(parameter.numel() for parameter in blocks[0].parameters())


@pytest.mark.parametrize("path", sorted((PRESETS / "clusters").glob("*.yaml")), ids=lambda path: path.stem)
def test_clusters(path: Path) -> None:
    ClusterSettings.model_validate(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in ("assistant", "examples") for path in (PRESETS / folder).glob("**/*.yaml")),
    ids=lambda path: path.stem,
)
def test_stages(path: Path) -> None:
    load_config(path)


def test_latent_attention_is_not_generated_with_on_a_cpu() -> None:
    model = ModelSettings(shape={"model_type": "deepseek_v3", "num_hidden_layers": 2})
    with pytest.raises(UserError, match=r"its family \(deepseek_v3\) has latent attention"):
        check_cpu_head_size(model)
