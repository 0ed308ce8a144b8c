"""What runs inside a Ray actor: model hosts, the vLLM rollout worker, groups, weight transfer, device."""
