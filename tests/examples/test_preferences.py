"""Reward models on real people's choices: pairs (hh-rlhf) and rankings of two to nine answers (oasst)."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.corpora import needs
from helpers.example_measures import rows

from quadriga.orchestrator.tracking.tracker import read_metrics

HH = "quadriga run configs/examples/hh-rlhf/pipeline.yaml"
OASST = "quadriga run configs/examples/oasst/reward.yaml"
REAL_START = "model.path=corpora/stories260K/hf"
"""A real pre-trained model of 260,032 parameters: quick to start from where nothing is to be learned."""
FEW_STEPS = ["total_steps=2", "batch_size=4", "cluster.reward.threads=1"]
TOO_LONG = "prompt longer than the context"
SAME_WHEN_CUT = "two answers are the same (within `max_tokens`)"


@pytest.mark.integration
@needs("hh-rlhf", "stories260K")
def test_what_the_pairs_hold_is_read_or_listed_with_its_reason(
    ray_cluster: None, in_clone: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Equal answers, empty ones, prompts too long: each listed row is what its reason says, and none is missed."""
    from quadriga.launch.cli.app import main

    config = ["run", "configs/examples/hh-rlhf/reward.yaml", REAL_START, "run_dir=runs/hh-quick"]
    short = [*FEW_STEPS, "data.heldout_fraction=0.005", "data.max_tokens=256"]
    assert main([*config, *short, "data.on_bad_row=error"]) == 2
    assert "base.test.jsonl.gz, line " in capfd.readouterr().err.replace("\n", "")
    assert main([*config, *short]) == 0, capfd.readouterr().err

    listed = {}
    for line in (in_clone / "runs/hh-quick/logs/skipped-rows.txt").read_text().splitlines():
        place, _, reason = line.partition(": ")
        file, _, number = place.rpartition(", line ")
        listed[Path(file).name, int(number)] = reason
    equal: set[tuple[str, int]] = set()
    empty: dict[str, set[tuple[str, int]]] = {"chosen": set(), "rejected": set()}
    total = 0
    for file in sorted((in_clone / "corpora/hh-rlhf").glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row, total = json.loads(line), total + 1
                if row["chosen"] == row["rejected"]:
                    equal.add((file.name, number))
                else:
                    for name, places in empty.items():
                        if not row[name].rsplit("\n\nAssistant:", 1)[1].strip():
                            places.add((file.name, number))
    assert total == 4666 and len(equal) == 2
    reasons = {
        "chosen and rejected are the same": equal,
        "the answer of chosen is empty": empty["chosen"],
        "the answer of rejected is empty": empty["rejected"],
    }
    for reason, rows_with_it in reasons.items():
        assert {place for place, given in listed.items() if given == reason} == rows_with_it
    others = {given for given in listed.values() if given not in reasons}
    assert others and all(given.startswith((TOO_LONG, SAME_WHEN_CUT)) for given in others)

    last = read_metrics(in_clone / "runs/hh-quick/metrics.jsonl")[-1]
    assert last["eval/accuracy_low"] < last["eval/accuracy"] < last["eval/accuracy_high"]
    assert 0 < last["eval/pairs"] < 0.02 * total


@pytest.mark.integration
@needs("oasst-ranked", "stories260K")
def test_rankings_of_many_answers_give_all_their_pairs(ray_cluster: None, in_clone: Path) -> None:
    """C(K, 2) pairs of each prompt that is held out."""
    from quadriga.launch.cli.app import main

    kept = in_clone / "runs/oasst-some.jsonl"
    kept.parent.mkdir(exist_ok=True)
    ranked = rows(in_clone / "corpora/oasst-ranked/ranked.jsonl")
    some = [row for row in ranked if sum(len(m["content"].encode()) for m in row["messages"]) < 400][:40]  # all fit
    kept.write_text("".join(json.dumps(row) + "\n" for row in some))
    data = [f"data.train={kept}", f"data.heldout=[{kept}]", "data.heldout_fraction=0", "data.max_tokens=512"]
    more = [REAL_START, "run_dir=runs/oasst-quick", *FEW_STEPS, "data.on_bad_row=error"]
    assert main(["run", "configs/examples/oasst/reward.yaml", *data, *more]) == 0
    last = read_metrics(in_clone / "runs/oasst-quick/metrics.jsonl")[-1]
    assert last["eval/pairs"] == sum(math.comb(len(row["responses"]), 2) for row in some)
    assert max(len(row["responses"]) for row in some) > 2


@pytest.mark.slow
@needs("hh-rlhf", "oasst-ranked")
def test_training_loss_falls_and_held_out_accuracy_has_its_interval(
    ray_cluster: None, in_clone: Path, documented: Callable[..., None]
) -> None:
    """At this size little is learned from such data: the accuracy is reported, not asked for."""
    documented(HH)
    documented(OASST)
    for run in ("hh-rlhf/round-0/pretrain", "hh-rlhf/round-0/sft", "hh-rlhf/round-0/reward", "oasst-reward"):
        metrics = read_metrics(in_clone / "runs" / run / "metrics.jsonl")
        losses = [row["train/loss"] for row in metrics]
        part = len(losses) // 4
        start, end = (sum(some) / part for some in (losses[:part], losses[-part:]))
        print(f"\n{run}: loss of the first quarter {start:.3f}, of the last {end:.3f}")
        assert end < start
        if run.endswith("reward"):
            last = metrics[-1]
            low, high = last["eval/accuracy_low"], last["eval/accuracy_high"]
            print(f"  held-out accuracy {last['eval/accuracy']:.3f} [{low:.3f}, {high:.3f}]")
            assert low < last["eval/accuracy"] < high
