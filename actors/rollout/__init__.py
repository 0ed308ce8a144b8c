"""Generation with vLLM inside a Ray actor: the worker, and the thread that owns its engine."""
