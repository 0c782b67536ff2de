"""The project itself: exports, notebooks, README, modules and packaging are what they should be."""
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
NOTEBOOKS = [ROOT / "index.ipynb", *sorted((ROOT / "nbs").rglob("*.ipynb"))]
NOTEBOOKS = [p for p in NOTEBOOKS if not any(part.startswith(".") for part in p.relative_to(ROOT).parts)]
NAMES = [str(p.relative_to(ROOT)) for p in NOTEBOOKS]
LIBRARY = ROOT / "audiogen_nb"
MODULES = sorted(".".join(p.relative_to(LIBRARY).with_suffix("").parts) for p in LIBRARY.rglob("*.py")
                 if not p.stem.startswith("_"))
HEAVY = ["torch", "torchaudio", "matplotlib", "IPython", "ipywidgets", "transformers", "accelerate"]
LAZY = [name for name in HEAVY if not name.startswith("torch")]
ABSOLUTE = re.compile(r"(?<![\w.~:/])/(?:work|root|home|Users|tmp|opt|usr)/\w|site-packages")


def script(name):
    "A module loaded from .ci/"
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*command, cwd=ROOT, timeout=600, **environment):
    "Run a command, return it finished, output captured"
    return subprocess.run([str(c) for c in command], cwd=cwd, env={**os.environ, **environment}, timeout=timeout,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


# Exports

def test_library_is_what_the_notebooks_export(tmp_path):
    shutil.copytree(ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for name in ["settings.ini", "pyproject.toml", "README.md", "index.ipynb"]:
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "audiogen_nb").mkdir()
    for path in LIBRARY.rglob("__init__.py"):                      # written by hand, or empty
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True), shutil.copy(path, copy)
    done = run(BIN / "nbdev_export", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    exported, committed = ({p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*.py")}
                           for folder in (tmp_path / "audiogen_nb", LIBRARY))
    assert set(exported) == set(committed), \
        f"modules without a notebook, or never exported: {set(exported) ^ set(committed)}; run `make export`"
    stale = [name for name in committed if exported[name] != committed[name]]
    assert not stale, f"{stale} differ from what the notebooks export; run `make export`"


def test_settings_name_the_version_once():
    text = (ROOT / "settings.ini").read_text()
    version = re.search(r"^version = (\S+)", text, re.M).group(1)
    assert f'__version__ = "{version}"' in (ROOT / "audiogen_nb" / "__init__.py").read_text(), "run `make export`"


# Notebooks

@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_clean(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert text == script("clean").clean_text(text), f"{name} is not clean; run `make clean-notebooks`"
    assert len(text.encode()) <= 200_000, f"{name} is {len(text.encode()) // 1000} kB, at most 200; use smaller pictures"
    for i, cell in enumerate(json.loads(text)["cells"]):
        where, outputs = f"{name}, cell {i}", json.dumps(cell.get("outputs", []))
        for sign in ("<audio", "widget-view+json"):
            assert sign not in outputs, f"{where} holds {sign}; run `make clean-notebooks`"
        assert not any(o["output_type"] == "error" for o in cell.get("outputs", [])), f"{where} ends in an error"
        found = ABSOLUTE.search("".join(cell["source"])) or ABSOLUTE.search(_text_outputs(cell))
        assert not found, f"{where} has an absolute path near {found.group(0)!r}; use a relative or temporary one"


def _text_outputs(cell) -> str:
    "Everything a cell printed, pictures left out"
    parts = []
    for output in cell.get("outputs", []):
        data = output.get("data", {"text/plain": output.get("text", "")})
        parts += ["".join(v) for k, v in data.items() if k.startswith("text/")]
    return "\n".join(parts)


def _imports(name) -> set:
    "Top-level packages that a notebook imports"
    cells = [c for c in json.loads((ROOT / name).read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    lines = [re.sub(r"^(\s*)[%!].*", r"\1pass", line) for c in cells for line in ("".join(c["source"]) + "\n").splitlines()]
    nodes = [node for node in ast.walk(ast.parse("\n".join(lines)))]
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {module.split(".")[0] for module in found}


@pytest.mark.parametrize("name", NAMES)
def test_notebook_imports_only_what_make_lab_installs(name):
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini")
    keys = ("requirements", "notebooks_requirements", "lora_requirements", "captions_requirements")
    wanted = " ".join(settings["DEFAULT"][key] for key in keys)
    modules = {"pyyaml": "yaml"}               # where the package has another name than its module
    installed = {re.split(r"[<>=!~;\[]", word)[0].replace("-", "_") for word in wanted.split()}
    installed = {modules.get(name, name) for name in installed}
    extra = _imports(name) - installed - set(sys.stdlib_module_names) - {"audiogen_nb", "IPython"}
    assert not extra, f"{name} imports {extra}, which `make lab` does not install; see notebooks_requirements in settings.ini"


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name):
    code = "import sys; from nbdev.test import nbdev_test; nbdev_test(sys.argv[1], n_workers=0, timing=True)"
    done = run(sys.executable, "-c", code, ROOT / name, MPLBACKEND="agg")
    assert done.returncode == 0, f"{name} fails (`.venv/bin/nbdev_test --path {name}`):\n{done.stdout[-4000:]}"


# README

def test_readme_is_made_from_the_index():
    assert (ROOT / "README.md").read_text(encoding="utf-8") == script("readme").readme(), "README.md is old; run `make readme`"


def test_the_front_page_leads_to_every_chapter():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in NAMES if re.match(r"nbs/\d\d[a-z]?_", name) and f"({name})" not in text]
    assert not missing, f"index.ipynb does not link {missing}"


@pytest.mark.parametrize("name", ["README.md", *NAMES])
def test_links_lead_somewhere(name):
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|mailto:|#", link)]
    broken = [link for link in links if not (page.parent / link).exists()]
    assert not broken, f"{name} links to {broken}, which do not exist"


# Modules

def test_pyflakes_is_silent():
    done = run(sys.executable, "-m", "pyflakes", "audiogen_nb", "tests", "docs", ".ci", "setup.py")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["", *MODULES])
def test_module_imports_by_itself_stays_light_and_is_documented(module):
    target = f"audiogen_nb.{module}" if module else "audiogen_nb"
    unwanted = HEAVY if module in ("", "cli", "files") else LAZY
    code = (f"import importlib, sys; m = importlib.import_module({target!r})\n"
            f"loaded = [name for name in {unwanted!r} if name in sys.modules]\n"
            "own = [getattr(m, name) for name in m.__all__] if m.__name__ != 'audiogen_nb' else []\n"
            "bare = [t.__name__ for t in own if getattr(t, '__module__', '') == m.__name__ and callable(t) and not t.__doc__]\n"
            "print(loaded, bare, bool(m.__doc__))")
    done = run(sys.executable, "-W", "error::SyntaxWarning", "-c", code)
    assert done.returncode == 0, done.stdout
    assert done.stdout.strip().splitlines()[-1] == "[] [] True", \
        f"{target} imports too much, has undocumented names, or no docstring: {done.stdout.strip()}"


def test_public_face():
    code = ("import audiogen_nb as a; from audiogen_nb import AudioGen, Codec, AudioLM; "
            "assert {'AudioGen', 'Codec', 'AudioLM'} <= set(dir(a)); a.nothing")
    done = run(sys.executable, "-c", code)
    assert "AttributeError" in done.stdout and "'nothing'" in done.stdout, done.stdout


# Packaging

def test_wheel_ships_the_bundled_model_and_nothing_else(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ["settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "audiogen_nb", tree / "audiogen_nb", ignore=shutil.ignore_patterns("__pycache__"))
    done = run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    wanted = {p.relative_to(ROOT).as_posix() for p in (ROOT / "audiogen_nb").rglob("*")
              if p.is_file() and "__pycache__" not in p.parts}
    assert {n for n in names if not n.split("/")[0].endswith(".dist-info")} == wanted


# Text files

def _opens_in_the_locale(call) -> bool:
    "Whether a call opens a text file without saying its encoding"
    name = getattr(call.func, "id", getattr(call.func, "attr", ""))
    if name not in ("open", "read_text", "write_text") or getattr(getattr(call.func, "value", None), "id", "") in (
            "tarfile", "os", "archive"):                   # a member of an archive is bytes
        return False
    said = {k.arg for k in call.keywords} | {"encoding" for a in call.args if isinstance(a, ast.Constant) and a.value in ("utf-8", "utf-8-sig")}
    binary = any(isinstance(a, ast.Constant) and isinstance(a.value, str) and "b" in a.value for a in call.args[1:2])
    return "encoding" not in said and not binary


@pytest.mark.parametrize("path", sorted((ROOT / "audiogen_nb").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_text_files_say_their_encoding(path):
    calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
    assert not [f"line {c.lineno}" for c in calls if _opens_in_the_locale(c)], "pass encoding='utf-8'"
