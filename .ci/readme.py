"""Make README.md from index.ipynb: Markdown cells as they are, code fenced, text output below it.

    python .ci/readme.py
"""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from index.ipynb by `make readme`: edit the notebook, not this file. -->"


def _joined(source) -> str:
    return source if isinstance(source, str) else "".join(source)


def _printed(cell) -> str:
    "What the cell printed or evaluated to, as text; pictures, players and widgets are left out"
    parts = []
    for output in cell["outputs"]:
        data = output.get("data", {"text/plain": output.get("text", "")})
        if set(data) == {"text/plain"}:
            parts.append(_joined(data["text/plain"]).rstrip())
    return "\n".join(p for p in parts if p)


def readme(index: Path = ROOT / "index.ipynb") -> str:
    "The text of README.md"
    blocks = []
    for cell in json.loads(index.read_text(encoding="utf-8"))["cells"]:
        source = _joined(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            blocks.append(source)
        elif cell["cell_type"] == "code" and not re.match(r"#\s*\|\s*hide", source):
            code = "\n".join(line for line in source.splitlines() if not re.match(r"#\s*\|", line))
            blocks.append(f"```python\n{code.strip()}\n```")
            if printed := _printed(cell):
                blocks.append(f"```text\n{printed}\n```")
    title, *rest = [b for b in blocks if b]
    return "\n\n".join([title, *rest, NOTE]) + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    print("wrote README.md")
