"""Changes of a config that alter training."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from quadriga.data.loading.source_digest import SourceDigest
from quadriga.data.settings import Settings, Source
from quadriga.orchestrator.config_changes import ABSENT, altering_changes, data_changes, in_this_version, refused

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


def test_keys_of_one_config_only_are_changes() -> None:
    """Reported: an added source, `kl.adaptive: null -> {...}` and the like passed silently."""
    added = {"train": [{"path": "x.jsonl"}, {"path": "y.jsonl"}]}
    assert changed(data=added) == {"data.train.1": (ABSENT, {"path": "y.jsonl"})}
    assert altering_changes({**BEFORE, "data": added}, BEFORE) == {"data.train.1": ({"path": "y.jsonl"}, ABSENT)}
    assert changed(run_dir=None, critic={"path": "a"}) == {"critic": (ABSENT, {"path": "a"})}
    assert altering_changes({"kl": {"adaptive": None}}, {"kl": {"adaptive": {"target": 6.0}}}) == {
        "kl.adaptive": (None, {"target": 6.0})
    }
    assert altering_changes({"columns": {}}, {"columns": {"prompt": "q"}}) == {"columns.prompt": (ABSENT, "q")}
    deepspeed = BEFORE["cluster"] | {"deepspeed": {"zero_optimization": {"stage": 1}}}  # type: ignore[operator]
    assert list(changed(cluster=deepspeed)) == ["cluster.deepspeed.zero_optimization"]


class Inner(Settings):
    """A section with a key that earlier versions did not have."""

    old: int = 1
    new: int = 2


class Stage(Settings):
    """A stage with such a section, in a list too."""

    inner: Inner = Inner()
    many: list[Inner] = []
    maybe: Inner | None = None


def test_keys_of_another_version_are_not_changes() -> None:
    before = {"inner": {"old": 3, "gone": 4}, "many": [{"old": 5, "gone": 6}], "gone": {"a": 7}, "maybe": {"gone": 8}}
    now = in_this_version(before, Stage)
    assert now == Stage(inner=Inner(old=3), many=[Inner(old=5)], maybe=Inner()).model_dump(mode="json")
    assert before["inner"] == {"old": 3, "gone": 4}


def test_a_config_that_is_not_valid_any_more_stays_as_it_is() -> None:
    before = {"inner": {"old": "text", "gone": 1}}
    assert in_this_version(before, Stage) == before


def test_rows_that_differ_are_described(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    lines = [f'{{"text": "{n}"}}\n' for n in range(4)]

    def digest(kept: list[str], earlier: int | None = None) -> SourceDigest:
        file.write_text("".join(kept))
        return SourceDigest.read(Source(path=str(file)), earlier)

    before = {"data.train.0": digest(lines[:3]).to_json()}
    for kept, text in (
        (lines, "4 rows, the first 3 of them the same"),
        (lines[:2], "2 rows, with other content"),
        (lines[1:], "3 rows, with other content"),
        (lines[::-1], "4 rows, with other content"),
    ):
        found = data_changes(before, {"data.train.0": digest(kept, 3)}, [])
        assert {key: (repr(old), repr(new)) for key, (old, new) in found.items()} == {"data.train.0": ("3 rows", text)}
    other = {"data.train.0": digest(lines)}
    assert data_changes(before, other, ["data.train.0.path"]) == {}
    assert data_changes(before, {"data.train.0": digest(lines[:3])}, []) == {}
    assert data_changes(before, {"data.heldout.0": digest(lines)}, []) == {}


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


@given(st.dictionaries(names, trees, max_size=4), st.dictionaries(names, trees, max_size=4))
def test_configs_that_differ_have_changes(one: dict[str, object], other: dict[str, object]) -> None:
    assert bool(altering_changes(one, other)) == (one != other)
