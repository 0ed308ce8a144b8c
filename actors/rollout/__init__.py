"""Generation with vLLM inside a Ray actor."""
