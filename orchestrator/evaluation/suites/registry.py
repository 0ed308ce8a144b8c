"""The suites by the name that `--suite NAME=PATH` gives."""

from quadriga.data.registry import Registry
from quadriga.orchestrator.evaluation.suites.base import Suite
from quadriga.orchestrator.evaluation.suites.bbq import BBQ
from quadriga.orchestrator.evaluation.suites.crows_pairs import CrowsPairs
from quadriga.orchestrator.evaluation.suites.hhh import HHH
from quadriga.orchestrator.evaluation.suites.refusal import RefusalSuite
from quadriga.orchestrator.evaluation.suites.truthfulqa import TruthfulQA

SUITES: Registry[type[Suite]] = Registry(
    "a suite",
    Suite,
    {"truthfulqa": TruthfulQA, "bbq": BBQ, "crows-pairs": CrowsPairs, "refusal": RefusalSuite, "hhh": HHH},
)
