"""The drawings: committed files are what the code writes, numbers are the real shapes, nothing overlaps."""
import math
import re
from functools import cache
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from audiogen_nb.codec.adversarial import DISCRIMINATOR_PRESETS
from audiogen_nb.codec.seanet import CODEC_PRESETS, Decoder, Encoder
from audiogen_nb.lab import drawings
from audiogen_nb.lab.drawings import (DRAWINGS, KINDS, PAPER, arrow, bars, box, cells, contrast, draw_all,
                                      panel, waveform)
from audiogen_nb.lm.streams import get_pattern
from audiogen_nb.lm.transformer import LM_PRESETS

FIGURES = Path(__file__).resolve().parent.parent / "nbs" / "figures"
NAMES = ["system", "seanet", "residual_vq", "discriminators", "layouts", "block", "guidance"]
FRAMES = 32


def short_seanet(c) -> str:
    "Encoder and decoder for a few frames"
    return drawings.draw_seanet(c, seconds=FRAMES * c.hop_length / c.sample_rate)


OTHERS = {  # drawings of other configurations
    "seanet": [lambda c=c: short_seanet(c) for c in CODEC_PRESETS.values()],
    "discriminators": [lambda c=c: drawings.draw_discriminators(c) for c in DISCRIMINATOR_PRESETS.values()],
    "block": [lambda c=c: drawings.draw_block(c) for c in LM_PRESETS.values()],
    "system": [lambda c=c: drawings.draw_system(c, seconds=5.0) for c in CODEC_PRESETS.values()],
    "residual_vq": [lambda c=c: drawings.draw_residual_vq(c) for c in CODEC_PRESETS.values() if c.n_q > 1],
    "layouts": [lambda: drawings.draw_layouts(2, 6, (1, 3)), lambda: drawings.draw_layouts(1, 8, (0, 4))],
    "guidance": [lambda: drawings.draw_guidance(1.0, 8), lambda: drawings.draw_guidance(5.0, 2)],
}
CASES = {f"{name} {i}": cache(draw)                                              # each is drawn once
         for name in NAMES for i, draw in enumerate([DRAWINGS[name], *OTHERS[name]])}
drawing = pytest.mark.parametrize("draw", CASES.values(), ids=CASES.keys())


# Files

def test_committed_drawings_are_what_the_code_writes(tmp_path):
    before = torch.get_rng_state()
    for path in draw_all(tmp_path / "new"):
        old = path.read_bytes() != (FIGURES / path.name).read_bytes()
        assert not old, f"{path.name} is old: run draw_all('nbs/figures')"
        assert path.stat().st_size <= 40_000
    assert torch.get_rng_state().equal(before), "drawing used up random numbers"
    assert {p.stem for p in FIGURES.glob("*.svg")} >= set(NAMES) == set(DRAWINGS)


@drawing
def test_a_drawing_is_complete(draw):
    root = elements(draw())[0]
    tags = [element.tag.split("}")[1] for element in root]
    assert tags[:3] == ["title", "desc", "rect"] and all(len(root[i].text) > 10 for i in range(2))
    assert root[2].get("fill") == PAPER, "no panel of its own"
    assert float(root[2].get("width")) >= float(root.get("width")) - 1, "the panel is too narrow"
    assert {"script", "style", "image", "use"}.isdisjoint(e.tag.split("}")[1] for e in root.iter())


# Numbers

def texts(svg) -> list:
    return [element.text for element in elements(svg) if element.tag.endswith("}text")]


@pytest.mark.parametrize("name", CODEC_PRESETS)
def test_seanet_shows_the_shapes_of_the_real_networks(name):
    config = CODEC_PRESETS[name]
    shown = [line.replace(" ", "") for line in texts(short_seanet(config))]
    encoder, decoder = Encoder(config), Decoder(config)
    x = torch.zeros(1, 1, FRAMES * config.hop_length)
    with torch.no_grad():
        for network in (encoder, decoder):
            for layer in network:
                x = layer(x)
                assert f"{x.shape[1]}×{x.shape[2]}" in shown, f"{type(layer).__name__} gives {list(x.shape)}"
    assert f"{config.n_q}×{FRAMES}codes" in shown
    n_layers = sum(type(layer).__name__ != "ELU" for network in (encoder, decoder) for layer in network)
    kinds = ("convolution", "transposedconv", "residualunit", "LSTM")
    assert sum(line in kinds for line in shown) == n_layers
    strides = [int(s) for line in shown for s in re.findall(r"stride(\d+)", line)]
    assert math.prod(strides) == config.hop_length ** 2


