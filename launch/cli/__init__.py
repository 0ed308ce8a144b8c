"""The command line: the app, shared options, and a file per group of commands."""
