"""Model folders with weights that are cut, missing, quantised or of another kind: each is refused in a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quadriga.actors.model.heads import ModelSpec, load_model
from quadriga.actors.model.weight_files import check_weight_files
from quadriga.data.errors import UserError

CONFIG = {"model_type": "llama", "vocab_size": 8, "hidden_size": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two shards and their index."""
    places = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({f"w{number}.weight": torch.ones(3, 2)}, tmp_path / name)
        places[f"w{number}.weight"] = name
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def configure(**fields: object) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(CONFIG | fields))


def shard(number: int) -> Callable[[Path], Path]:
    return lambda folder: folder / f"model-0000{number}-of-00002.safetensors"


def cut(folder: Path) -> None:
    file = shard(2)(folder)
    file.write_bytes(file.read_bytes()[:-4])


def adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')


def other_version(folder: Path) -> None:
    save_file({"other.weight": torch.ones(2)}, shard(1)(folder))


def weights_elsewhere(folder: Path) -> None:
    for number in (1, 2):
        shard(number)(folder).unlink()


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (cut, r"model-00002-of-00002.safetensors is cut off or damaged: it has [\d,]+ bytes, and its header describes"),
    (lambda f: shard(2)(f).write_bytes(b"\x00" * 5), "its header cannot be read"),
    (lambda f: shard(2)(f).write_bytes(b"\xff" * 64), "its header cannot be read"),
    (lambda f: shard(1)(f).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    (lambda f: shard(1)(f).unlink(), "lacks 1 of 2 weight files, for example model-00001-of-00002.safetensors"),
    (other_version, "model-00001-of-00002.safetensors does not hold w1.weight"),
    (lambda f: (f / "model.safetensors.index.json").write_text("{"), "cannot be read as an index"),
    (weights_elsewhere, "has no .safetensors weights"),
    (
        lambda f: save_file({"w2.weight": torch.ones(2, dtype=torch.int8)}, shard(2)(f)),
        r"quantised weights \(w2.weight",
    ),
    (configure(quantization_config={"quant_method": "gptq"}), r"is quantised \(gptq\)"),
    (configure(vision_config={}), r"is a multimodal model \(llama with a vision_config\)"),
    (configure(is_encoder_decoder=True), "is an encoder-decoder"),
    (adapter, "is a LoRA adapter for org/base"),
]


def test_sound_folder_passes(folder: Path) -> None:
    check_weight_files(folder)


@pytest.mark.parametrize(("breaks", "reason"), BROKEN)
def test_folder_is_refused(breaks: Callable[[Path], object], reason: str, folder: Path) -> None:
    breaks(folder)
    with pytest.raises(UserError, match=reason):
        check_weight_files(folder)


def test_model_that_lacks_tensors_is_refused_at_load(tmp_path: Path) -> None:
    """Whole files, but not all of the family's tensors: transformers would draw them at random."""
    fields = {"intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | fields))
    save_file({"model.embed_tokens.weight": torch.ones(8, 4)}, tmp_path / "model.safetensors")
    check_weight_files(tmp_path)
    with pytest.raises(UserError, match=r"lacks \d+ tensors of its family, for example lm_head.weight"):
        load_model(ModelSpec(str(tmp_path), "logprobs"), torch.float32)
