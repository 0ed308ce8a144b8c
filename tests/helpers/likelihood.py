"""Log-probs of continuations in plain transformers, to compare suites with."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class PlainModel:
    """One text at a time, unpadded, in float32."""

    def __init__(self, folder: Path):
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logprob(self, context: str, text: str) -> float:
        """log p(text | context), summed over tokens; without a context after BOS, or the end token without one."""
        if context:
            before, ids = self.tokenizer(context).input_ids, self.tokenizer(context + text).input_ids
        else:
            bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            before = [eos if bos is None else bos]
            ids = before + self.tokenizer(text, add_special_tokens=False).input_ids
        assert ids[: len(before)] == before, "context and text share a token"
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0, :-1].float()
        own = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        return float(own[len(before) - 1 :].sum(dtype=torch.float64))