@pytest.mark.parametrize("name", DISCRIMINATOR_PRESETS)
def test_discriminators_show_the_shapes_of_the_real_networks(name):
    from audiogen_nb.codec.adversarial import MSSTFTDiscriminator
    shown = texts(drawings.draw_discriminators(DISCRIMINATOR_PRESETS[name], 4000))
    with torch.no_grad():
        verdicts = MSSTFTDiscriminator(DISCRIMINATOR_PRESETS[name])(torch.zeros(1, 1, 4000))
    for verdict, features in verdicts:
        for x in (*features, verdict):
            assert f"{x.shape[2]} × {x.shape[3]}" in shown
    for window in DISCRIMINATOR_PRESETS[name].windows:
        assert f"window {window}" in shown


@pytest.mark.parametrize("name", ["parallel", "delay", "flatten"])
def test_layout_cells_follow_the_pattern(name):
    pattern, marked = get_pattern(name, 4), (2, 1)
    table, steps = drawings.layout_cells(pattern, 3, marked), pattern.steps(3)
    ink, tint = KINDS["codes"]
    assert sum(text != "" for row in table for text, _ in row) == 12
    for k in range(4):
        for f in range(3):
            text, fill = table[k][steps[k, f]]
            seen = steps[k, f] < steps[marked]
            assert (text, fill) == (str(f + 1), ink if (k, f) == marked else tint if seen else "#ffffff")


def test_block_shows_the_sizes_of_the_preset():
    for c in LM_PRESETS.values():
        shown = texts(drawings.draw_block(c))
        for line in (f"{c.dim} → 3 × {c.dim}", f"{c.dim} → 2 × {c.dim}", f"{c.dim} → {4 * c.dim}",
                     f"{4 * c.dim} → {c.dim}", f"{c.n_heads} heads of {c.dim // c.n_heads}",
                     f"one of {c.n_layers} blocks"):
            assert line in shown


def test_parameters_change_the_drawing():
    assert drawings.draw_guidance(scale=2.0) != drawings.draw_guidance() != drawings.draw_guidance(top_k=2)
    assert drawings.draw_residual_vq(point=(0.9, 0.9)) != drawings.draw_residual_vq()
    assert drawings.draw_system(seconds=2.0) != drawings.draw_system()
    assert drawings.draw_system(lm=LM_PRESETS["paper_base"]) != drawings.draw_system()
    assert waveform(0, 0, 80, 40, onsets=(0.5,)) != waveform(0, 0, 80, 40)
    assert len({bars(0, 50, 12, [5, 9], **more) for more in ({}, {"marked": 0}, {"kind": "text"})}) == 3
    assert len({arrow((0, 0), (50, 0), **more) for more in ({}, {"dashed": True}, {"kind": "text"})}) == 3
    assert 'width="700"' in panel("Some title", "A text", 100, width=700)


@pytest.mark.parametrize("call, part", [
    (lambda: box(0, 0, 50, 40, "much too long"), "does not fit"),
    (lambda: box(0, 0, 200, 40, "one", "two", "three"), "does not fit"),
    (lambda: drawings.draw_seanet(seconds=0.00101), "whole number of frames"),
    (lambda: drawings.draw_residual_vq(CODEC_PRESETS["paper_x32"]), "2 to 4 codebooks"),
    (lambda: drawings.draw_layouts(4, 5), "at most 16 codes"),
])
def test_what_cannot_be_drawn_is_refused(call, part):
    with pytest.raises(ValueError, match=part):
        call()


# Places: every text has room in the widest common font, boxes and lines keep apart

def elements(svg) -> list:
    return list(ElementTree.fromstring(svg).iter())


def widths():
    "A function from text, size and style to pixels, in DejaVu, the widest of the usual sans-serif fonts"
    import matplotlib
    from matplotlib.ft2font import FT2Font
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = {style: FT2Font(str(folder / f"DejaVuSans{style}.ttf")) for style in ("", "-Bold", "Mono")}
    for font in fonts.values():
        font.set_size(100, 72)
    def width(text, size, style) -> float:
        return sum(fonts[style].load_char(ord(c)).linearHoriAdvance for c in text) / 65536 / 100 * size
    return width


WIDTH = widths()


def attributes(svg):
    "Each element with the attributes that it inherits"
    found, passed_on = [], ("font-size", "text-anchor", "fill", "font-family")
    def visit(element, inherited):
        own = {**{k: v for k, v in inherited.items() if k in passed_on}, **element.attrib}
        found.append((element.tag.split("}")[1], own, element.text))
        for child in element:
            visit(child, own)
    root = ElementTree.fromstring(svg)
    visit(root, {})
    return found


