"""Chat templates that come with Quadriga: training variants of families whose own template rewrites earlier answers."""

from pathlib import Path

NAMED_TEMPLATES = {file.stem: file for file in sorted((Path(__file__).parent / "templates").glob("*.jinja"))}
"""File of each template by its name, which `chat_template` takes in place of a path."""
