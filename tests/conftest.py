"""What every test runs under: no network look-ups and no tracking account."""

import os

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
)
for secret in ("WANDB_API_KEY", "HF_TOKEN"):
    os.environ.pop(secret, None)
