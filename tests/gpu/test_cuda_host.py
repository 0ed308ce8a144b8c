"""What only a GPU can show: the kernels on CUDA, and a model host that trains there (no Ray: a host is an object)."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.plain_ppo import CLIP, LR, NORM, batches, plain_torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from quadriga.actors.model.batch import Element, Term, pack_elements
from quadriga.actors.model.heads import ModelSpec
from quadriga.actors.model.worker import ModelWorker, ModelWorkerSpec
from quadriga.actors.settings import ClusterSettings, ModelWorkerSettings, OptimizerSettings
from quadriga.actors.weights.source import named_weights
from quadriga.data.tokens.packing import pack
from quadriga.kernels.attention import varlen_attention
from quadriga.kernels.logprobs import linear_logprobs
from quadriga.kernels.losses.policy import PolicyClip

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 0.1M parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("gpu") / "policy"
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def free_port() -> int:
    """A port for the rendezvous."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_host(folder: Path, dtype: str, stage: int, offload: str = "none") -> ModelWorker:
    """A one-rank actor on the GPU."""
    cluster = ClusterSettings(device="cuda", dtype=dtype, actor=ModelWorkerSettings(zero_stage=stage, offload=offload))
    optimizer = OptimizerSettings(lr=LR, max_grad_norm=NORM)
    host = ModelWorker(
        ModelWorkerSpec("actor", 0, 1, ModelSpec(str(folder), "logprobs"), cluster, "cuda", 4, optimizer)
    )
    host.start(("127.0.0.1", free_port()))
    return host


def run_steps(host: ModelWorker) -> list[tuple[float, float]]:
    """The three reference steps; (loss, gradient norm) of each."""
    loss, history = PolicyClip(CLIP), []
    for elements in batches():
        tokens = sum(float(e.tokens["weights"][0].sum()) for e in elements)
        wanted = [Element(e.sequences, {n: e.tokens[n] for n in loss.fields}) for e in elements]
        micro = [pack_elements(wanted[:3], loss.fields), pack_elements(wanted[3:], loss.fields)]
        update = host.update([(micro, (Term(loss, tokens),))], LR, 1.0).value
        history.append((update.stats["loss"] / tokens, update.grad_norm))
    return history


@pytest.mark.parametrize("heads", [(4, 4), (8, 2)])
def test_attention_on_cuda_equals_float64_on_cpu(heads: tuple[int, int]) -> None:
    """fp32 within 1e-5, bf16 within 2e-2."""
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 17, 17, 64, 1]
    q, k, v = (torch.randn(sum(lengths), h, 64, generator=generator, dtype=torch.float64) for h in (*heads, heads[1]))
    borders = torch.tensor(np.r_[0, np.cumsum(lengths)], dtype=torch.int32)
    expected = varlen_attention(q, k, v, borders)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        result = varlen_attention(*(x.to("cuda", dtype) for x in (q, k, v)), borders)
        assert (result.cpu().double() - expected).abs().max() < tolerance


def test_logprobs_on_cuda_equal_float64_on_cpu() -> None:
    """Values, entropies and gradients."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(300, 64, generator=generator, dtype=torch.float64)
    weight = torch.randn(1000, 64, generator=generator, dtype=torch.float64) * 0.3
    targets = torch.randint(0, 1000, (300,), generator=generator)
    logits = (hidden @ weight.T / 0.7).requires_grad_(False)
    expected = logits.log_softmax(-1)
    h, w = (x.to("cuda", torch.float32).requires_grad_() for x in (hidden, weight))
    logprobs, entropy = linear_logprobs(h, w, targets.cuda(), temperature=0.7, chunk=64)
    logprobs.sum().backward()
    assert (logprobs.cpu().double() - expected.gather(1, targets[:, None])[:, 0]).abs().max() < 1e-4
    assert (entropy.cpu().double() + (expected.exp() * expected).sum(-1)).abs().max() < 1e-4
    slope = (torch.nn.functional.one_hot(targets, 1000) - expected.exp()) / 0.7
    assert (h.grad.cpu().double() - slope @ weight).abs().max() < 1e-4
    assert (w.grad.cpu().double() - slope.T @ hidden).abs().max() < 1e-3


@pytest.mark.parametrize(("stage", "offload"), [(3, "none"), (0, "none"), (3, "optimizer")])
def test_three_steps_on_cuda_equal_plain_torch_on_cpu(
    model_folder: Path, tmp_path: Path, stage: int, offload: str
) -> None:
    """float32: losses and norms within 1e-4 relative; weights within 1e-4 where they moved at least 1e-3."""
    reference, weights = plain_torch(model_folder, "actor")
    host = make_host(model_folder, "float32", stage, offload)
    before = torch.cuda.memory_allocated()
    assert before > 0
    history = run_steps(host)
    np.testing.assert_allclose(history, reference, rtol=1e-4)
    result = host.export(str(tmp_path / "export"), "policy", {})
    assert result.memory >= before
    exported = dict(named_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32)))
    start = dict(named_weights(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)))
    for name, tensor in weights.items():
        moved = (tensor - start[name]).abs() >= 1e-3
        assert not moved.any() or (exported[name] - tensor)[moved].abs().max() <= 1e-4


def test_bfloat16_keeps_float32_masters(model_folder: Path) -> None:
    """Losses within 5 % of float32's, and a step smaller than bfloat16 can hold still moves the masters."""
    reference, _ = plain_torch(model_folder, "actor")
    host = make_host(model_folder, "bfloat16", 3)
    assert {p.dtype for p in host.model.parameters()} == {torch.bfloat16}
    history = run_steps(host)
    np.testing.assert_allclose([x for x, _ in history], [x for x, _ in reference], atol=0.05)
    marks = host.engine.fingerprints()
    loss = PolicyClip(CLIP)
    element = batches()[1][0]
    micro = pack_elements([Element(element.sequences, {n: element.tokens[n] for n in loss.fields})], loss.fields)
    host.update([([micro], (Term(loss, 10.0),))], 1e-6, 1.0)
    after = host.engine.fingerprints()
    assert all(after[name][0] != marks[name][0] for name in marks)


def test_forward_passes_on_cuda(model_folder: Path) -> None:
    """Packed log-probs on the GPU equal a plain forward on the CPU, 1e-4."""
    host = make_host(model_folder, "float32", 3)
    model = LlamaForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    sequences = [[1, 5, 9, 20], [1, 7, 7, 8, 9, 10, 11], [1, 30]]
    ((logprobs, _),) = host.forward_logprobs([pack(sequences)], 1.0).value
    start = 0
    for sequence in sequences:
        ids = torch.tensor([sequence])
        with torch.no_grad():
            plain = model(input_ids=ids).logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        part = logprobs[start : start + len(sequence)]
        assert part[0] == 0 and np.abs(part[1:] - plain.numpy()).max() < 1e-4
        start += len(sequence)
