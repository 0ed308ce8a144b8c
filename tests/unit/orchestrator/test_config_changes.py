"""Changes of a config that alter training."""

from hypothesis import given
from hypothesis import strategies as st

from quadriga.orchestrator.config_changes import altering_changes, flat, refused

BEFORE = {
    "stage": "sft",
    "name": "a",
    "run_dir": None,
    "total_steps": 10,
    "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
    "data": {"train": [{"path": "x.jsonl"}]},
    "checkpoint": {"every_steps": 5},
    "cluster": {"dtype": "float32", "actor": {"ranks": 2}, "deepspeed": {}},
}


def changed(**fields: object) -> dict[str, tuple[object, object]]:
    """Return the altering changes of a config with these fields."""
    return altering_changes(BEFORE, {**BEFORE, **fields})


def test_settings_of_where_a_run_runs_may_change() -> None:
    cluster = {"dtype": "float32", "actor": {"ranks": 8}, "deepspeed": {}}
    assert changed(name="b", run_dir="/elsewhere", checkpoint={"every_steps": 1}, cluster=cluster) == {}


def test_settings_that_alter_training_are_named() -> None:
    optimizer = {"lr": 1e-4, "betas": [0.9, 0.999]}
    assert changed(total_steps=20, optimizer=optimizer) == {
        "optimizer.betas.1": (0.95, 0.999),
        "optimizer.lr": (1e-3, 1e-4),
        "total_steps": (10, 20),
    }
    assert changed(data={"train": [{"path": "y.jsonl"}]}) == {"data.train.0.path": ("x.jsonl", "y.jsonl")}
    cluster = {"dtype": "bfloat16", "actor": {"ranks": 2}, "deepspeed": {}}
    assert changed(cluster=cluster) == {"cluster.dtype": ("float32", "bfloat16")}


def test_keys_of_another_version_are_not_changes() -> None:
    assert changed(new_setting=3) == {}


def test_a_key_allows_all_below_it() -> None:
    changes = changed(total_steps=20, optimizer={"lr": 1e-4, "betas": [0.9, 0.999]})
    assert refused(changes, ["optimizer"]) == {"total_steps": (10, 20)}
    assert refused(changes, ["optimizer.lr", "total_steps"]) == {"optimizer.betas.1": (0.95, 0.999)}
    assert refused(changes, ["opt"]).keys() == changes.keys()


names = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(st.integers(0, 3), lambda t: st.dictionaries(names, t, max_size=3) | st.lists(t, max_size=3))


@given(st.dictionaries(names, trees, max_size=4))
def test_a_config_does_not_differ_from_itself(tree: dict[str, object]) -> None:
    assert altering_changes(tree, tree) == {}
    assert len(flat(tree)) == len(set(flat(tree)))
