"""Ray from the driver's side: placement, reservations, processes, and the health of rollout workers."""
