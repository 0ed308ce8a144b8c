"""Every family of docs/models.md against transformers alone: policy, reward model, critic, export and reload.

The table has a row for each of them, and no other.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers.families import REFUSED, WHOLE, make_family, plain_logprobs, plain_scalars
from safetensors.torch import load_file

from quadriga.actors.model.equivalence import check_packed_forward
from quadriga.actors.model.export import export_model
from quadriga.actors.model.folder import check_reward_head, reward_shift
from quadriga.actors.model.heads import ModelSpec, load_model, token_logprobs, token_scalars
from quadriga.data.errors import UserError

SEQUENCES = [[5, 9, 2, 7, 11, 3, 17, 23, 4], [8, 31], [40, 41, 12, 7], [3, 90, 88, 2, 61, 7, 33, 29, 54, 70, 71, 6, 13]]
"""Ragged, and two of them longer than the window of the families that have one."""
BORDERS = torch.tensor([0, *map(len, SEQUENCES)]).cumsum(0)
TOLERANCE = 1e-5
"""Per unit of magnitude: about a hundred float32 roundings."""


def row() -> dict[str, torch.Tensor]:
    """All sequences as one packed row."""
    positions = torch.cat([torch.arange(len(ids)) for ids in SEQUENCES])
    return {
        "token_ids": torch.tensor([id_ for ids in SEQUENCES for id_ in ids]),
        "position_ids": positions,
        "cu_seqlens": BORDERS,
        "first": positions == 0,
    }


def load(path: Path, **spec: Any) -> Any:
    """Load a model as a worker does."""
    model = load_model(ModelSpec(str(path), **spec), torch.float32)
    check_packed_forward(model, model, spec["head"], str(path), torch.device("cpu"))
    return model


def our_logprobs(model: Any) -> list[torch.Tensor]:
    logprobs = token_logprobs(model, model, row(), 1.0)[0].detach()
    return [part[1:] for part in logprobs.tensor_split(BORDERS[1:-1])]


def our_scalars(model: Any) -> list[torch.Tensor]:
    return list(token_scalars(model, row()).detach().tensor_split(BORDERS[1:-1]))


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    size = max(1.0, *(float(x.abs().max()) for x in expected))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=TOLERANCE * size)


@pytest.fixture(scope="module", params=WHOLE)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(family, tmp_path_factory.mktemp(family), WHOLE[family])


def test_policy(folder: Path, tmp_path: Path) -> None:
    """Log-probs, and a gradient, of a packed row are those of the plain model; so is its export."""
    model = load(folder, head="logprobs")
    expected = plain_logprobs(folder, SEQUENCES)
    assert float(torch.cat(expected).std()) > 0.5  # or the comparison would say little
    assert_equal(our_logprobs(model), expected)
    token_logprobs(model, model, row(), 1.0)[0].sum().backward()
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    plain.eval()
    for ids in SEQUENCES:
        tokens = torch.tensor([ids])
        logits = plain(input_ids=tokens, use_cache=False).logits[0, :-1]
        logits.log_softmax(-1).gather(1, tokens[0, 1:, None]).sum().backward()
    gradients = dict(plain.named_parameters())
    whole = float(torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None]).norm())
    for name, parameter in model.named_parameters():
        other = gradients[name].grad
        assert (parameter.grad is None) == (other is None), name
        if other is not None:  # that of a key's bias is 0 but for rounding
            assert float((parameter.grad - other).norm()) <= 1e-4 * float(other.norm()) + 1e-6 * whole, name
    export_model(model, tmp_path / "export", "policy", {}, 1 << 14, write=True)
    assert load_file(tmp_path / "export/model.safetensors").keys() == load_file(folder / "model.safetensors").keys()
    assert_equal(plain_logprobs(tmp_path / "export", SEQUENCES), expected)


def test_reward_model_and_critic(family: str, folder: Path, tmp_path: Path) -> None:
    """Scalars of a packed row are those of base model and head, also when read back and by transformers' classes."""
    fresh = load(folder, head="scalar", seed=3)
    weight = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))[0] / 65**0.5
    assert_equal(our_scalars(fresh), plain_scalars(folder, SEQUENCES, weight, 0.0))

    with torch.no_grad():
        fresh.score.bias.fill_(0.75)
    export_model(fresh, tmp_path / "reward", "reward", {"reward_shift": 0.5, "pad_token_id": 0}, 1 << 14, write=True)
    check_reward_head(tmp_path / "reward")
    assert reward_shift(tmp_path / "reward") == -0.25  # the head of a sequence classifier has no bias
    assert_equal(our_scalars(load(tmp_path / "reward", head="scalar")), plain_scalars(folder, SEQUENCES, weight, 0.0))
    check_class("AutoModelForSequenceClassification", tmp_path / "reward", folder, weight, 0.0)

    critic = load(tmp_path / "reward", head="scalar", bias=0.25)
    assert critic.score.bias.requires_grad
    export_model(critic, tmp_path / "critic", "critic", {}, 1 << 14, write=True)
    again = load(tmp_path / "critic", head="scalar", bias=-reward_shift(tmp_path / "critic"))
    assert_equal(our_scalars(again), plain_scalars(folder, SEQUENCES, weight, 0.25))
    check_class("AutoModelForTokenClassification", tmp_path / "critic", folder, weight, 0.25)


def check_class(auto: str, export: Path, folder: Path, weight: torch.Tensor, bias: float) -> None:
    """Check that transformers' class, if the family has one, reads every tensor of an export and agrees with it."""
    config = transformers.AutoConfig.from_pretrained(export)
    known = type(config) in getattr(transformers, auto)._model_mapping
    assert (config.architectures is not None) == known
    if not known:
        return
    model, report = getattr(transformers, auto).from_pretrained(
        export, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    expected = plain_scalars(folder, SEQUENCES, weight, bias)
    with torch.no_grad():
        found = [model.eval()(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in SEQUENCES]
    if auto == "AutoModelForSequenceClassification":
        assert_equal([x.reshape(1) for x in found], [x[-1:] for x in expected])
    else:
        assert_equal([x[:, 0] for x in found], expected)


DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def test_table_of_the_documentation() -> None:
    """Each family has its row, in the column that these tests check."""
    rows = re.findall(r"^\| `(\w+)` \| (yes|refused) \|", DOCUMENT.read_text(), re.M)
    assert rows == [(family, "yes") for family in WHOLE] + [(family, "refused") for family in REFUSED]


@pytest.mark.parametrize("family", REFUSED)
def test_family_that_is_refused(family: str, tmp_path: Path) -> None:
    fields, reason = REFUSED[family]
    with pytest.raises(UserError, match=rf"cannot be trained here: .*{re.escape(reason)}"):
        load(make_family(family, tmp_path, fields), head="logprobs")
