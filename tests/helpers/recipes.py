"""The files that docs/extending.md shows, written where a user would have them."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/extending.md"


def write_recipes(folder: Path, *names: str) -> None:
    """Write files that the page shows, each of which begins with a comment that names it."""
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    shown = dict(blocks)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(shown[name])
