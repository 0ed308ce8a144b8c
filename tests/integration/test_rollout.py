"""The rollout pool over a live engine: which answers come, in which order, from which weights."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from helpers.small_stages import CLUSTER, prompts
from transformers import AutoModelForCausalLM

from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.settings import ClusterSettings, SamplingSettings
from quadriga.actors.weights.object_store import pack_bucket
from quadriga.actors.weights.source import folder_tensors
from quadriga.data.errors import Fault
from quadriga.data.loading.datasets import load_prompts
from quadriga.data.records import Prompt, Sample
from quadriga.data.settings import DataSettings
from quadriga.data.tokens.tokenizer import load_tokenizer
from quadriga.orchestrator.cluster.processes import ModelUse, RolloutPlan, processes
from quadriga.orchestrator.evaluation.evaluate import FolderWeights
from quadriga.orchestrator.rollout.pool import GroupWeights, RolloutPool

pytestmark = pytest.mark.integration

SAMPLING = SamplingSettings(max_tokens=16, temperature=0.8)
STOPS = tuple(range(6, 40))
"""Many tokens that end an answer, so that a random model ends some."""


@pytest.fixture(scope="module")
def live(ray_cluster: None, made_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RolloutPool]:
    """A pool whose one worker got its weights, as version 0, from an actor."""
    settings = ClusterSettings.model_validate(CLUSTER)
    uses, plan = [ModelUse("actor", ModelSpec(str(made_model), "logprobs"))], RolloutPlan(str(made_model), 64, False)
    with processes(settings, uses, plan, str(tmp_path_factory.mktemp("logs"))) as running:
        pool = RolloutPool(running.fleet, STOPS, str, GroupWeights(running))
        pool.sync(0)
        yield pool


@pytest.fixture(scope="module")
def asked(made_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Prompt]:
    """Twenty prompts."""
    settings = DataSettings(train=prompts(tmp_path_factory.mktemp("prompts") / "p.jsonl"))  # type: ignore[arg-type]
    return load_prompts(settings, load_tokenizer(made_model), 0).train


@pytest.fixture(scope="module")
def samples(live: RolloutPool, asked: list[Prompt]) -> list[Sample]:
    """Three answers to each."""
    return live.generate(asked, 3, SAMPLING, 0, 0)


def drawn(samples: list[Sample]) -> list[tuple[list[int], list[float], str]]:
    """What must repeat, to the bit."""
    return [(s.response_ids, s.rollout_logprobs, s.finish_reason) for s in samples]


def test_answers_come_in_order_and_the_counts_balance(
    live: RolloutPool, asked: list[Prompt], samples: list[Sample]
) -> None:
    assert [sample.id for sample in samples] == [f"{prompt.id}/{index}" for prompt in asked for index in range(3)]
    assert len({tuple(sample.response_ids) for sample in samples}) > 30
    seen: list[tuple[int, int]] = []
    live.generate(asked[:3], [2, 0, 1], SAMPLING, 0, 0, lambda done, all_: seen.append((done, all_)))
    tracker = live.request_tracker
    assert (len(tracker.requests), len(tracker.answers), tracker.aborted, tracker.reissued) == (3, 3, 0, 0)
    assert seen[-1] == (3, 3)


def test_an_answer_is_the_same_alone_and_in_a_batch(
    live: RolloutPool, asked: list[Prompt], samples: list[Sample]
) -> None:
    for number in (0, 7, 19):
        assert drawn(live.generate([asked[number]], 3, SAMPLING, 0, 0)) == drawn(samples[3 * number :][:3])
    assert drawn(live.generate(asked[::-1], 3, SAMPLING, 0, 0)) == drawn(
        [sample for number in reversed(range(20)) for sample in samples[3 * number :][:3]]
    )
    assert drawn(live.generate(asked, 3, SAMPLING, 0, 1)) != drawn(samples)  # another step, other seeds


def test_the_end_token_is_part_of_the_answer(samples: list[Sample]) -> None:
    ended = [sample for sample in samples if sample.ended]
    cut = [sample for sample in samples if not sample.ended]
    assert ended and cut
    assert all(s.response_ids[-1] in STOPS and not set(s.response_ids[:-1]) & set(STOPS) for s in ended)
    assert all(len(s.response_ids) == 16 and not set(s.response_ids) & set(STOPS) for s in cut)


def test_log_probs_are_those_of_the_sampling_distribution(made_model: Path, samples: list[Sample]) -> None:
    model = AutoModelForCausalLM.from_pretrained(made_model, dtype=torch.float32, attn_implementation="eager")
    for sample in samples[::7]:
        ids = torch.tensor([sample.token_ids])
        with torch.no_grad():
            logprobs = (model(input_ids=ids).logits[0, :-1] / 0.8).log_softmax(-1)
        expected = logprobs.gather(1, ids[0, 1:, None])[-len(sample.response_ids) :, 0]
        np.testing.assert_allclose(sample.rollout_logprobs, expected, atol=1e-4)


def test_a_folder_gives_the_weights_of_a_sync(
    live: RolloutPool, asked: list[Prompt], samples: list[Sample], made_model: Path
) -> None:
    """And every token carries the version that drew it."""
    from_actor = live.weights
    assert {version for sample in samples for version in sample.versions} == {0}
    live.weights = FolderWeights(str(made_model), ClusterSettings().deadlines)
    live.sync(5)
    loaded = live.generate(asked, 3, SAMPLING, 0, 0)
    assert drawn(loaded) == drawn(samples)
    assert {version for sample in loaded for version in sample.versions} == {5}
    live.weights = from_actor
    live.sync(6)
    again = live.generate(asked, 3, SAMPLING, 0, 0)
    assert drawn(again) == drawn(samples) and again[0].versions == [6] * len(again[0].response_ids)


def test_a_damaged_bucket_is_refused_and_nothing_served(
    live: RolloutPool, asked: list[Prompt], made_model: Path
) -> None:
    """Comes last: the worker is of no use after it."""
    bucket = pack_bucket(folder_tensors(made_model))
    bucket.payload[7] ^= 1
    (worker,) = live.fleet.workers
    ray.get(worker.handle.start_weight_update.remote(7))
    with pytest.raises(RuntimeError, match="arrived damaged: their CRC-32 differs from the sender's"):
        ray.get(worker.handle.receive_weights.remote(bucket))
    with pytest.raises(Fault, match=f"asked for answers of policy version {live.version} but holds no weights"):
        live.generate(asked, 1, SAMPLING, 0, 0)
