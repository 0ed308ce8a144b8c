"""Every family of docs/models.md served by vLLM: its log-probs are the trainer's, after each way to get weights."""

from pathlib import Path

import numpy as np
import pytest
from helpers.families import WHOLE, make_family
from helpers.small_stages import CLUSTER

from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.settings import ClusterSettings, SamplingSettings
from quadriga.data.records import Prompt
from quadriga.orchestrator.cluster.processes import ModelUse, RolloutPlan, processes
from quadriga.orchestrator.evaluation.evaluate import FolderWeights
from quadriga.orchestrator.rollout.pool import GroupWeights, RolloutPool

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROMPTS = [Prompt(str(n), [], [1, 20 + n, 30 + n, 40]) for n in range(8)]


@pytest.mark.parametrize("family", [family for family in WHOLE if family != "deepseek_v3"])
def test_log_probs_are_those_of_the_trainer(family: str, ray_cluster: None, tmp_path: Path) -> None:
    """Weights from the folder, then from the actor. Answers are longer than the window of the families with one."""
    folder = make_family(family, tmp_path / family, WHOLE[family])
    settings = ClusterSettings.model_validate(CLUSTER)
    uses, plan = [ModelUse("actor", ModelSpec(str(folder), "logprobs"))], RolloutPlan(str(folder), 64, False)
    with processes(settings, uses, plan, str(tmp_path / "logs")) as running:
        pool = RolloutPool(running.fleet, (), str, GroupWeights(running))
        for version, weights in enumerate([FolderWeights(str(folder), settings.deadlines), pool.weights]):
            pool.weights = weights
            pool.sync(version)
            samples = pool.generate(PROMPTS, 2, SamplingSettings(max_tokens=24), 0, version)
            sequences = [sample.token_ids for sample in samples]
            passes = running.groups["actor"].forward_logprobs(sequences, 1.0, "test").result()
            for sample, (logprobs, _) in zip(samples, passes, strict=True):
                assert set(sample.versions) == {version}
                np.testing.assert_allclose(sample.rollout_logprobs, logprobs[4:], atol=1e-4)
