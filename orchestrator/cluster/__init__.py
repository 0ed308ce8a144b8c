"""The driver's side of Ray: placement, reservations, processes, and the health of rollout workers."""
