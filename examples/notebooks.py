"""Write the notebooks from their paired scripts: `examples/NAME.py`, whose cells begin with `# %%`, into NAME.ipynb.

command    python examples/notebooks.py            writes;  --check only says which differ, and exits with 1

The script is the source: it reads in a diff, and linters and tests see it. The notebook is what opens in Colab.
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
CELL = re.compile(r"^# %%( \[markdown\])?.*$", re.MULTILINE)


def scripts() -> list[Path]:
    """The scripts that are notebooks."""
    return [p for p in sorted(HERE.rglob("*.py")) if p.read_text().startswith("# %%")]


def cells(text: str) -> list[dict]:
    """Cells of a script; `# %pip` is a magic that only a notebook runs."""
    marks = list(CELL.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    out = []
    for n, (mark, end) in enumerate(zip(marks, ends, strict=True)):
        body = text[mark.end() : end].strip("\n")
        if mark.group(1):
            lines = [re.sub(r"^# ?", "", line) for line in body.split("\n")]
            cell = {"cell_type": "markdown", "id": f"cell-{n}", "metadata": {}}
        else:
            lines = [re.sub(r"^# %pip", "%pip", line) for line in body.split("\n")]
            cell = {"cell_type": "code", "id": f"cell-{n}", "metadata": {}, "execution_count": None, "outputs": []}
        out.append({**cell, "source": "\n".join(lines).splitlines(keepends=True)})
    return out


def notebook(script: Path) -> str:
    """The .ipynb of a script, as text."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": cells(script.read_text()), "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    stale = []
    for script in scripts():
        file = script.with_suffix(".ipynb")
        if not file.exists() or file.read_text() != notebook(script):
            stale.append(file.name)
            if "--check" not in sys.argv:
                file.write_text(notebook(script))
    print("\n".join(stale) or "all notebooks are as their scripts")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
