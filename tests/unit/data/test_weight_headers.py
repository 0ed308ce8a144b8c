"""What the header of a weight file tells."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from quadriga.data.weight_headers import count_parameters, read_header


def test_parameters_of_all_files_are_counted_without_their_values(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16)}, tmp_path / "one.safetensors")
    save_file({"c": torch.zeros(2, 2, 2)}, tmp_path / "two.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert count_parameters(tmp_path) == 3 * 5 + 7 + 2 * 2 * 2
    header = read_header(tmp_path / "one.safetensors")
    assert {name: entry["shape"] for name, entry in header.items()} == {"a": [3, 5], "b": [7]}
