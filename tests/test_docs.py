"""The site that `make docs` builds: its links and sources, and what a browser shows of it."""
import ast
import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

for name in ("sphinx", "myst_nb", "sphinx_book_theme"):
    pytest.importorskip(name, reason=f"{name} is not installed")
ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOURCES = {"script": "src", "link": "href", "img": "src", "audio": "src", "source": "src", "iframe": "src"}
pytestmark = pytest.mark.skipif(not shutil.which("npm") and not list(ROOT.glob("_docs/mathjax-*/package")),
                                reason="no npm here to fetch MathJax: apt-get install npm")


class Links(HTMLParser):
    "What a page loads, what it leads to, and the places in it that can be led to"

    def __init__(self, path: Path):
        super().__init__()
        self.loads, self.leads, self.ids = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes.get("id"), attributes.get("name")}
        if tag in SOURCES and attributes.get(SOURCES[tag]):
            self.loads.append(attributes[SOURCES[tag]])
        if tag == "a" and attributes.get("href"):
            self.leads.append(attributes["href"])


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The folder of the built site"
    out = tmp_path_factory.mktemp("docs")
    done = subprocess.run([sys.executable, ROOT / "docs/build.py", out], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (out / "warnings").write_text(done.stderr, encoding="utf-8")
    return out / "site"


@pytest.fixture(scope="session")
def pages(site):
    "Every page's links, by path"
    return {path: Links(path) for path in site.rglob("*.html") if "_static" not in path.parts}


def test_the_site_is_built_without_a_warning(site):
    warnings = (site.parent / "warnings").read_text(encoding="utf-8")
    assert "WARNING" not in warnings, warnings[-4000:]


def test_every_notebook_has_a_page(site):
    notebooks = [p.relative_to(ROOT) for p in (ROOT / "nbs").rglob("*.ipynb") if p.parent.name[0] != "."]
    assert notebooks and not [p for p in notebooks if not (site / p).with_suffix(".html").exists()]


def test_no_link_of_the_site_is_broken(pages):
    broken = []
    for path, page in pages.items():
        for link in page.loads + page.leads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.is_file() or (place and target in pages and place not in pages[target].ids):
                broken.append(f"{path.name}: {link}")
    assert not broken, broken[:20]


def test_no_page_loads_anything_from_the_network(site, pages):
    found = [link for page in pages.values() for link in page.loads if urlsplit(link).netloc]
    outside = re.compile(r"(?:@import|url\()\s*[\"']?(?:https?:)?//")
    styles = [p for p in site.rglob("*.css") if outside.search(p.read_text(encoding="utf-8"))]
    assert not found and not styles, (found[:10], styles)


def test_every_sound_has_a_player_and_every_drawing_is_shown(pages):
    loaded = {Path(unquote(link)).name for page in pages.values() for link in page.loads}
    files = [*(ROOT / "nbs/sounds").glob("*.ogg"), *(ROOT / "nbs/figures").glob("*.svg")]
    assert files and not [p.name for p in files if p.name not in loaded]


def test_the_reference_has_every_public_name(pages):
    public = {f"{'.'.join(path.relative_to(ROOT).with_suffix('').parts)}.{name}"
              for path in (ROOT / "audiogen_nb").rglob("*.py") if not path.stem.startswith("_")
              for node in ast.parse(path.read_text(encoding="utf-8")).body
              if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
              for name in ast.literal_eval(node.value)}
    known = {place for path, page in pages.items() if path.parent.name == "api" for place in page.ids}
    assert len(public) > 100 and not sorted(public - known), sorted(public - known)[:20]


def test_the_reference_reads_comments_as_meanings():
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs/api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    text = ("def f(a, b: int,  # of b\n      c: str = 'x', # of c,\n                    # and more\n"
            "      *rest, d=(1, 2)) -> float:  # of the result\n    pass  # of nothing\n")
    assert api.parameters(ast.parse(text).body[0], api.comments(text)) == [
        ["a", "", "", ""], ["b", "int", "", "of b"], ["c", "str", "'x'", "of c, and more"],
        ["*rest", "", "", ""], ["d", "", "(1, 2)", ""], ["return", "float", "", "of the result"]]


@pytest.fixture(scope="module")
def address(site):
    "The site, served on this machine"
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def page(address):
    "A browser's page that may load from this machine only"
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("no chromium here: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--autoplay-policy=no-user-gesture-required"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        page.route(lambda url: not url.startswith(address), lambda route: route.abort())
        yield page
        browser.close()


def first_with(pages, sign):
    "The first core chapter whose page has a sign in it; else the front page"
    found = [p for p in sorted(pages) if p.parent.name == "nbs" and sign in p.read_text(encoding="utf-8")]
    return found[0].relative_to(found[0].parent.parent).as_posix() if found else "index.html"


def test_sidebar_lists_the_core_path(page, address):
    page.goto(f"{address}/index.html")
    sidebar = page.locator("nav.bd-links")
    heads = ["".join(json.loads(p.read_text(encoding="utf-8"))["cells"][0]["source"]) for p in CORE]
    titles = [head.splitlines()[0].lstrip("# ") for head in heads]
    shown = [text for text in sidebar.locator("a").all_inner_texts() if re.match(r"\d\d ", text)]
    assert shown == [f"{p.name[:2]} {title}" for p, title in zip(CORE, titles)]
    captions = sidebar.locator(".caption").all_inner_texts()
    assert captions == ["Core path", "Labs", "Engine", "Worlds", "Peers", "To look up"]


def test_chapter_shows_its_formulas(page, pages, address, tmp_path):
    page.goto(f"{address}/{first_with(pages, 'math notranslate')}")
    formula = page.locator("mjx-container").first
    formula.wait_for()
    box = formula.bounding_box()
    assert box["width"] > 5 and box["height"] > 5, box
    assert page.locator("mjx-merror").count() == 0
    page.screenshot(path=tmp_path / "chapter.png")


def test_sound_plays(page, pages, address):
    page.goto(f"{address}/{first_with(pages, '<audio')}")
    player = page.locator("audio").first
    player.scroll_into_view_if_needed()
    assert player.evaluate("audio => audio.preload") == "none"
    player.evaluate("audio => audio.play()")
    page.wait_for_function("document.querySelector('audio').currentTime > 0.1")
    assert 0.1 < player.evaluate("audio => audio.duration") < 60


def test_search_finds_a_word(page, address):
    page.goto(f"{address}/search.html?q=codebook")
    found = page.locator("#search-results li a")
    found.first.wait_for()
    assert any("codebook" in text for text in found.all_inner_texts())
