"""The front page in a real browser: run it, type, press Generate, listen, press Stop. And a blind listening test: hear, rate, undo."""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here: apt-get install chromium")

DURATION = 2.0     # seconds, what the page is asked for
DECODE = """async () => {
    const response = await fetch(document.querySelector('.widget-html audio').src)
    const sound = await new AudioContext().decodeAudioData(await response.arrayBuffer())
    const x = sound.getChannelData(0)
    return {duration: sound.duration, rms: Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length)}
}"""


def slowed(notebook):
    "The front page with 20 ms more for every step: `pocket` is done before a browser finds the Stop button"
    source = ("import time\nfrom audiogen_nb.lab.studio import RunBar\nfast = RunBar.step\n"
              "RunBar.step = lambda self, *steps: (time.sleep(0.02), fast(self, *steps))")
    notebook["cells"].insert(0, {"cell_type": "code", "id": "slowed", "metadata": {}, "source": source, "outputs": [],
                                 "execution_count": None})
    return notebook


RATING = """from audiogen_nb.data.toy_kinds import toy_clip
from audiogen_nb.judge.listening import ListeningTest
from audiogen_nb.sound import save_audio
for name, seed in (("recordings", 0), ("secret", 1)):
    for kind in ("dog", "bell"):
        (folder := Path("rated") / name).mkdir(parents=True, exist_ok=True)
        save_audio(folder / f"{kind}.wav", toy_clip(kind, seed, 1.0).audio, 16_000, overwrite=True)
ListeningTest(["rated/recordings", "rated/secret"], "ratings.csv", "anna", {"dog": "a dog barks", "bell": "a bell rings"}).show()"""


def rating_notebook():
    "A notebook with a listening test of four trials"
    cell = {"cell_type": "code", "id": "rating", "metadata": {}, "source": "from pathlib import Path\n" + RATING, "outputs": [],
            "execution_count": None}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


@pytest.fixture(scope="module")
def book(root, tmp_path_factory):
    "A copy of the book, and beside its front page a notebook with a listening test"
    book = tmp_path_factory.mktemp("lab") / "book"
    shutil.copytree(root / "nbs", book / "nbs", ignore=shutil.ignore_patterns(".*", "__pycache__"))
    (book / "index.ipynb").write_text(json.dumps(slowed(json.loads((root / "index.ipynb").read_text(encoding="utf-8")))))
    (book / "rating.ipynb").write_text(json.dumps(rating_notebook()))
    return book


