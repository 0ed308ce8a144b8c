"""The sentiment example: the content of each file, and that held-out reviews are in no other."""

import json
from pathlib import Path

import pytest

from quadriga.data.errors import UserError
from quadriga.data.examples import OPENING_WORDS, SHORTEST_REVIEW, sentiment


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple[str, str]], Path]:
    """Four hundred different reviews of 5 to 14 words, and the example made from them."""
    folder = tmp_path_factory.mktemp("sentiment")
    reviews = []
    for n in range(400):
        label = "pos" if n % 2 else "neg"
        reviews.append((" ".join(f"{label}{n}w{word}" for word in range(5 + n % 10)), label))
    source = folder / "reviews.jsonl"
    source.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in reviews))
    counts = sentiment(source, folder / "out")
    assert counts == {name: len(read(folder / "out", name)) for name in counts}
    return reviews, folder / "out"


def read(folder: Path, name: str) -> list[dict[str, str]]:
    """Read the rows of one file."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def owner(text: str) -> str:
    """Return the review from which a made-up word comes."""
    return text.split()[0].split("w")[0]


def test_halves_and_held_out_reviews_share_nothing(made: tuple[list[tuple[str, str]], Path]) -> None:
    """Every review is in the judge's half, held out, or trained on: in exactly one of the three."""
    reviews, out = made
    judge = {owner(row["text"]) for row in read(out, "judge")}
    texts = {owner(row["text"]) for row in read(out, "texts")}
    heldout = {owner(row["prompt"]) for row in read(out, "heldout_prompts")}
    assert len(judge) == 200
    assert len(texts) == 160
    assert not judge & texts
    assert not heldout & (judge | texts)
    assert judge | texts | heldout <= {owner(text) for text, _ in reviews}
    for name, whole in (("demonstrations", texts), ("prompts", texts), ("heldout_demonstrations", heldout)):
        assert {owner(row["prompt"]) for row in read(out, name)} <= whole
    for name, whole in (("pairs", texts), ("heldout_pairs", heldout)):
        for row in read(out, name):
            assert {owner(row[column]) for column in row} <= whole


def test_demonstrations_are_whole_reviews(made: tuple[list[tuple[str, str]], Path]) -> None:
    """Opening and continuation make the review again; short ones are left out."""
    reviews, out = made
    known = {text for text, _ in reviews}
    for row in read(out, "demonstrations") + read(out, "heldout_demonstrations"):
        text = f"{row['prompt']} {row['completion']}"
        assert text in known
        assert len(text.split()) >= SHORTEST_REVIEW
        assert len(row["prompt"].split()) == OPENING_WORDS


def test_openings_of_pairs_do_not_predict_the_preference(made: tuple[list[tuple[str, str]], Path]) -> None:
    """Half of the openings belong to the chosen continuation, half to the rejected one."""
    _, out = made
    pairs = read(out, "pairs")
    assert all(owner(row["chosen"]).startswith("pos") and owner(row["rejected"]).startswith("neg") for row in pairs)
    own = [owner(row["prompt"]) == owner(row["chosen"]) for row in pairs]
    assert all(mine or owner(row["prompt"]) == owner(row["rejected"]) for mine, row in zip(own, pairs, strict=True))
    assert abs(sum(own) / len(own) - 0.5) < 0.02
    assert len({(row["chosen"], row["rejected"]) for row in pairs}) > 0.95 * len(pairs)
    held = read(out, "heldout_pairs")
    assert len({row["chosen"] for row in held}) == len({row["rejected"] for row in held}) == len(held)


def test_files_depend_on_the_seed_alone(made: tuple[list[tuple[str, str]], Path], tmp_path: Path) -> None:
    """The same seed gives the same files, another seed other halves."""
    _, out = made
    sentiment(out.parent / "reviews.jsonl", tmp_path / "a")
    sentiment(out.parent / "reviews.jsonl", tmp_path / "b", seed=1)
    for file in out.iterdir():
        assert (tmp_path / "a" / file.name).read_text() == file.read_text()
    assert read(tmp_path / "b", "judge") != read(out, "judge")


@pytest.mark.parametrize("line", ['{"text": "no label"}', '{"text": "x", "label": "good"}', "no JSON"])
def test_rows_that_are_not_reviews(tmp_path: Path, line: str) -> None:
    """The error has file and line."""
    (tmp_path / "bad.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"bad\.jsonl, line 1"):
        sentiment(tmp_path / "bad.jsonl", tmp_path / "out")
