"""The driver's side of generation: a pool of vLLM workers and the account of its requests."""
