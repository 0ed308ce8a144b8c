"""Config loading: from YAML to a validated stage, with errors that name file, line and the nearest valid key."""
