"""Build the site: the notebooks with their committed outputs, and the library's reference.

    python docs/build.py [FOLDER]      (default _docs; the pages are in FOLDER/site)

Nothing is executed. MathJax is fetched once, by npm, into _docs; after that no network is needed.
"""
import ast
import json
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import api
from sphinx.cmd.build import main as sphinx

ROOT = api.ROOT
MATHJAX = "mathjax-3.2.2"
PARTS = ["tex-chtml.js", "input/tex", "output/chtml/fonts", "a11y", "sre"]     # of MathJax: what pages load
TRACKS = {"labs": "Labs", "engine": "Engine", "worlds": "Worlds", "peers": "Peers"}
LINK = re.compile(r"\[(?P<label>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
CELL = re.compile(r"#(?:cell-id=)?([0-9a-f]{8})")


def markdown(name: str, text: str) -> dict:
    "A cell of a notebook"
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}


def shown(text: str, path: Path, src: Path) -> str:
    "Markdown of a file: a sound gets a player, a module its place in the reference, other files are copied"
    def link(match):
        label, (target, _, place) = match["label"], match["target"].partition("#")
        file = (path.parent / target).resolve()
        if not file.is_file() or ROOT not in file.parents:
            return match[0]
        if file.suffix == ".ipynb":
            cell = CELL.fullmatch("#" + place)             # else a heading, which Sphinx writes in lower case
            slug = re.sub(r"[^\w-]", "", place.lower())
            return f"[{label}](#cell-{cell[1]})" if cell else f"[{label}]({target}{'#' * bool(slug)}{slug})"
        if file.suffix == ".ogg":
            return f'{label} <audio controls preload="none" src="{target}" title="{escape(label)}"></audio>'
        name = file.relative_to(ROOT)
        if file.suffix == ".py" and name.parts[0] == "audiogen_nb":
            module = ".".join(name.with_suffix("").parts)
            public = label.strip("`") in api.public(ast.parse(api.source(module)))
            return f"[{label}](#{module}{'.' + label.strip('`') if public else ''})"
        if not (src / name).exists():
            (src / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, src / name)
            if file.suffix == ".md":
                page = shown(file.read_text(encoding="utf-8"), file, src)
                (src / name).write_text(page, encoding="utf-8")
        return match[0]
    return LINK.sub(link, text)


def convert(path: Path, src: Path, linked: set[str]):
    "Copy a notebook without directives and hidden cells; exported cells get a tag, linked ones a label"
    nb, cells = json.loads(path.read_text(encoding="utf-8")), []
    for cell in nb["cells"]:
        text = "".join(cell["source"])
        if cell["id"] in linked:
            cells.append(markdown(f"to-{cell['id']}", f"(cell-{cell['id']})="))
        if cell["cell_type"] == "markdown":
            text = "" if text.startswith("← ") else shown(text, path, src)      # pages have buttons
            cells.append(cell | {"source": text})
            continue
        marks = re.findall(r"^#\s*\|\s*(\w+)", text, re.M)
        text = re.sub(r"^#\s*\|.*\n?", "", text, flags=re.M).strip()
        folded, exported = "jupyter" in cell["metadata"], any("export" in m for m in marks)
        tags = ["hide-input"] * folded + ["exported"] * exported
        if text and "hide" not in marks:
            cells.append(cell | {"source": text, "metadata": {"tags": tags}})
    to = src / path.relative_to(ROOT)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(json.dumps(nb | {"cells": cells}), encoding="utf-8")


def chapters(folder: str) -> list[Path]:
    "The notebooks of a folder of nbs/, in the order in which the front page links their chapters last"
    front = (ROOT / "index.ipynb").read_text(encoding="utf-8")

    def place(path):
        found = front.rfind(f"({path.relative_to(ROOT).as_posix().replace('solutions/', '')})")
        return (found if found >= 0 else len(front), path.name)
    return sorted((ROOT / "nbs" / folder).glob("*.ipynb"), key=place)


def toctree(caption: str, paths, options: str = ":hidden:") -> str:
    "A list of pages; a chapter of the core has its number before its title"
    def line(path):
        page = f"/{path.relative_to(ROOT).with_suffix('')}"
        if path.parent.name != "nbs" or not path.name[:2].isdigit():
            return page
        heading = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]).splitlines()[0]
        return f"{path.name[:2]} {heading.lstrip('# ')} <{page}>"
    return "\n".join(["```{toctree}", f":caption: {caption}", options, "", *map(line, paths), "```", ""])


def contents(src: Path):
    "The sidebar, at the end of the front page, and a page that lists the solutions"
    core = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    lookup = [ROOT / "solutions", *(ROOT / "nbs").glob("ledger.ipynb"), ROOT / "api/index"]
    lookup += [ROOT / p.relative_to(src) for p in src.rglob("README.md")]
    tracks = [toctree(name, chapters(folder)) for folder, name in TRACKS.items()]
    trees = [toctree("Core path", core), *tracks, toctree("To look up", lookup)]
    front = json.loads((src / "index.ipynb").read_text(encoding="utf-8"))
    front["cells"].append(markdown("contents", "\n".join(trees)))
    (src / "index.ipynb").write_text(json.dumps(front), encoding="utf-8")
    shown = [("Core path", sorted((ROOT / "nbs/solutions").glob("*.ipynb"))),
             *((name, chapters(f"solutions/{folder}")) for folder, name in TRACKS.items())]
    text = "\n".join(["# Solutions", "The exercises of each chapter, solved and run.", "",
                      *(toctree(name, paths, ":maxdepth: 1") for name, paths in shown if paths)])
    (src / "solutions.md").write_text(text, encoding="utf-8")


def mathjax() -> Path:
    "MathJax as npm ships it, fetched at the first call"
    folder = ROOT / "_docs" / MATHJAX
    if not folder.exists():
        if not shutil.which("npm"):
            sys.exit("npm is needed once, to fetch MathJax: install Node.js (on Debian: apt-get install npm)")
        folder.parent.mkdir(exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", MATHJAX.replace("-", "@")], cwd=folder.parent, check=True,
                       stdout=subprocess.DEVNULL)
        shutil.unpack_archive(f"{folder}.tgz", folder)
    return folder / "package/es5"


def build(out: Path):
    "Build the site into out/site"
    src, site, library = out / "src", out / "site", mathjax()
    for folder in (src, site):
        shutil.rmtree(folder, ignore_errors=True)
    paths = [ROOT / "index.ipynb", *(p for p in (ROOT / "nbs").rglob("*.ipynb") if p.parent.name[0] != ".")]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    linked = {cell for text in texts for cell in re.findall("ipynb" + CELL.pattern, text)}
    for path in paths:
        convert(path, src, linked)
    contents(src)
    api.write(src / "api")
    options = ["-q", "-j", "auto", "-c", str(ROOT / "docs"), "-d", str(out / "doctrees")]
    if sphinx([*options, str(src), str(site)]):
        sys.exit("Sphinx failed")
    for part in PARTS:
        to = site / "_static/mathjax" / part
        to.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (library / part).is_dir() else shutil.copy)(library / part, to)
    for folder in ("nbs/sounds", "nbs/figures"):           # under the names that the notebooks give them
        if (ROOT / folder).exists():
            shutil.copytree(ROOT / folder, site / folder, dirs_exist_ok=True)
    print(f"the book is at {site / 'index.html'}")


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs").resolve())
