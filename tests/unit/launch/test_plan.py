"""Plans of published shapes against hand computations, what fits and what would, the JSON, and bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from quadriga.launch.cli.app import main
from quadriga.launch.config.load import load_config
from quadriga.launch.plan.plans import Plan, as_json, make_plans
from quadriga.launch.plan.shapes import ModelShape, _built, shape_of

GB80 = 80_000_000_000
P8, P70 = 8_030_261_248, 70_553_706_496
"""Parameters of Llama 3.1 8B and 70B, as published."""

PPO = {
    "stage": "ppo",
    "name": "helpful",
    "policy": "models/llama-3.1-8b",
    "reward": {"type": "model", "path": "models/not-there-yet"},
    "prompts": {"train": "prompts.jsonl", "max_tokens": 512},
    "sampling": {"max_tokens": 512},
    "cluster": {
        "device": "cuda",
        "dtype": "bfloat16",
        "placement": "colocate",
        **{role: {"ranks": 8, "zero_stage": 3} for role in ("actor", "critic", "reference", "reward")},
        "rollout": {"workers": 8, "kv_cache_bytes": 8 << 30, "enforce_eager": False, "prefix_caching": True},
        "train_tokens": 2048,
        "forward_tokens": 16384,
        "persistence_threshold": 100000,
        "bucket_bytes": 1 << 30,
    },
}
SFT = {
    "stage": "sft",
    "name": "tune",
    "model": "models/llama-3.1-8b",
    "data": {"train": "rows.jsonl", "max_tokens": 1024},
    "cluster": {"device": "cuda", "dtype": "bfloat16", "train_tokens": 1024, "forward_tokens": 1024},
}


@pytest.fixture(autouse=True)
def no_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this machine measured must not change a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture
def planned(write: Any) -> Any:
    """A config and overrides -> its only plan."""

    def plan(config: dict[str, Any], *overrides: str) -> Plan:
        return make_plans(load_config(write(config), overrides), GB80)[0]

    return plan


def preset(name: str) -> ModelShape:
    """The shape of a preset of this package."""
    import yaml
    from transformers import AutoConfig

    from quadriga.launch.config.load import PRESETS

    fields = yaml.safe_load((PRESETS / f"models/{name}.yaml").read_text())["shape"]
    return shape_of(AutoConfig.for_model(**fields))


def test_parameters_of_published_models() -> None:
    assert preset("llama-3.1-8b").parameters() == P8
    assert preset("llama-3.1-70b").parameters() == P70
    assert preset("llama-3.2-1b").parameters() == 1_235_814_400
    # Brown et al. 2020 with 2048 positions: GPT-2's 124,439,808 and 1024 more rows of 768.
    assert preset("gpt-125m").parameters() == 124_439_808 + 1024 * 768
    # The head's 128256 x 4096 go, a row and a bias come.
    assert preset("llama-3.1-8b").parameters("scalar") == P8 - 128256 * 4096 + 4096 + 1


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gpt2"])
def test_counted_as_built(family: str) -> None:
    """Formulas give what torch counts in a model on its meta device."""
    from transformers import AutoConfig

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 512}
    more: dict[str, Any] = {"tie_word_embeddings": family in ("gpt2", "qwen3")}
    if family != "gpt2":
        more |= {"intermediate_size": 160, "num_key_value_heads": 2, "head_dim": 16}
    if family == "llama":
        more |= {"attention_bias": True, "mlp_bias": True}
    config = AutoConfig.for_model(family, **sizes, **more)
    shape = shape_of(config)
    assert shape.parameters() == _built(shape, config).parameters()


def test_memory_of_8b_by_hand(planned: Any) -> None:
    """Eight ranks of ZeRO-3 in bfloat16: 2 + 4 + 4 + 8 bytes a parameter, divided by 8."""
    plan = planned(PPO)
    actor = plan.layout.footprints["actor"]
    share = P8 // 8
    assert actor.held["weights"] == 2 * share
    assert actor.held["master"] == actor.held["gradients"] == 4 * share
    assert actor.held["optimizer"] == 8 * share
    assert actor.held["buffers"] == 2 * 500_000_000  # DeepSpeed's reduce_bucket_size
    reference = plan.layout.footprints["reference"]
    assert reference.held["weights"] == 2 * share and "optimizer" not in reference.held
    rollout = plan.layout.footprints["rollout"]
    assert rollout.held["weights"] == 2 * P8 and rollout.held["KV cache"] == 8 << 30
    # A token and layer, width 4096, MLP 14336, keys and values of 8 heads of 128. Two norms in float32: 4 + 2 + 2 bytes
    # each; q, output and the projection's input, keys and values; gate, SiLU, up, product.
    token = 32 * (2 * 4096 * 8 + (3 * 4096 + 2 * 1024 + 4 * 14336) * 2) + 4096 * 10  # and the last norm
    assert actor.phases["update"]["activations"] == 2048 * token
    # Gradient of the head: float32 sum, one product, the sum in bfloat16; a chunk of logits twice in float32, once not.
    assert actor.phases["update"]["head"] == 128256 * 4096 * (4 + 2) + 256 * 128256 * (4 + 4 + 2)
    assert actor.phases["sync"]["transfer"] == 1 << 30  # the preset's bucket
    total = sum(footprint.peak for footprint in plan.layout.footprints.values())
    gpu = plan.layout.devices[0]
    assert (gpu.kind, gpu.count, gpu.bytes) == ("gpu", 8, total)


def test_memory_of_70b_by_hand(planned: Any) -> None:
    """Offload takes states from the GPU to its host; reference and reward model are divided by 4, engines by 4."""
    plan = planned(PPO, "policy=models/llama-3.1-70b", "cluster=clusters/h100x32-70b")
    actor, reference = plan.layout.footprints["actor"], plan.layout.footprints["reference"]
    assert actor.held["weights"] == 2 * P70 // 8 and "master" not in actor.held
    bucket = 2 << 30
    assert sum(actor.host.values()) == 16 * P70 // 8 + 2 * bucket
    assert reference.held["weights"] == plan.layout.footprints["rollout"].held["weights"] == 2 * P70 // 4
    assert plan.layout.gpus == 8 + 8 + 4 + 4 + 2 * 4
    # 141 GB of a host's memory for each of its 8 actor ranks, libraries, and what a sync packs.
    host = next(device for device in plan.layout.devices if device.kind == "host")
    assert host.count == 4 and host.bytes == 16 * P70 + 8 * (2 * bucket + (3 << 30))


def test_smallest_cluster_by_hand(planned: Any) -> None:
    """8B on one GPU does not fit; the bytes of n ranks say how many do."""
    plan = planned(SFT)
    assert not plan.fits

    def need(ranks: int) -> float:
        """18 bytes a parameter divided, DeepSpeed's bucket, the context, and the larger of backward and optimizer."""
        token = 32 * (2 * 4096 * 8 + (3 * 4096 + 2 * 1024 + 4 * 14336) * 2) + 4096 * 10
        gathered = 2 * (128256 * 4096 + 50_000_000 + 500_000_000)
        head = 128256 * 4096 * 6 + 256 * 128256 * 10
        reduction = 2 * 500_000_000 + 4 * 500_000_000 / ranks
        backward = gathered + 1024 * token + head + reduction
        optimizer = 12 * min(P8 / ranks, 1e9)
        return 18 * P8 / ranks + 1e9 + 2**30 + max(backward, optimizer)

    least = next(ranks for ranks in range(1, 100) if need(ranks) <= GB80)
    assert least == 3  # 145 GB of states on two GPUs leave no room for 12 bytes of 1e9 parameters' step
    spread = next(each for each in plan.suggestions if each.gpus > 1)
    assert spread.gpus == least
    assert spread.overrides == ["cluster.actor.ranks=3"]
    assert planned(SFT, *spread.overrides).fits
    assert not planned(SFT, "cluster.actor.ranks=2").fits


