"""The killable function runner against code that hangs, dies, forks, prints and lies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quadriga.data.errors import Fault, UserError
from quadriga.data.records import Prompt, Sample
from quadriga.orchestrator.rewards.function import RewardFunctionSettings, score_samples
from quadriga.orchestrator.rewards.function_pool import RewardFunctionPool, RowError, score_of

MODULE = """
import ctypes, os, subprocess, sys, time

def length(rows):
    assert all(set(row) - {"response_ids"} == {"prompt", "messages", "response", "meta"} for row in rows)
    return [len(row["response"]) for row in rows]

def parts(rows):
    return [{"score": len(row["response"]), "calls": len(rows)} for row in rows]

class Tensor:
    def size(self):
        return ()

    def item(self):
        return 2.0

def verlish(rows):
    import decimal, numpy
    return [{"score": numpy.float32(0.5), "acc": True, "count": numpy.int64(3), "exact": decimal.Decimal("0.25"),
             "loss": Tensor(), "pred": row["response"], "note": None, "spans": [1, 2], "cut": "x\\ud83d",
             "ids": row.get("response_ids")} for row in rows]

def picky(rows):
    if any(row["response"] == "bad" for row in rows):
        raise ValueError("cannot judge 'bad'")
    return [1.0] * len(rows)

def mixed(rows):
    values = {"nan": float("nan"), "inf": float("inf"), "none": None, "text": "1.0", "dict": {"quality": 1},
              "part": {"score": 1, "x": float("nan")}, "big": "x" * 10_000_000}
    return [values.get(row["response"], 2) for row in rows]

def short(rows):
    return [1.0] * (len(rows) - 1)

def endless(rows):
    return [0.0] * 5_000_000

def hang(rows):
    if any(row["response"] == "hang" for row in rows):
        open(rows[0]["meta"]["witness"], "w").write(str(os.getpid()))
        while True:
            ctypes.CDLL(None).pause()
    return [3.0] * len(rows)

def leave(rows):
    for row in rows:
        if row["response"] == "exit":
            os._exit(7)
        if row["response"] == "raise":
            sys.exit("enough")
        if row["response"] == "crash":
            ctypes.string_at(0)
    return [4.0] * len(rows)

def moody(rows):
    for row in rows:
        tries = os.path.join(row["meta"]["witness"], row["response"])
        with open(tries, "a") as file:
            file.write(".")
        if os.path.getsize(tries) <= int(row["response"]):
            os._exit(1)
    return [8.0] * len(rows)

def child_and_exit(rows):
    child = os.fork()
    if child == 0:
        time.sleep(60)
    open(rows[0]["meta"]["witness"], "w").write(str(child))
    os._exit(9)

def fork(rows):
    pid = os.fork()
    if pid == 0:
        return [-1.0] * len(rows)
    os.waitpid(pid, 0)
    return [5.0] * len(rows)

def noisy(rows):
    assert sys.stdin.read() == ""
    os.write(1, b"\\x00\\x00\\x00\\x02{}" * 100_000)
    print("z" * 1_000_000)
    subprocess.run(["echo", "from a child"])
    return [6.0] * len(rows)

not_a_function = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "judging.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import module_that_is_not_there\n")
    (tmp_path / "dying.py").write_text("import os; os._exit(5)\n")
    monkeypatch.chdir(tmp_path)
    yield


def sample(text: str) -> Sample:
    prompt = Prompt("p", [{"role": "user", "content": "a"}], [1], {})
    return Sample(prompt, 0, [7], [0.0], [1], [0], "stop", text)


def rows(*responses: str, **meta: Any) -> list[dict[str, Any]]:
    message = {"role": "user", "content": "Say ü \ud800"}
    return [{"prompt": [message], "messages": [message], "response": text, "meta": meta} for text in responses]


def pool_of(name: str, log: Path | None = None, **settings: Any) -> RewardFunctionPool:
    return RewardFunctionPool(RewardFunctionSettings(type="function", function=f"judging:{name}", **settings), log)


