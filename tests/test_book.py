"""The book: its path, the facts at the head of each chapter, its links, its equations; the library's three rules."""
import ast
import json
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS, LIBRARY = ROOT / "nbs", ROOT / "audiogen_nb"
CORE = sorted(NBS.glob("[0-9]*.ipynb"))
TRACKS = {"labs": "Lab", "engine": "Engine", "worlds": "World", "peers": "Peer"}
BRANCHES = [p for folder in TRACKS for p in sorted((NBS / folder).glob("*.ipynb"))]
CHAPTERS = CORE + BRANCHES
SOLUTIONS = sorted((NBS / "solutions").rglob("*.ipynb"))
EVERYTHING = [ROOT / "index.ipynb", *CHAPTERS, NBS / "ledger.ipynb", *SOLUTIONS]
PARAMETER = re.compile(r"\s+\*{0,2}\w+\s*(:[^=#]+)?(=[^#]+)?,?\s*#")      # a line that declares and documents a parameter
FACTS = re.compile(r"\*\*Track:\*\* (\w+) · \*\*Minutes:\*\* (\d+) · \*\*Needs:\*\* (.+) · \*\*Exports:\*\* (.+)")


def name(path):
    return str(path.relative_to(ROOT))


def cells(path, kind=None):
    found = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c for c in found if kind in (None, c["cell_type"])]


def source(cell) -> str:
    return "".join(cell["source"])


def title(path) -> str:
    return re.match(r"# (.+)", source(cells(path)[0])).group(1).strip()


def modules_written_by(path) -> set:
    "Modules that a notebook exports to"
    found = set()
    for cell in cells(path, "code"):
        found |= set(re.findall(r"^#\s*\|\s*default_exp (\S+)", source(cell), re.M))
        found |= set(re.findall(r"^#\s*\|\s*exports?i? ([\w.]+)", source(cell), re.M))
    return found


# The path

def test_the_core_path_is_eighteen_chapters_in_order():
    assert [int(p.name[:2]) for p in CORE] == list(range(1, 19))


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_a_chapter_says_what_it_is(path):
    head = cells(path)
    assert re.fullmatch(r"# [^\n]+\n\n> [^\n]+\n?", source(head[0])), "cell 1 is a title and a quote of one line"
    facts = FACTS.match(source(head[1]))
    assert facts, "cell 2 begins with **Track:** … · **Minutes:** … · **Needs:** … · **Exports:** …"
    assert facts[1] == TRACKS.get(path.parent.name, "Core") and 1 <= int(facts[2]) <= 60
    assert facts[3] == "–" or re.search(r"\]\([^)]+\)", facts[3]), "Needs are links"
    linked = {m.replace("/", ".") for m in re.findall(r"audiogen_nb/([\w/]+)\.py", facts[4])}
    assert linked == modules_written_by(path), "Exports name the modules that the chapter writes"


@pytest.mark.parametrize("path", CORE, ids=name)
def test_a_core_chapter_is_short(path):
    code = cells(path, "code")
    assert len(code) <= 35, f"{len(code)} code cells, at most 35"
    facts = FACTS.match(source(cells(path)[1]))
    assert int(facts[2]) <= 25, "a core chapter takes at most 25 minutes"


@pytest.mark.parametrize("path", CORE, ids=name)
def test_a_core_chapter_leads_on(path):
    i, last = CORE.index(path), source(cells(path)[-1])
    before = f"[{title(CORE[i - 1])}]({CORE[i - 1].name})" if i else "[Front page](../index.ipynb)"
    after = f"[{title(CORE[i + 1])}]({CORE[i + 1].name})" if i + 1 < len(CORE) else "[Ledger](ledger.ipynb)"
    assert last.strip() == f"← {before} · {after} →"


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_cells_are_short_and_lines_are_narrow(path):
    for i, cell in enumerate(cells(path, "code")):
        lines = source(cell).splitlines()
        wide = [line for line in lines if len(line) > 110 and not line.startswith("|")]
        assert not wide, f"code cell {i} has a line of {len(wide[0])} characters, at most 110: {wide[0][:60]}"
        lines = [line for line in lines if not PARAMETER.match(line)]           # documentation is not length
        limit = 60 if re.search(r"^(@\w+.*\n)*class \w+", source(cell), re.M) else 40
        assert len(lines) <= limit, f"code cell {i} has {len(lines)} lines, at most {limit}"


@pytest.mark.parametrize("path", CHAPTERS, ids=name)
def test_a_chapter_with_exercises_has_solutions(path):
    text = "\n".join(source(c) for c in cells(path, "markdown"))
    if re.search(r"^## Exercises", text, re.M):
        assert (NBS / "solutions" / path.relative_to(NBS)).exists()


def test_solutions_mirror_the_tree():
    assert not [name(p) for p in SOLUTIONS if not (NBS / p.relative_to(NBS / "solutions")).exists()]


@pytest.mark.parametrize("path", [*EVERYTHING, ROOT / "README.md"], ids=name)
def test_chapters_are_named_by_links(path):
    text = path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n".join(map(source, cells(path)))
    bare = re.findall(r"\b[Cc]hapters? \d\w*", text)
    assert not bare, f"{bare}: write a link with the chapter's title"


def test_the_library_does_not_count_chapters():
    for path in LIBRARY.rglob("*.py"):
        assert not re.search(r"\b[Cc]hapters? \d", path.read_text(encoding="utf-8")), name(path)


