"""Code that runs inside Ray actors: model workers, rollout workers, weight transfer, and the processes themselves."""
