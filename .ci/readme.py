"""Write the map of the book into index.ipynb, then README.md from index.ipynb: Markdown cells as they are, code fenced, text output
below it.

    python .ci/readme.py
"""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTE = "<!-- Made from index.ipynb by `make readme`: edit the notebook, not this file. -->"
TRACKS = {
    "": ("The path", "Read in order. A core chapter holds the plain form of one part of the paper."),
    "labs": ("Labs", "One idea to play with."),
    "engine": ("Engine", "The core made fast, long, parallel or safe, and everything that files and commands need."),
    "worlds": ("Worlds", "Sounds with captions."),
    "peers": ("Peers", "Other people's models."),
}


def _joined(source) -> str:
    return source if isinstance(source, str) else "".join(source)


def _row(path: Path) -> str:
    "A chapter's line of the map: number, title, what it is about, what it exports, minutes"
    head = [_joined(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"][:2]]
    title, quote = re.match(r"# (.+?)\s*\n+> (.+)", head[0]).groups()
    minutes = re.search(r"\*\*Minutes:\*\* (\d+)", head[1])
    exports = re.findall(r"\[`[\w.]+`\]\([^)]+\)", head[1].split("**Exports:**")[-1]) if "**Exports:**" in head[1] else []
    exports = ", ".join(link.replace("](../../", "](").replace("](../", "](") for link in exports)
    number = path.name[:2] if path.name[:2].isdigit() else ""
    return f"| {number} | [{title}]({path.relative_to(ROOT).as_posix()}) | {quote.strip()} | {exports} | {minutes[1] if minutes else ''} |"


def book_map() -> str:
    "All chapters, by track"
    parts = ["## Map of the book"]
    for folder, (name, about) in TRACKS.items():
        rows = [_row(path) for path in sorted((ROOT / "nbs" / folder).glob("*.ipynb")) if path.stem != "ledger"]
        parts.append(f"**{name}.** {about}\n\n| | Chapter | What is in it | Exports | Minutes |\n|---|---|---|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def with_map(text: str) -> str:
    "The front page `text` (JSON) with a fresh map"
    nb = json.loads(text)
    cell = next(c for c in nb["cells"] if _joined(c["source"]).startswith("## Map of the book"))
    cell["source"] = book_map().splitlines(keepends=True)
    return json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


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
    front = ROOT / "index.ipynb"
    front.write_text(with_map(front.read_text(encoding="utf-8")), encoding="utf-8")
    (ROOT / "README.md").write_text(readme(), encoding="utf-8")
    print("wrote README.md")