@pytest.fixture(scope="module")
def lab(book):
    "Address of a JupyterLab over the book, with settings of its own"
    home = book.parent
    quiet = home / "config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    environment = {**os.environ, **{key: str(home / place) for key, place in places.items()}, "OMP_NUM_THREADS": "2"}
    environment.pop("MPLBACKEND", None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--ServerApp.port_retries=0", "--IdentityProvider.token=", f"--ServerApp.root_dir={book}"]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, cwd=book, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            assert server.poll() is None, (home / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=5).read()
                break
            except OSError:
                time.sleep(0.25)
        else:
            raise AssertionError((home / "log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}/lab/tree/"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def run_all(page):
    "Run > Run All Cells; a page that is still settling may close the menu once"
    for patience in (5_000, 10_000, 60_000):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        try:
            return page.get_by_role("menuitem", name="Run All Cells", exact=True).click(timeout=patience)
        except sync_api.TimeoutError:
            page.keyboard.press("Escape")
    raise AssertionError("the Run menu does not stay open")


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


def opened(browser, address):
    "A page with a notebook, every cell run"
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(300_000)
    page.goto(address)
    page.get_by_text(re.compile(r"\| Idle$")).first.wait_for()          # the status bar, once the kernel is up
    run_all(page)
    return page


@pytest.fixture(scope="module")
def page(lab, browser):
    "The front page, every cell run"
    return opened(browser, f"{lab}index.ipynb?reset")


def set_seconds(page, seconds):
    "Type a value into the number beside the slider"
    page.locator(".widget-hslider:has-text('seconds') .widget-readout").click()
    page.keyboard.press("Control+A")
    page.keyboard.type(str(seconds))
    page.keyboard.press("Enter")


def test_prompt_to_sound_in_the_browser(page, tmp_path):
    prompt = page.get_by_placeholder("what do you want to hear?")
    prompt.scroll_into_view_if_needed()
    prompt.fill("a dog barks in the rain")
    set_seconds(page, DURATION)
    page.locator("button.jupyter-button", has_text="Generate").click()
    page.wait_for_selector(".widget-html audio")
    player = page.locator(".widget-html audio").first
    page.wait_for_function("document.querySelector('.widget-html audio').readyState >= 1")
    assert abs(player.evaluate("audio => audio.duration") - DURATION) < 0.1
    decoded = page.evaluate(DECODE)
    assert abs(decoded["duration"] - DURATION) < 0.1 and decoded["rms"] > 0.003, decoded
    assert page.get_by_text("1 take, newest first").is_visible()
    player.scroll_into_view_if_needed()
    page.screenshot(path=tmp_path / "take.png")


def test_stop_in_the_browser_keeps_the_history(page, tmp_path):
    page.get_by_placeholder("what do you want to hear?").fill("wind")
    set_seconds(page, 4.0)
    page.locator("button.jupyter-button", has_text="Generate").click()
    page.locator(".widget-html", has_text=re.compile(r"step \d+ of \d+")).first.wait_for()
    page.locator("button.jupyter-button", has_text="Stop").click()
    page.locator(".widget-html", has_text="stopped at step").first.wait_for()
    page.locator("button.jupyter-button:enabled", has_text="Generate").wait_for()
    assert page.locator(".widget-html audio").count() == 1
    page.screenshot(path=tmp_path / "stopped.png")


def test_nothing_on_the_page_ended_in_an_error(page):
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'] >> text=Traceback").count() == 0
    assert page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.error']").count() == 0


def test_a_sound_is_rated_blindly_in_the_browser(lab, browser, book, tmp_path):
    from audiogen_nb.judge.listening import read_ratings
    page = opened(browser, f"{lab}rating.ipynb?reset")
    button = {name: page.locator("button.jupyter-button", has_text=name) for name in ("Next", "Undo")}
    for n, (ovl, rel) in enumerate([(35, 80), (1, 100)]):
        page.locator(".widget-html", has_text=f"Sound {n + 1} of 4").first.wait_for()
        page.wait_for_function("document.querySelector('.widget-html audio').readyState >= 1")
        decoded = page.evaluate(DECODE)
        assert abs(decoded["duration"] - 1.0) < 0.01 and decoded["rms"] > 0.003, decoded
        assert button["Next"].is_disabled()                             # nothing was rated yet
        for question, value in (("OVL", ovl), ("REL", rel)):
            readout = page.locator(f".widget-hslider:has-text('{question}') .widget-readout")
            readout.click()
            page.keyboard.press("Control+A")
            page.keyboard.type(str(value))
            page.keyboard.press("Enter")
            sync_api.expect(readout).to_have_text(str(value))
        page.locator("button.jupyter-button:enabled", has_text="Next").click()
    page.locator(".widget-html", has_text="Sound 3 of 4").first.wait_for()
    page.locator("button.jupyter-button:focus", has_text="Undo").wait_for()
    for _ in range(10):                                                 # no mouse is needed to go on
        page.keyboard.press("Tab")
        if page.locator(".noUi-handle:focus").count():
            break
    page.keyboard.press("ArrowRight")
    page.locator(".widget-hslider:has-text('OVL') .widget-readout", has_text="51").wait_for()
    shown = page.locator(".jp-OutputArea").inner_html()
    assert not [word for word in ("recordings", "secret", ".wav") if word in shown]
    answers = {(r.trial, r.question): r.value for r in read_ratings(book / "ratings.csv")}
    assert answers == {(0, "OVL"): 35, (0, "REL"): 80, (1, "OVL"): 1, (1, "REL"): 100}
    page.screenshot(path=tmp_path / "rating.png")
    button["Undo"].click()
    page.locator(".widget-html", has_text="Sound 2 of 4").first.wait_for()
    assert len(read_ratings(book / "ratings.csv")) == 2
    page.close()
