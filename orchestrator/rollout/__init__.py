"""The driver's side of generation: a pool of vLLM workers and the tracker of its requests."""