def test_what_is_suggested_fits(planned: Any) -> None:
    plan = planned(PPO)
    assert not plan.fits and {suggestion.gpus for suggestion in plan.suggestions} > {8}
    for suggestion in plan.suggestions:
        assert planned(PPO, *suggestion.overrides).fits, suggestion


def test_what_fits_gets_no_advice(planned: Any) -> None:
    plan = planned(SFT, "cluster.actor.ranks=8")
    assert plan.fits and plan.suggestions == []


def test_activations_that_no_cluster_divides(planned: Any) -> None:
    plan = planned(SFT, "model=models/llama-3.1-70b", "data.max_tokens=8192")
    assert not plan.fits and plan.suggestions == []


def gpus_of(plan: Plan) -> list[tuple[int, list[str]]]:
    return [(device.count, device.roles) for device in plan.layout.devices if device.kind == "gpu"]


def test_processes_of_lists_share_their_gpus(planned: Any) -> None:
    plan = planned(PPO, "cluster.placement=[[actor, critic, reference, reward], [rollout]]")
    assert gpus_of(plan) == [(8, ["actor", "critic", "reference", "reward"]), (8, ["rollout"])]


def test_ranks_with_a_part_of_a_gpu_share_one(planned: Any) -> None:
    plan = planned(SFT, "cluster.actor.ranks=3", "cluster.actor.gpus=0.5")
    assert plan.layout.gpus == 2
    peak = plan.layout.footprints["actor"].peak
    assert [device.bytes for device in plan.layout.devices if device.kind == "gpu"] == [2 * peak, peak]