# The ledger

def ledger_rows():
    "Rows of the ledger's tables that name a target: (text of the row, library target, cell target)"
    text = "\n".join(source(c) for c in cells(NBS / "ledger.ipynb", "markdown"))
    return [row for row in text.splitlines() if row.startswith("|") and "](" in row]


def test_ledger_targets_exist():
    rows = ledger_rows()
    assert len(rows) >= 40
    for row in rows:
        for label, target in re.findall(r"\[`?([^\]`]+)`?\]\(([^)\s]+)\)", row):
            file, _, anchor = target.partition("#")
            path = (NBS / file).resolve()
            assert path.exists(), f"{target} in: {row}"
            if path.suffix == ".py":
                tree = ast.parse(path.read_text(encoding="utf-8"))
                names = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
                names |= {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
                assert label.split(".")[-1].removesuffix("()") in names, f"{path.name} has no {label}: {row}"
            elif path.suffix == ".ipynb" and anchor:
                assert anchor in {c.get("id") for c in cells(path)}, f"{name(path)} has no cell {anchor}: {row}"


def test_equations_stand_above_their_lines():
    n = sum(source(c).count("$$") // 2 for path in CORE for c in cells(path, "markdown"))
    assert n >= 45, f"{n} display equations in the core path"


# The library's rules

def imports(path) -> set:
    "Modules of the library that a module imports, lazily or not; what only a type checker reads does not count"
    tree, package = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(ROOT).with_suffix("").parts[:-1]
    skipped = {n for block in ast.walk(tree) if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
               for n in ast.walk(block)}
    found = set()
    for node in ast.walk(tree):
        if node in skipped or not isinstance(node, ast.ImportFrom):
            continue
        base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
        whole = ".".join(filter(None, [base, node.module]))
        if whole.split(".")[0] == "audiogen_nb":
            found |= {whole, *(f"{whole}.{alias.name}" for alias in node.names)}
    return found


def graph() -> dict:
    files = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in LIBRARY.rglob("*.py") if p.stem != "_modidx"}
    files = {module.removesuffix(".__init__"): p for module, p in files.items()}
    return {module: (imports(p) & files.keys()) - {module} for module, p in files.items()}


CORE_MODULES = {"arguments", "files", "sound", "soundfiles", "data.clips", "data.mixing", "codec.seanet", "codec.levels", "codec.codebook", "codec.vq", "codec.losses",
                "codec.adversarial", "codec.balancer", "text.encoders", "lm.streams", "lm.transformer", "sampling.choosing",
                "sampling.request", "sampling.loop"}


def test_no_import_circle():
    TopologicalSorter(graph()).prepare()          # raises CycleError with the circle


def test_the_core_imports_only_the_core():
    core = {f"audiogen_nb.{m}" for m in CORE_MODULES}
    packages = {m for m in graph() if (LIBRARY.parent / Path(*m.split("."))).is_dir()}
    for module in core:
        assert graph()[module] <= core | packages, f"{module} imports {graph()[module] - core}"


def test_nobody_imports_a_private_name():
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("audiogen_nb")):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert not private, f"{name(path)} imports {private}"


def test_a_public_name_is_defined_once():
    homes = {}
    for path in LIBRARY.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                patched = any("patch" in ast.dump(d) or "register" in ast.dump(d) for d in node.decorator_list)
                if not patched:
                    homes.setdefault(node.name, []).append(name(path))
    assert not {k: v for k, v in homes.items() if len(v) > 1}


def test_inference_loads_what_it_needs_and_no_more():
    code = ("import sys; from audiogen_nb import AudioGen; AudioGen.from_pretrained('pocket').generate('rain', duration=0.1, seed=0)\n"
            "print(*sorted(m for m in sys.modules if m.split('.')[0] in "
            "('audiogen_nb', 'transformers', 'huggingface_hub', 'matplotlib', 'IPython', 'ipywidgets', 'peft')))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    wanted = {"codec.codebook", "codec.levels", "codec.seanet", "codec.vq", "engine.budget", "engine.chunks", "engine.linear", "engine.products", "engine.surroundings",
              "engine.trust", "engine.windows",
              "arguments", "files", "hub", "lm.streams", "lm.transformer", "pipeline", "sampling.choosing", "sampling.loop", "sampling.request",
              "sound", "soundfiles", "text.encoders", "text.hf"}
    packages = {"audiogen_nb", *(f"audiogen_nb.{p}" for p in ("codec", "engine", "lm", "sampling", "text"))}
    assert loaded - packages <= {f"audiogen_nb.{m}" for m in wanted}, loaded - packages - {f"audiogen_nb.{m}" for m in wanted}


def test_at_most_three_patches_a_class_and_none_from_outside():
    patches = {}
    for path in LIBRARY.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and any("patch" == getattr(d, "id", "") for d in node.decorator_list):
                kind = ast.unparse(node.args.args[0].annotation)
                patches.setdefault(kind, []).append(node.name)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                raise AssertionError(f"{name(path)} assigns {ast.unparse(node)} from outside")
    assert all(len(names) <= 3 for names in patches.values()), patches


@pytest.mark.parametrize("workflow", ["ci.yml", "docs.yml"])
def test_workflows_run_what_is_here(workflow):
    text = (ROOT / ".github" / "workflows" / workflow).read_text(encoding="utf-8")
    assert (".ci/run" if workflow == "ci.yml" else "make docs") in text
