"""A template that reads the clock reads the time of the run."""

from datetime import datetime
from pathlib import Path

from helpers.chat_families import FAMILIES, LLAMA3, LLAMA32
from helpers.chat_tokens import encode_prompt

from quadriga.data.tokens import clock

ASK = [{"role": "user", "content": "Which day is it?"}]
DAY, LATER = datetime(2024, 2, 29, 23, 59), datetime(2025, 1, 1)


def test_the_time_is_frozen_inside_a_block() -> None:
    with clock.frozen_at(DAY):
        assert clock.strftime_now("%d %b %Y %H:%M") == "29 Feb 2024 23:59"
    assert clock.strftime_now("%Y-%m-%d") == datetime.now().strftime("%Y-%m-%d")


def test_a_stage_keeps_the_time_of_its_pipeline() -> None:
    with clock.frozen_at(DAY):
        with clock.frozen_at(LATER):
            assert clock.strftime_now("%Y") == "2024"
        assert clock.strftime_now("%Y") == "2024"


def test_llama_32_writes_the_frozen_date(tmp_path: Path) -> None:
    tokenizer = FAMILIES["llama-3.1"].tokenizer(tmp_path)
    assert LLAMA32 != LLAMA3
    fixed = tokenizer.decode(encode_prompt(tokenizer, ASK))
    tokenizer.chat_template = LLAMA32
    with clock.frozen_at(DAY):
        assert tokenizer.decode(encode_prompt(tokenizer, ASK)) == fixed.replace("26 Jul 2024", "29 Feb 2024")