def test_roles_spread_over_nodes_have_hosts_of_their_own(planned: Any) -> None:
    """As the run would slot them: the actor's four hosts hold two ranks each, and engines are on a fifth."""
    spread = ["placement=[[actor, critic, reference, reward], [rollout]]", "actor.nodes=4", "rollout.workers=3"]
    plan = planned(PPO, *(f"cluster.{override}" for override in spread), "cluster.actor.offload=optimizer")
    host = next(device for device in plan.layout.devices if device.kind == "host")
    assert host.count == 5 and plan.layout.gpus == 11
    held = {role: sum(footprint.host.values()) + (3 << 30) for role, footprint in plan.layout.footprints.items()}
    pair = sum(held[role] for role in ("actor", "critic", "reference", "reward"))
    assert host.bytes == 2 * pair > 3 * held["rollout"]


@pytest.mark.parametrize(
    ("where", "hosts"),
    [
        ("slurm={nodes: 4, cpus: 32, gpus: 4}", 4),
        ("kubernetes={image: quadriga, claim: shared, nodes: 8, worker: {cpus: 8, memory: 64Gi, gpus: 2}}", 8),
        ("slurm=null", 2),  # of eight GPUs each
    ],
)
def test_nodes_are_as_large_as_the_config_says(where: str, hosts: int, planned: Any) -> None:
    """Eight GPUs with a rank of every model, and eight with an engine."""
    plan = planned(PPO, f"cluster.{where}", "cluster.placement=[[actor, critic, reference, reward], [rollout]]")
    assert plan.layout.gpus == 16
    assert [device.count for device in plan.layout.devices if device.kind == "host"] == [hosts]


