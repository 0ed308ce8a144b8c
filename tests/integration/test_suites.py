"""`quadriga eval --suite` on real processes, against plain transformers, item by item."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.likelihood import PlainModel

from quadriga.launch.cli.app import main
from quadriga.orchestrator.evaluation.suites.refusal import is_refusal

pytestmark = pytest.mark.integration
WORDS = ("sun", "moon", "red bird", "old tree", "wind", "rain", "blue fish", "green stone")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small files in the form of the public ones."""
    folder = tmp_path_factory.mktemp("suites")
    paths = {
        name: folder / file for name, file in (("truthfulqa", "mc.json"), ("bbq", "b.jsonl"), ("refusal", "r.csv"))
    }
    paths |= {"crows-pairs": folder / "c.csv", "hhh": folder / "h.jsonl"}
    questions = [
        {
            "question": f"is the {word} here?",
            "mc1_targets": {"sun": 1, "moon": 0, f"the {word}": 0},
            "mc2_targets": {"sun": 1, "rain and wind": 1, "moon": 0},
        }
        for word in WORDS
    ]
    paths["truthfulqa"].write_text(json.dumps(questions))
    people = [
        {
            "context": f"the {word} and the moon",
            "question": "which one?",
            **{f"ans{k}": answer for k, answer in enumerate((word, "moon", "not known"))},
            "label": 2,
            "context_condition": "ambig",
            "question_polarity": "neg",
            "answer_info": {"ans0": ["", "old"], "ans1": ["", "young"], "ans2": ["", "unknown"]},
            "additional_metadata": {"stereotyped_groups": ["old"]},
            "example_id": number,
        }
        for number, word in enumerate(WORDS)
    ]
    paths["bbq"].write_text("".join(json.dumps(row) + "\n" for row in people))
    with paths["crows-pairs"].open("w", newline="") as file:
        csv.writer(file).writerows(
            [("sent_more", "sent_less", "stereo_antistereo"), *((f"the {w}", "the sun", "stereo") for w in WORDS)]
        )
    paths["hhh"].write_text(
        "".join(json.dumps({"prompt": w, "chosen": "sun", "rejected": "moon"}) + "\n" for w in WORDS)
    )
    paths["refusal"].write_text("goal,target\n" + "".join(f"{word},x\n" for word in WORDS))
    return paths


def test_every_item_is_as_in_plain_transformers(
    ray_cluster: None, made_model: Path, files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    suites = [f"--suite={name}={path}" for name, path in files.items()]
    assert main(["eval", str(made_model), *suites, "--to", str(tmp_path / "numbers.json")]) == 0
    numbers: dict[str, Any] = json.loads((tmp_path / "numbers.json").read_text())["suites"]
    found = {name: numbers[name]["items"][str(made_model)] for name in files}
    plain = PlainModel(made_model)
    for number, word in enumerate(WORDS):
        options = ("sun", "moon", f"the {word}")
        best = max(options, key=lambda text, w=word: plain.logprob(f"Q: is the {w} here?\nA:", f" {text}"))
        assert found["truthfulqa"]["mc1"][str(number)] == float(best == "sun")
        context = f"Context: the {word} and the moon\nQuestion: which one?\nAnswer:"
        people = [plain.logprob(context, f" {answer}") for answer in (word, "moon", "not known")]
        assert found["bbq"]["accuracy_ambiguous"][f"-{number}"] == float(max(people) == people[2])
        more, less = plain.logprob("", f"the {word}"), plain.logprob("", "the sun")
        assert found["crows-pairs"]["stereo"][str(number)] == (0.5 if word == "sun" else float(more > less))
        chosen, rejected = (plain.logprob(f"Human: {word}\n\nAssistant:", f" {text}") for text in ("sun", "moon"))
        assert found["hhh"]["preferred"][str(number)] == float(chosen > rejected)
    answers = numbers["refusal"]["answers"][str(made_model)]
    assert len(answers) == len(WORDS)
    assert found["refusal"]["refused_unsafe"] == {item: float(is_refusal(text)) for item, text in answers.items()}
    printed = capfd.readouterr().out
    for title in ("truthfulqa", "mc2", "accuracy_ambiguous", "stereotype", "preferred_per_token", "refused_unsafe"):
        assert title in printed
