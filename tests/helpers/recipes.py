"""The files that docs/extending.md shows, written where a user would have them."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/extending.md"


def write_recipes(folder: Path, *names: str) -> None:
    """Write files that the page shows, each of which begins with a comment that names it."""
    blocks = re.findall(r"```\w+\n# ([\w/]+\.\w+)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    shown = dict(blocks)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(shown[name])
