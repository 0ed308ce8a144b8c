"""The advantage estimators by the name in `algorithm.estimator.type`."""

from quadriga.data.registry import Registry
from quadriga.orchestrator.algorithms.base import Estimator
from quadriga.orchestrator.algorithms.dr_grpo import DrGrpo
from quadriga.orchestrator.algorithms.gae import Gae
from quadriga.orchestrator.algorithms.grpo import Grpo
from quadriga.orchestrator.algorithms.reinforce_plus_plus import ReinforcePlusPlus, ReinforcePlusPlusBaseline
from quadriga.orchestrator.algorithms.rloo import Rloo

ESTIMATORS: Registry[type[Estimator]] = Registry(
    "an advantage estimator",
    Estimator,
    {
        "gae": Gae,
        "grpo": Grpo,
        "dr_grpo": DrGrpo,
        "rloo": Rloo,
        "reinforce_plus_plus": ReinforcePlusPlus,
        "reinforce_plus_plus_baseline": ReinforcePlusPlusBaseline,
    },
)