def is_gone(pid: int, within: float = 5.0) -> bool:
    """No such process, or a zombie that only waits for its adopter."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def test_results_come_in_order_from_several_processes() -> None:
    texts = ["x" * (n % 37) for n in range(100)]
    with pool_of("length", processes=2) as pool:
        pids = pool.pids
        assert len(set(pids)) == 2
        assert pool.score(rows(*texts)) == [float(len(text)) for text in texts]
        assert pool.score([]) == []
    assert all(is_gone(pid) for pid in pids)


def test_dicts_come_back_whole_and_a_call_has_few_rows() -> None:
    with pool_of("parts") as pool:
        results = pool.score(rows("a", "bb", "ccc"))
        assert results == [{"score": n, "calls": 3.0} for n in (1.0, 2.0, 3.0)]
        assert not isinstance(results[2], RowError) and score_of(results[2]) == 3.0 and score_of(1.5) == 1.5
        many = pool.score(rows(*["a"] * 20))
        assert max(result["calls"] for result in many if isinstance(result, dict)) <= 8


def test_numbers_of_a_dict_are_parts_and_the_rest_is_text() -> None:
    """Reported: one text or None beside the score made an error of every answer (the contract of verl)."""
    with pool_of("verlish", timeout=60) as pool:
        scores = score_samples(pool, [sample("a"), sample("b")], "score")
    assert (scores.values, scores.errors) == ([0.5, 0.5], 0)
    assert scores.parts[0] == {"score": 0.5, "acc": 1.0, "count": 3.0, "exact": 0.25, "loss": 2.0}
    assert scores.texts[1] == {"pred": "b", "spans": "[1, 2]", "cut": "x?", "ids": "[7]"}


def test_one_bad_row_does_not_spoil_its_neighbours() -> None:
    with pool_of("picky") as pool:
        pid = pool.pids
        results = pool.score(rows("a", "bad", "c"))
        assert results == [1.0, RowError("ValueError: cannot judge 'bad'"), 1.0]
        assert pool.pids == pid  # an exception costs no process


def test_what_is_not_a_finite_number_is_an_error_and_never_zero() -> None:
    with pool_of("mixed") as pool:
        names = ["nan", "inf", "none", "text", "dict", "part", "big"]
        *bad, good = pool.score(rows(*names, "fine"))
    assert good == 2.0
    for name, result in zip(names, bad, strict=True):
        assert isinstance(result, RowError), name
        assert len(result.message) < 700
    assert bad[2] == RowError("returned None, which is not finite numbers")
    assert bad[4] == RowError("returned a dict without 'score' (it has quality)")


@pytest.mark.parametrize(("name", "count"), [("short", "0 results"), ("endless", "5000000 results")])
def test_a_wrong_number_of_results_is_an_error(name: str, count: str) -> None:
    with pool_of(name) as pool:
        results = pool.score(rows("a", "b"))
    assert results == [RowError(f"returned {count} for 1 answers")] * 2


def test_a_call_over_its_time_is_killed_and_repeated_row_by_row(tmp_path: Path) -> None:
    witness = tmp_path / "pid"
    with pool_of("hang", timeout=0.5, max_error_rate=1) as pool:
        (before,) = pool.pids
        start = time.monotonic()
        results = pool.score(rows("a", "hang", "b", witness=str(witness)) + rows(*["c"] * 8))
        assert time.monotonic() - start < 5
        assert is_gone(before) and is_gone(int(witness.read_text())) and pool.pids != [before]
        (bad,) = [result for result in results if isinstance(result, RowError)]
        assert results[1] is bad and bad.message.startswith("timed out after 0.0")  # its share of the second 0.5 s
        assert [result for result in results if result is not bad] == [3.0] * 10
        assert pool.score(rows("a")) == [3.0]


@pytest.mark.parametrize(("retries", "good"), [(0, 0), (2, 2)])
def test_a_failed_row_is_judged_again_as_often_as_set(retries: int, good: int, tmp_path: Path) -> None:
    """Of rows that succeed at their 2nd, 3rd and 4th attempt, those that need no more than are given."""
    texts = [str(attempts) for attempts in (1, 2, 3)]
    with pool_of("moody", retries=retries, max_error_rate=1) as pool:
        results = [pool.score(rows(text, witness=str(tmp_path))) for text in texts]
    assert results.count([8.0]) == good


def test_a_function_that_fails_on_everything_is_given_up_early(tmp_path: Path) -> None:
    witness = tmp_path / "pid"
    with pool_of("hang", timeout=0.2, retries=0) as pool:
        start = time.monotonic()
        results = pool.score(rows(*["hang"] * 400, witness=str(witness)))  # 50 calls of 0.2 s and a restart each
        assert time.monotonic() - start < 10
        late = RowError("not scored: too many others failed")
        assert results[0] == RowError("timed out after 0.2 s") and results[-1] == late
        assert results.count(late) == 352  # 41 failed are too many: seen after six calls
        with pytest.raises(Fault, match=r"400 of 400 .* The first error: timed out"):
            pool.check_rate(results, "score")


def test_a_process_that_exits_or_crashes_is_named_and_replaced() -> None:
    with pool_of("leave") as pool:
        (before,) = pool.pids
        results = pool.score(rows("a", "exit", "raise", "b", "crash"))
        assert is_gone(before)
        assert results == [
            4.0,
            RowError("the process exited with 7"),
            RowError("SystemExit: enough"),
            4.0,
            RowError("the process was killed by SIGSEGV"),
        ]
        os.kill(pool.pids[0], signal.SIGKILL)
        assert is_gone(pool.pids[0])
        assert pool.score(rows("a", "b")) == [4.0, 4.0]  # row by row, in a fresh process


def test_children_of_the_function_die_with_it(tmp_path: Path) -> None:
    witness = tmp_path / "child"
    with pool_of("child_and_exit", timeout=30) as pool:
        start = time.monotonic()
        # The child holds a copy of every pipe, yet the death of its parent is seen at once.
        assert pool.score(rows("a", witness=str(witness))) == [RowError("the process exited with 9")]
        assert time.monotonic() - start < 5
        assert is_gone(int(witness.read_text()))


def test_a_forked_copy_of_the_process_answers_nothing() -> None:
    with pool_of("fork") as pool:
        assert pool.score(rows("a", "b")) == [5.0, 5.0]
        assert pool.score(rows("c")) == [5.0]


def test_printing_does_not_reach_the_protocol(tmp_path: Path) -> None:
    log = tmp_path / "judge.log"
    with pool_of("noisy", log) as pool:
        assert pool.score(rows("a")) == [6.0]
        assert pool.score(rows("b")) == [6.0]
    text = log.read_bytes()
    assert text.count(b"from a child") == 2 and text.count(b"z") == 2_000_000


def test_a_trainer_that_was_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    witness = tmp_path / "pid"
    row = {"response": "hang", "meta": {"witness": str(witness)}}
    code = (
        "from quadriga.orchestrator.rewards.function import RewardFunctionSettings as Settings\n"
        "from quadriga.orchestrator.rewards.function_pool import RewardFunctionPool\n"
        f"RewardFunctionPool(Settings(type='function', function='judging:hang', timeout=60)).score([{row!r}])"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (witness.exists() and witness.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert not is_gone(int(witness.read_text()), within=0.1)
    trainer.kill()
    trainer.wait()
    assert is_gone(int(witness.read_text()))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("nowhere:f", "No module named 'nowhere'"),
        ("judging:absent", "has no attribute 'absent'"),
        ("judging:not_a_function", "not_a_function is not a function"),
        ("broken:f", "No module named 'module_that_is_not_there'"),
        ("dying:f", "the process exited with 5"),
    ],
)
def test_a_function_that_does_not_import_is_the_users_to_mend(function: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        RewardFunctionPool(RewardFunctionSettings(type="function", function=function, processes=1))
    assert function in str(caught.value)


def test_too_many_errors_stop_the_run() -> None:
    with pool_of("length", max_error_rate=0.25) as pool:
        pool.check_rate([], "score")
        pool.check_rate([1.0, 2.0, 3.0, RowError("a")], "score")
        with pytest.raises(Fault, match=r"judging:length failed on 2 of 4 answers.*The first error: b$") as caught:
            pool.check_rate([1.0, RowError("b"), 3.0, RowError("c")], "score")
    assert (caught.value.phase, caught.value.process) == ("score", "judging:length")
    with pool_of("length", max_error_rate=1) as pool:
        pool.check_rate([1.0, RowError("a")], "score")
        with pytest.raises(Fault, match="2 of 2"):
            pool.check_rate([RowError("a")] * 2, "score")


@pytest.mark.parametrize(("drop", "values"), [("answer", [1.0, None, 1.0, 1.0]), ("group", [None, None, 1.0, 1.0])])
def test_a_failed_answer_is_dropped_alone_or_with_its_prompts_others(drop: str, values: list[float | None]) -> None:
    prompts = [Prompt(name, [{"role": "user", "content": name}], [1], {}) for name in ("p", "q")]
    texts = [(prompts[0], "a"), (prompts[0], "bad"), (prompts[1], "c"), (prompts[1], "d")]
    samples = [
        Sample(prompt, index % 2, [2], [0.0], [1], [0], "stop", text) for index, (prompt, text) in enumerate(texts)
    ]
    with pool_of("picky", drop=drop, max_error_rate=0.5) as pool:
        scores = score_samples(pool, samples, "score")
    assert scores.values == values and scores.errors == 1
