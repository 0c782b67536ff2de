"""The library's reference as Markdown, read from the sources without importing them.

A parameter's meaning is the comment on its line, as in fastcore's docments.
"""
import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def source(module: str) -> str:
    "The text of a module"
    return (ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")


def patched(node) -> str:
    "The class that a function with @patch becomes a method of; empty for anything else"
    marks = [ast.unparse(d).split("(")[0] for d in getattr(node, "decorator_list", [])]
    return ast.unparse(node.args.args[0].annotation) if "patch" in marks else ""


def public(tree) -> list[str]:
    "The names in a module's __all__"
    assigned = [node for node in tree.body if isinstance(node, ast.Assign)]
    return next((ast.literal_eval(a.value) for a in assigned if ast.unparse(a.targets[0]) == "__all__"), [])


def comments(text: str) -> dict[int, str]:
    "The comment on each line, with those of the lines below it that hold nothing else"
    found, alone = {}, set()
    for token in reversed(list(tokenize.generate_tokens(io.StringIO(text).readline))):
        if token.type == tokenize.COMMENT:
            line = token.start[0]
            below = found[line + 1] if line + 1 in alone else ""
            found[line] = f"{token.string.lstrip('# ')} {below}".strip()
            alone |= {line} if token.line.lstrip().startswith("#") else set()
    return found


def described(kind) -> tuple[str, str]:
    "A type as text, and what Annotated says of a command's option"
    if isinstance(kind, ast.Subscript) and ast.unparse(kind.value) == "Annotated":
        kind, option = kind.slice.elts[:2]
        words = [k.value for k in getattr(option, "keywords", []) if k.arg == "help"]
        return ast.unparse(kind), "".join(ast.literal_eval(w) for w in words if isinstance(w, ast.Constant))
    return (ast.unparse(kind) if kind else ""), ""


def parameters(node, notes: dict) -> list[list]:
    "[name, type, default, meaning] of a function's parameters or a class's fields, and of what is returned"
    if isinstance(node, ast.ClassDef):
        found = [(f.target.id, f.annotation, f.value, f) for f in node.body if isinstance(f, ast.AnnAssign)]
    else:
        a = node.args
        plain = a.posonlyargs + a.args
        defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults + a.kw_defaults
        pairs = list(zip(plain + a.kwonlyargs, defaults))
        pairs[len(plain):len(plain)] = [(a.vararg, None)] if a.vararg else []
        pairs += [(a.kwarg, None)] if a.kwarg else []
        stars = {a.vararg: "*", a.kwarg: "**"}
        found = [(stars.get(p, "") + p.arg, p.annotation, default, default or p) for p, default in pairs]
        found += [("return", node.returns, None, node.returns)] if node.returns else []
    last = {at.end_lineno: name for name, _, _, at in found}     # what ends last on a line has its comment
    rows = []
    for name, kind, default, at in found:
        kind, said = described(kind)
        note = notes.get(at.end_lineno, "") if last[at.end_lineno] == name else ""
        rows.append([name, kind, ast.unparse(default) if default else "", note or said])
    return rows


def entry(node, kind: str, name: str, rows: list, option: str = "", inside: str = "") -> str:
    "A directive of Sphinx's Python domain: signature, docstring, table without empty columns, what is inside"
    shown = [(n, d if len(d) <= 30 else "...") for n, _, d, _ in rows if n != "return"]
    call = "" if kind == "property" else "(" + ", ".join(f"{n}={d}" if d else n for n, d in shown) + ")"
    cells = [[f"`{n}`", t and f"`{t}`", d and f"`{d}`", note] for n, t, d, note in rows if t != "None"]
    columns = [c for c in zip(["Name", "Type", "Default", "Meaning"], *cells) if any(c[1:])]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in zip(*columns)]
    lines[1:1] = [" | ".join("---" for _ in columns)]
    lines = [f"| {line} |" for line in lines if len(columns) > 1]
    fence = "`" * (6 if kind == "class" else 4)
    return "\n".join([f"{fence}{{py:{kind}}} {name}{call}", option, ast.get_docstring(node) or "", "",
                      *lines, "", inside, fence])


def entries(body: list, notes: dict, names: list | None = None) -> list[str]:
    "What is public of a module's body, or, without `names`, of a class's, in the order of its chapter"
    out = []
    for node in body:
        name, owner = getattr(node, "name", "_"), patched(node)
        marks = [ast.unparse(d) for d in getattr(node, "decorator_list", [])]
        if isinstance(node, ast.ClassDef) and name in (names or []):
            init = [f for f in node.body if getattr(f, "name", "") == "__init__"]
            rows = parameters(init[0], notes)[1:] if init else parameters(node, notes)
            rows = [row for row in rows if row[0] != "return"]
            out.append(entry(node, "class", name, rows, inside="\n\n".join(entries(node.body, notes))))
        elif isinstance(node, ast.FunctionDef) and name[0] != "_" and (
                names is None or owner or name in names):
            method = names is None or bool(owner)
            kind = "property" if any("property" in m for m in marks) else "method" if method else "function"
            option = "".join(f":{m}:\n" for m in marks if m in ("classmethod", "staticmethod"))
            rows = parameters(node, notes)[method and "staticmethod" not in marks:]
            out.append(entry(node, kind, f"{owner}.{name}".lstrip("."), rows, option))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)) and names:
            found = [n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            values = [n.id for n in found if n.id in names]
            out += [f"```{{py:data}} {value}\n\n{notes.get(node.end_lineno, '')}\n```" for value in values]
    return out


def write(folder: Path):
    "A page for every package, one for the modules at the top, and their index"
    files = (p for p in (ROOT / "audiogen_nb").rglob("*.py") if p.stem[0] != "_")
    pages, index = {}, ["# The library", "Module by module. Each is written in a chapter."]
    for path in sorted((p.relative_to(ROOT).with_suffix("") for p in files), key=lambda p: (len(p.parts), p)):
        module, page = ".".join(path.parts), path.parts[1] if len(path.parts) > 2 else "top"
        if page not in pages:
            pages[page] = [f"# {page if page != 'top' else 'audiogen_nb'}"]
            index.append(f"## [{pages[page][0][2:]}]({page}.md)")
        text, name = source(module), module.partition(".")[2]
        tree = ast.parse(text)
        about = ast.get_docstring(tree) or ""
        chapters = re.findall(r"^# AUTOGENERATED.* [./]*nbs/(\S+)\.$", text, re.M)
        index.append(f"- [`{name}`](#{module}): {about}")
        pages[page] += [f"## {name}", f"```{{py:module}} {module}\n```", about,
                        *(f"Written in [](/nbs/{chapter})." for chapter in chapters),
                        *entries(tree.body, comments(text), public(tree))]
    folder.mkdir(parents=True)
    for page, parts in {**pages, "index": [*index, "```{toctree}\n:hidden:\n", *pages, "```"]}.items():
        (folder / f"{page}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
