"""Make notebooks fit to commit: nbdev's cleaning, then no players, no widget state, no stderr.

    python .ci/clean.py [NOTEBOOK ...]     (default: every notebook of the book)
"""
import json
import sys
from pathlib import Path

from nbdev.clean import clean_nb
from nbdev.config import get_config

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebooks(root=ROOT) -> list:
    "The book's notebooks in reading order, the front page first"
    return [root / "index.ipynb", *sorted((root / "nbs").rglob("*.ipynb"))]


def _keep(output) -> bool:
    "False for an audio player, a widget view, or anything that went to stderr"
    data = output.get("data", {})
    return not (WIDGET in data or "<audio" in json.dumps(data) or output.get("name") == "stderr")


def clean_text(text: str) -> str:
    "The notebook `text` (JSON) as it should be committed"
    nb = json.loads(text)
    folded = [cell["metadata"].get("jupyter", {}).get("source_hidden") for cell in nb["cells"]]   # refusals, at a chapter's end
    cfg = get_config(path=ROOT)
    clean_nb(nb, clear_all=cfg.clear_all, clean_ids=cfg.clean_ids)
    nb["metadata"].pop("widgets", None)
    for cell, hidden in zip(nb["cells"], folded):
        cell["metadata"] = {"jupyter": {"source_hidden": True}} if hidden else {}
        if "outputs" in cell:
            cell["outputs"] = [o for o in cell["outputs"] if _keep(o)]
    return json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for path in [Path(p) for p in sys.argv[1:]] or notebooks():
        if not path.exists():
            continue
        before = path.read_text(encoding="utf-8")
        after = clean_text(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print("cleaned", path)
