"""The command line: the app, shared options, and one file per group of commands."""
