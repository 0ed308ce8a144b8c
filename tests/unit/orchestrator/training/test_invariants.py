"""The run-time checks that need no process: each holds on what is right and names what is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_stages import demonstrations, prompts

from quadriga.actors.model import group
from quadriga.actors.model.batch import Element, LossPart
from quadriga.actors.model.group import ActorGroup
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.model.worker import ModelWorkerSpec
from quadriga.actors.settings import ClusterSettings
from quadriga.actors.weights.object_store import Bucket, pack_bucket, unpack_bucket
from quadriga.data.errors import Fault, UserError
from quadriga.data.loading.datasets import load_demonstrations, load_prompts
from quadriga.data.records import Prompt, Sample, Tokens
from quadriga.data.settings import DataSettings
from quadriga.data.tokens.packing import BatchPlan
from quadriga.data.tokens.tokenizer import train_tokenizer
from quadriga.kernels.losses.policy import PolicyClip
from quadriga.orchestrator.training import invariants


def drawn(versions: list[int]) -> Sample:
    n = len(versions)
    return Sample(Prompt("p", [], [1, 5]), 0, [7] * n, [-1.0] * n, [1] * n, versions, "length", "")


def test_log_probs_agree_up_to_rounding() -> None:
    stats = invariants.engine_agrees([[-1.0, -2.0], [-3.0]], [[-1.0, -2.00005], [-3.0]], "float32")
    assert stats["rollout/logprob_diff_max"] == pytest.approx(5e-5)
    assert stats["rollout/logprob_diff_mean"] == pytest.approx(5e-5 / 3)
    with pytest.raises(Fault, match=r"log-probs differ from the trainer's by up to 0\.0002"):
        invariants.engine_agrees([[-1.0, -2.0]], [[-1.0, -2.0002]], "float32")


def test_in_bfloat16_the_mean_decides() -> None:
    """Single tokens may be far off; they are counted."""
    stats = invariants.engine_agrees([[-1.0] * 100], [[-1.5, -1.2] + [-1.0] * 98], "bfloat16")
    assert stats["rollout/logprob_outliers"] == 0.02
    with pytest.raises(Fault, match=r"mean 0\.06"):
        invariants.engine_agrees([[-1.0] * 4], [[-1.06] * 4], "bfloat16")
    invariants.first_ratio_is_one(2.0, 0.01, "bfloat16")
    with pytest.raises(Fault, match=r"off 1 by 2 in log \(mean 0\.06\)"):
        invariants.first_ratio_is_one(2.0, 0.06, "bfloat16")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_number_that_is_none_is_no_agreement(wrong: float) -> None:
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(Fault, match="log-probs differ"):
            invariants.engine_agrees([[wrong]], [[-1.0]], dtype)
        with pytest.raises(Fault, match="off 1 by"):
            invariants.first_ratio_is_one(wrong, wrong, dtype)
        with pytest.raises(Fault, match="KL between policy and reference"):
            invariants.start_kl_is_zero(wrong, dtype)


def test_first_ratio_and_start_kl() -> None:
    invariants.first_ratio_is_one(1e-5, 1e-6, "float32")
    invariants.start_kl_is_zero(-1e-6, "float32")
    with pytest.raises(Fault, match=r"off 1 by 0\.001 in log"):
        invariants.first_ratio_is_one(1e-3, 1e-6, "float32")
    with pytest.raises(Fault, match=r"is -0\.001 per token before the first update"):
        invariants.start_kl_is_zero(-1e-3, "float32")


def test_every_token_has_the_current_version() -> None:
    invariants.served_by([drawn([3, 3])], 3)
    with pytest.raises(Fault, match="Sample p/0 was drawn by policy version 2, not 3"):
        invariants.served_by([drawn([3, 3]), drawn([3, 2])], 3)


def test_a_template_that_adds_a_second_bos_is_refused(tmp_path: Path) -> None:
    template = tmp_path / "twice.jinja"
    template.write_text("{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    tokenizer = train_tokenizer(["What is the red sun?"], 300)
    settings = DataSettings(train=prompts(tmp_path / "p.jsonl"), chat_template=str(template))  # type: ignore[arg-type]
    with pytest.raises((UserError, Fault), match="twice at the start"):
        load_prompts(settings, tokenizer, 0)


def test_end_token_is_inside_the_loss_mask(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["What is the red sun? It is red."], 300)
    settings = DataSettings(train=demonstrations(tmp_path / "d.jsonl"))  # type: ignore[arg-type]
    rows = load_demonstrations(settings, tokenizer, 0).train
    invariants.eos_is_learned(rows, [tokenizer.eos_token_id])
    assert all(row.loss_mask[-1] == 1 and row.token_ids[-1] == tokenizer.eos_token_id for row in rows)
    outside = [Tokens(row.token_ids, [*row.loss_mask[:-1], 0]) for row in rows]
    with pytest.raises(Fault, match="No demonstration has its end token inside the loss mask"):
        invariants.eos_is_learned(outside, [tokenizer.eos_token_id])


def test_padding_is_never_told_from_content(tmp_path: Path) -> None:
    """An end token that is also the pad token is learned all the same: no mask is made from `ids == pad`."""
    tokenizer = train_tokenizer(["What is the red sun? It is red."], 300)
    settings = DataSettings(train=demonstrations(tmp_path / "d.jsonl"))  # type: ignore[arg-type]
    rows = load_demonstrations(settings, tokenizer, 0).train
    tokenizer.pad_token = tokenizer.eos_token
    assert load_demonstrations(settings, tokenizer, 0).train == rows


def test_ranks_with_other_numbers_of_micro_batches_are_never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their collectives would wait for each other until the deadline."""
    hosts = object.__new__(ActorGroup)
    spec = ModelWorkerSpec("actor", 0, 2, ModelSpec("m", "logprobs"), ClusterSettings(), "cpu", 1)
    hosts.specs, hosts.role, hosts.world, hosts.ranks = [spec, spec], "actor", 2, []
    monkeypatch.setattr(group, "plan", lambda *_: BatchPlan([[[0], [1]], [[2]]]))
    with pytest.raises(Fault, match=r"update: the ranks were given different numbers of micro-batches: \[1, 2\]"):
        hosts.update([LossPart(PolicyClip(), [Element([[1, 2]])] * 3, 1.0)], 1e-3)
    with pytest.raises(Fault, match="values: the ranks were given different numbers"):
        hosts.forward_values([[1, 2]] * 3, "values")


def test_a_bucket_keeps_every_bit_and_notices_one_that_flips() -> None:
    torch.manual_seed(0)
    tensors: list[tuple[str, Any]] = [
        ("a", torch.randn(3, 5)),
        ("b", torch.randn(7).bfloat16()),
        ("c", torch.tensor(1.5)),
        ("d", torch.randn(4, 6).T),
    ]
    bucket = pack_bucket(tensors)
    for (name, sent), (received, tensor) in zip(tensors, unpack_bucket(bucket), strict=True):
        assert name == received and tensor.dtype == sent.dtype and torch.equal(tensor, sent)
    changed = bucket.payload.copy()
    changed[65] ^= 4
    with pytest.raises(RuntimeError, match="the weights of a to d arrived damaged"):
        unpack_bucket(Bucket(bucket.entries, changed, bucket.checksum))
