"""From YAML to a validated stage, with errors that name the file, the line and the nearest right key."""