def test_a_placement_that_no_cluster_can_give(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What `run` would refuse is not planned."""
    assert main(["plan", str(write(PPO)), "cluster.rollout.tensor_parallel=2", "cluster.rollout.workers=4"]) == 2
    assert "takes 2 GPUs and so cannot share one" in capsys.readouterr().err


def test_seconds_of_a_known_gpu(planned: Any) -> None:
    """An update of 8 x 1024 tokens on 8 H100: 6 operations a parameter and token at 40 % of 989 TFLOP/s, at least."""
    plan = planned(SFT, "cluster.actor.ranks=8", "batch_size=8")
    least = 6 * P8 * 1024 / (0.4 * 989e12)
    assert plan.seconds is not None and least < plan.seconds.step < 5 * least
    assert "published peaks of an H100" in plan.basis


def test_models_on_one_gpu_take_turns(planned: Any) -> None:
    """Four equal models read the same answers: on GPUs of their own at once, on shared ones one after the other."""
    sharing = "cluster.placement=[[actor, critic, reference, reward], [rollout]]"
    shared, colocated, separate = planned(PPO, sharing), planned(PPO), planned(PPO, "cluster.placement=separate")
    phases = [plan.seconds.phases for plan in (shared, colocated, separate)]
    assert phases[0]["forward"] == phases[1]["forward"] and phases[0]["update"] == phases[1]["update"]
    assert 3.5 < phases[0]["forward"] / phases[2]["forward"] < 4  # two of the four have no vocabulary to multiply with
    assert 1.8 < phases[0]["update"] / phases[2]["update"] < 2


def test_no_seconds_without_calibration(planned: Any) -> None:
    plan = planned(SFT, "cluster.device=cpu", "cluster.dtype=float32")
    assert plan.seconds is None and "quadriga plan --calibrate" in plan.basis


def test_json_schema(planned: Any) -> None:
    """Keys that programs rely on."""
    plain = json.loads(json.dumps(as_json([planned(PPO)], GB80)))
    assert set(plain) == {"schema", "gpu_memory_bytes", "fits", "stages"} and plain["schema"] == 1
    (stage,) = plain["stages"]
    assert set(stage) == {
        "name",
        "stage",
        "device",
        "gpus",
        "fits",
        "roles",
        "devices",
        "suggestions",
        "seconds",
        "seconds_from",
        "assumed",
    }
    assert set(stage["roles"]) == {"actor", "critic", "reference", "reward", "rollout"}
    common = {"parameters", "trained", "processes", "held_bytes", "phase_bytes", "host_bytes", "peak_bytes"}
    assert set(stage["roles"]["actor"]) == common | {"zero_stage", "offload"}
    assert set(stage["roles"]["rollout"]) == common | {"tensor_parallel"}
    assert set(stage["devices"][0]) == {"kind", "count", "roles", "bytes"}
    assert set(stage["suggestions"][0]) == {"gpus", "overrides"}
    assert set(stage["seconds"]) == {"generate", "forward", "update", "sync", "step"}


def test_pipelines_get_a_table_each(capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[3]
    assert main(["plan", str(root / "configs/assistant/pipeline.yaml")]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name} ({name}, float32)" in printed for name in ("pretrain", "sft", "rank", "reward", "ppo"))
    assert "557,696" in printed and "No seconds" in printed


def test_json_on_the_command_line(write: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(write(SFT)), "--json", "--gpu-memory", "40"]) == 0
    assert json.loads(capsys.readouterr().out)["gpu_memory_bytes"] == 40_000_000_000


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model=models/llama-3.1-9b"], "llama-3.1-9b"),
        (["model={path: nowhere}"], "nowhere is no model: it has no config.json"),
        (["model={shape: {model_type: t5}}"], "cannot be planned"),
        (["total_stps=3"], "did you mean `total_steps`"),
    ],
)
def test_bad_input(write: Any, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str) -> None:
    assert main(["plan", str(write(SFT)), *overrides]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.startswith("Error: ") and said in error


def test_nothing_to_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert "Name a config to plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "cluster", "tokens"),
    [("llama-3.1-8b", "h100x8-8b", 2048), ("llama-3.2-1b", "h100x1-1b", 2048), ("llama-3.1-70b", "h100x32-70b", 1024)],
)
def test_presets_hold_what_they_say(planned: Any, model: str, cluster: str, tokens: int) -> None:
    sizes = (f"prompts.max_tokens={tokens // 2}", f"sampling.max_tokens={tokens // 2}")
    plan = planned(PPO, f"policy=models/{model}", f"cluster=clusters/{cluster}", *sizes)
    assert plan.fits