def places(svg):
    "Boxes (left, top, right, bottom) of texts, of rectangles, and the straight pieces of lines"
    words, rects, pieces = [], [], []
    for tag, a, text in attributes(svg):
        if tag == "text":
            size = float(a["font-size"])
            style = "-Bold" if "font-weight" in a else "Mono" if a["font-family"] == "monospace" else ""
            w, x, y = WIDTH(text, size, style), float(a["x"]), float(a["y"])
            left = x - {"start": 0, "middle": w / 2, "end": w}[a.get("text-anchor", "start")]
            words.append((text, size, (left, y - 0.73 * size, left + w, y + 0.2 * size)))
        elif tag == "rect":
            x, y, w, h = (float(a[k]) for k in ("x", "y", "width", "height"))
            rects.append((a, (x, y, x + w, y + h)))
        elif tag == "path" and a.get("class") == "line":
            pieces += straight(a["d"])
    return words, rects, pieces


def straight(path):
    "Pieces ((x, y), (x, y)) of a path of M, L, H, V, v and h"
    at, found = (0.0, 0.0), []
    for letter, numbers in re.findall(r"([MLHVvh])([^MLHVvh]*)", path):
        n = [float(v) for v in numbers.split()]
        x, y = n if letter in "ML" else (n[0], at[1]) if letter in "Hh" else (at[0], n[0])
        to = (x + at[0] * (letter == "h"), y + at[1] * (letter == "v"))
        found += [(at, to)] if letter != "M" else []
        at = to
    return found


def apart(a, b, slack=0.0) -> bool:
    return any(a[i + 2] <= b[i] + slack or b[i + 2] <= a[i] + slack for i in (0, 1))


def inside(a, b) -> bool:
    return b[0] <= a[0] and b[1] <= a[1] and a[2] <= b[2] and a[3] <= b[3]


def around(piece):
    (x0, y0), (x1, y1) = piece
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


@drawing
def test_words_stay_in_their_boxes_and_apart(draw):
    words, rects, _ = places(draw())
    for text, size, place in words:
        assert size >= 13, f"{text!r} is small"
        for _, rect in rects:
            assert apart(place, rect) or inside(place, rect), f"{text!r} crosses the edge of {rect}"
    for (a, _, here), (b, _, there) in combinations(words, 2):
        assert apart(here, there), f"{a!r} and {b!r} overlap"


@drawing
def test_boxes_are_apart_or_nested(draw):
    _, rects, _ = places(draw())
    for (_, a), (_, b) in combinations(rects, 2):
        assert apart(a, b) or inside(a, b) or inside(b, a), f"boxes {a} and {b} overlap"


@drawing
def test_lines_keep_off_words_boxes_and_each_other(draw):
    words, rects, pieces = places(draw())
    level = [p for p in pieces if p[0][0] == p[1][0] or p[0][1] == p[1][1]]      # not those of the plane
    for piece in level:
        for text, _, place in words:
            assert apart(around(piece), place), f"a line {piece} runs through {text!r}"
        for a, rect in rects:
            if a.get("class") != "frame" and not inside(around(piece), rect):
                assert apart(around(piece), rect, 0.5), f"a line {piece} runs into the box at {rect}"
    for (a, b), (c, d) in combinations(level, 2):
        if (a[0] == b[0]) != (c[0] == d[0]):                                     # one upright, one level
            (top, bottom), (left, right) = ((a, b), (c, d)) if a[0] == b[0] else ((c, d), (a, b))
            crossed = min(left[0], right[0]) < top[0] < max(left[0], right[0])
            crossed &= min(top[1], bottom[1]) < left[1] < max(top[1], bottom[1])
            assert not crossed, f"lines {a, b} and {c, d} cross"


@drawing
def test_words_can_be_read_on_what_lies_under_them(draw):
    svg = draw()
    words, rects, _ = places(svg)
    inks = [a["fill"] for tag, a, _ in attributes(svg) if tag == "text"]
    for (text, _, place), ink in zip(words, inks, strict=True):
        under = [a["fill"] for a, rect in rects if inside(place, rect) and a["fill"] != "none"][-1]
        assert contrast(ink, under) >= 4.5, f"{text!r}: {ink} on {under}"


def test_cells_write_white_on_their_ink():
    ink = KINDS["codes"][0]
    assert 'fill="#ffffff">7<' in cells(0, 0, 30, 20, [[("7", ink)]], kind="codes")
