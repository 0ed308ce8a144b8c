"""Memory and time that a run needs, computed before anything is started."""
