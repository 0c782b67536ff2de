"""Captioned sounds: every knob of the toy world is audible, readers survive damage, splits and crops keep their promises."""
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from audiogen_nb.data.clips import Clip, SoundFolder, collate, normalise_caption, random_crop, split_clips
from audiogen_nb.data.recordings import (PACKAGES, caption_table, chosen_packages, cut_pieces, fetch_recordings, find_row, read_cat, read_recordings,
                                    recording_credits, trim_silence)
from audiogen_nb.files import PACKAGE
from audiogen_nb.sound import level_db, peak_hz, save_audio
from audiogen_nb.data.toy import (TOY_KINDS, Knob, band, centre_hz, crest, knob_effect, late_share, onsets, place, render_toy,
                                  strike, sweep, toy_kind)
from audiogen_nb.data.toy_kinds import ToyWorld, toy_clip

RATE = 16000


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    "No test reads or fills the user's cache"
    monkeypatch.setenv("AUDIOGEN_NB_CACHE", str(tmp_path / "cache"))


# Measurements

def frames(x, ms):
    "RMS level in frames of `ms` milliseconds"
    n = RATE * ms // 1000
    return x[:len(x) // n * n].reshape(-1, n).square().mean(1).sqrt()


def active(x):
    "Seconds above a twentieth of the maximum level"
    e = frames(x, 10)
    return (e > 0.05 * e.max()).sum().item() / 100


def pace(low, high):
    "A measurement: the mean frequency of the level's fluctuation between `low` and `high` Hz"
    def measure(x):
        e = frames(x, 1)
        p = torch.fft.rfft(e - e.mean()).abs().square()
        f = torch.fft.rfftfreq(len(e), 1e-3)
        inside = (f >= low) & (f <= high)
        return ((p * f)[inside].sum() / p[inside].sum()).item()
    return measure


def glide(x):
    "How often the centre of the spectrum crosses its own median, in frames of 20 ms"
    p = torch.fft.rfft(x[:len(x) // 320 * 320].reshape(-1, 320)).abs().square()
    c = (p * torch.arange(161)).sum(1) / p.sum(1).clamp_min(1e-9)
    above = (c > c.median()).int()
    return int(above.diff().abs().sum())


# kind, knob, small value, large value, measurement, smallest and largest ratio large/small we accept
AUDIBLE = [
    ("bell", "pitch", 300.0, 600.0, peak_hz, 1.95, 2.05), ("bell", "times", 1, 4, onsets, 3, 4),
    ("bell", "ring", 0.3, 1.2, active, 1.4, 9),
    ("rain", "density", 60.0, 3000.0, crest, 0, 0.6),
    ("wind", "pitch", 200.0, 800.0, centre_hz, 3, 5), ("wind", "gusts", 0.3, 2.0, pace(0.2, 1.5), 1.1, 9),
    ("thunder", "closeness", 0.1, 10.0, centre_hz, 3, 99), ("thunder", "length", 0.6, 2.4, late_share, 2, 99),
    ("waves", "period", 1.2, 4.8, pace(0.1, 3), 0, 0.7), ("waves", "foam", 600.0, 4000.0, centre_hz, 2, 9),
    ("stream", "flow", 15.0, 120.0, crest, 0, 0.9), ("stream", "pitch", 500.0, 1400.0, centre_hz, 1.5, 3),
    ("fire", "crackle", 5.0, 60.0, crest, 0, 0.9),
    ("drip", "rate", 1.0, 4.0, onsets, 3.5, 4.5), ("drip", "pitch", 800.0, 1600.0, peak_hz, 1.9, 2.1),
    ("bubbles", "rate", 3.0, 12.0, onsets, 2, 4.5), ("bubbles", "pitch", 300.0, 600.0, centre_hz, 1.9, 2.1),
    ("splash", "size", 0.1, 0.6, active, 2, 9),
    ("beep", "pitch", 500.0, 2000.0, peak_hz, 3.99, 4.01), ("beep", "rate", 1.5, 6.0, onsets, 3.5, 4.5),
    ("siren", "rate", 0.5, 2.0, glide, 3, 5), ("siren", "pitch", 500.0, 1000.0, centre_hz, 1.95, 2.05),
    ("telephone", "pitch", 900.0, 1800.0, centre_hz, 1.9, 2.1), ("telephone", "times", 1, 3, onsets, 3, 3),
    ("horn", "pitch", 250.0, 500.0, centre_hz, 1.8, 2.2), ("horn", "times", 1, 3, onsets, 3, 3),
    ("horn", "length", 0.2, 0.6, active, 2, 4),
    ("buzzer", "pitch", 100.0, 200.0, peak_hz, 1.95, 2.05), ("buzzer", "length", 0.5, 2.0, active, 3.5, 4.5),
    ("whistle", "pitch", 700.0, 1400.0, centre_hz, 1.9, 2.1), ("whistle", "bend", 0.5, 2.0, centre_hz, 1.7, 2.3),
    ("whistle", "length", 0.4, 1.6, onsets, 0.2, 0.7),
    ("laser", "pitch", 1000.0, 2000.0, peak_hz, 1.8, 2.2), ("laser", "times", 1, 5, onsets, 5, 5),
    ("clock", "rate", 1.0, 4.0, onsets, 3.5, 4.5), ("clock", "pitch", 1000.0, 2000.0, centre_hz, 1.9, 2.1),
    ("footsteps", "rate", 1.0, 3.0, onsets, 1.5, 4), ("footsteps", "floor", 200.0, 3000.0, centre_hz, 5, 99),
    ("knock", "times", 2, 4, onsets, 2, 2), ("knock", "pitch", 150.0, 450.0, peak_hz, 2.5, 3.5),
    ("knock", "rate", 2.5, 5.0, late_share, 0, 0.5),
    ("applause", "crowd", 12.0, 400.0, crest, 0, 0.8),
    ("typing", "rate", 3.0, 9.0, onsets, 1.5, 3.5),
    ("drum", "pitch", 80.0, 160.0, peak_hz, 1.9, 2.1), ("drum", "rate", 1.5, 3.0, onsets, 1.6, 2.4),
    ("heartbeat", "rate", 0.8, 2.4, onsets, 1.5, 4),
    ("saw", "rate", 1.0, 3.0, onsets, 2.4, 3.6), ("saw", "teeth", 60.0, 240.0, pace(20, 400), 1.3, 9),
    ("engine", "speed", 20.0, 100.0, centre_hz, 1.4, 9), ("engine", "rough", 0.02, 0.3, crest, 1.05, 9),
    ("helicopter", "rate", 6.0, 18.0, pace(4, 30), 1.3, 5), ("helicopter", "where", 250.0, 2500.0, centre_hz, 4, 12),
    ("train", "rate", 0.8, 2.4, onsets, 1.4, 4),
    ("hum", "pitch", 100.0, 300.0, peak_hz, 2.9, 3.1), ("hum", "air", 0.05, 1.0, centre_hz, 1.5, 9),
    ("explosion", "size", 0.15, 1.2, active, 3, 20),
    ("glass", "pieces", 12, 90, active, 1.05, 9), ("glass", "pitch", 1500.0, 3000.0, centre_hz, 1.6, 2.2),
    ("ball", "pitch", 100.0, 200.0, peak_hz, 1.9, 2.1), ("ball", "spring", 0.6, 0.85, onsets, 1.4, 4),
    ("creak", "pitch", 400.0, 800.0, peak_hz, 1.7, 2.3), ("creak", "rate", 15.0, 60.0, pace(5, 200), 1.3, 9),
    ("bird", "pitch", 2000.0, 4000.0, centre_hz, 1.9, 2.1), ("bird", "rate", 1.5, 6.0, onsets, 3, 5),
    ("cricket", "pitch", 3000.0, 6000.0, peak_hz, 1.99, 2.01), ("cricket", "rate", 1.0, 4.0, onsets, 1.3, 5),
    ("frog", "pitch", 400.0, 800.0, peak_hz, 1.8, 2.2), ("frog", "rate", 1.0, 3.0, onsets, 2.2, 3.8),
    ("dog", "pitch", 200.0, 400.0, peak_hz, 1.8, 2.2), ("dog", "times", 1, 5, onsets, 5, 5),
]


def test_every_knob_is_in_the_table():
    assert {(k, name) for k, spec in TOY_KINDS.items() for name in spec.knobs} == {row[:2] for row in AUDIBLE}


@pytest.mark.parametrize("kind, knob, small, large, measure, least, most", AUDIBLE, ids=lambda v: v if isinstance(v, str) else "")
def test_knob_is_audible(kind, knob, small, large, measure, least, most):
    value = {v: sum(measure(toy_clip(kind, seed, level=-20.0, onset=0.05, **{knob: v}).audio[0]) for seed in range(5))
             for v in (small, large)}
    assert least <= value[large] / value[small] <= most, value


# The toy world

def test_captions_follow_the_knobs():
    for kind, spec in TOY_KINDS.items():
        for name, knob in spec.knobs.items():
            for words, field in ((knob.words, name), (knob.how, f"{name}_how")):
                if not words:
                    assert not any("{%s}" % field in c for c in spec.captions), (kind, field)
                    continue
                assert any("{%s}" % field in c for c in spec.captions), f"{kind}: no caption says {field}"
                for value, step in ((knob.low, words.split("|")[0]), (knob.high, words.split("|")[-1])):
                    said = " ".join(toy_clip(kind, 1, duration=0.3, **{name: value}).captions)
                    assert any(word in said for word in step.split("/")), (kind, name, value, said)


@pytest.mark.parametrize("kind", TOY_KINDS)
def test_captions_are_sentences_and_audio_is_sound(kind):
    for seed in range(12):
        clip = toy_clip(kind, seed, duration=(0.1, 0.5, 4.0, 10.0)[seed % 4], sample_rate=(16000, 8000, 24000)[seed % 3])
        assert clip.audio.dtype == torch.float32 and clip.audio.shape == (1, round(clip.seconds * clip.sample_rate))
        assert clip.audio.isfinite().all() and clip.audio.abs().max() < 1 and level_db(clip.audio) > -50
        assert 2 <= len(clip.captions) == len(set(clip.captions))
        for caption in clip.captions:
            assert caption == " ".join(caption.split()) and "{" not in caption and " a a" not in caption, caption
            assert not any(f" a {v}" in f" {caption}" for v in "aeiou"), caption


def test_toy_clip_depends_on_its_arguments():
    base = toy_clip("bird", 0)
    assert torch.equal(base.audio, toy_clip("bird", 0).audio)
    assert not torch.equal(base.audio, toy_clip("bird", 1).audio)
    assert toy_clip("bird", 0, duration=2.0).audio.shape == (1, 2 * RATE)
    assert toy_clip("bird", 0, sample_rate=8000).audio.shape == (1, 32000)
    quiet = toy_clip("bird", 0, onset=2.0).audio[0, :2 * RATE]
    assert quiet.abs().max() == 0
    for level in (-40.0, -20.0):
        assert abs(level_db(toy_clip("hum", 0, level=level).audio).item() - level) < 1
    assert "pitch 2222" in toy_clip("bird", 0, pitch=2222.0).source


def test_a_fixed_knob_leaves_the_other_draws_alone():
    free, fixed = toy_clip("knock", 3), toy_clip("knock", 3, times=4)
    part = lambda clip, name: [p for p in clip.source.split(", ") if p.startswith(name)]
    for name in ("pitch", "rate", "onset", "level"):
        assert part(free, name) == part(fixed, name)


@pytest.mark.parametrize("arguments, message", [
    (dict(kind="unicorn", seed=0), "kind must be one of"), (dict(kind="bell", seed=0, volume=2), "no knob 'volume'"),
    (dict(kind="bell", seed=0, duration=0.0), "at least 0.1 seconds"),
    (dict(kind="bell", seed=0, onset=4.0), "onset must lie"), (dict(kind="bell", seed=0, onset=-0.1), "onset must lie")])
def test_toy_clip_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        toy_clip(**arguments)


def test_world_is_balanced_and_random_access():
    world, n = ToyWorld(1000, seed=3, duration=0.5), len(TOY_KINDS)
    assert len(TOY_KINDS) >= 24 and len(world) == 1000
    assert all(len({world.kind(i) for i in range(b * n, (b + 1) * n)}) == n for b in range(3))
    assert [world.kind(i) for i in range(n)] != [world.kind(i) for i in range(n, 2 * n)]
    assert torch.equal(world[77].audio, ToyWorld(78, seed=3, duration=0.5)[77].audio)
    assert world[77].captions == ToyWorld(78, seed=3, duration=2.0)[77].captions
    assert not torch.equal(world[77].audio, ToyWorld(1000, seed=4, duration=0.5)[77].audio)
    assert ToyWorld(5, 0, sample_rate=8000)[0].sample_rate == 8000
    assert [c.name for c in world[-2:]] == [world[998].name, world[999].name]
    with pytest.raises(IndexError):
        world[1000]
    with pytest.raises(ValueError, match="n must be"):
        ToyWorld(0, seed=0)


def test_world_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ToyWorld(10, 0, duration=0.2)[3], random_crop(torch.ones(1, 100), 10, torch.Generator())
    assert torch.equal(before, torch.get_rng_state())


def test_same_sound_in_another_process():
    code = "from audiogen_nb.data.toy_kinds import ToyWorld; c = ToyWorld(9, 1)[4]; print(c.captions[0], c.audio.double().sum().item())"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", env={**os.environ, "PYTHONHASHSEED": s}).stdout
            for s in ("1", "2")}
    assert len(runs) == 1 and runs != {""}


def test_tools():
    assert peak_hz(sweep(torch.full((RATE,), 440.0), RATE)) == 440
    assert place(5, 1, torch.tensor([-1.0, 1, 4, 7]), torch.ones(2)).tolist() == [0, 1, 1, 0, 1]
    assert strike(RATE, 0.5, [100], 0.1, 2.0).abs().max() > 1.5 > strike(RATE, 0.5, [100], 0.1).abs().max()
    noise = torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    assert centre_hz(band(noise, RATE, 0, 300)) < 1000 < 3000 < centre_hz(band(noise, RATE, 3000, 8000))
    knob = Knob(1, 4, "once|twice|thrice|often")
    assert [knob.word(knob.words, v, torch.Generator()) for v in (1, 2, 3, 4, 9)] == ["once", "twice", "thrice", "often", "often"]


def test_measurements():
    t = torch.arange(RATE) / RATE
    steady = torch.sin(2 * torch.pi * 500 * t) + 2 * torch.sin(2 * torch.pi * 1000 * t)
    clicks = place(RATE, RATE, torch.arange(5) / 5, torch.hann_window(160))
    assert (onsets(clicks), onsets(clicks.repeat(2)), onsets(clicks[::2], 8000)) == (5, 10, 5)
    for level in (1.0, 0.1, 1e-3):      # the first two frames of a steady tone are equal up to rounding: one onset
        assert onsets(level * steady) == 1 and onsets(torch.full((RATE,), level)) == 1
    assert abs(centre_hz(steady) - 900) < 1 and abs(centre_hz(steady, 8000) - 450) < 1
    assert abs(crest(torch.sin(2 * torch.pi * 500 * t)) - 2 ** 0.5) < 1e-3
    assert abs(late_share(clicks.repeat(4)) - 0.75) < 1e-6 and abs(late_share(clicks.repeat(4), 2 * RATE) - 0.5) < 1e-6
    assert knob_effect(lambda x: float(len(x)), "bell", seeds=2, pitch=(300.0, 600.0), times=1) == (1.0, 1.0)
    least, most = knob_effect(lambda x: level_db(x).item(), "hum", seeds=3, level=(-20.0, -40.0))
    assert 1.9 < least <= most < 2.1


def test_registering_leaves_the_function_as_it_is():
    @toy_kind("a {tone} test; a {tone} trial", lasting=True, tone=Knob(1.0, 2.0, "low|high"))
    def trial(generator, n, sample_rate, *, tone=1.0):
        return tone * torch.ones(n)
    spec = TOY_KINDS.pop("trial")
    assert spec.synth is trial and spec.captions == ("a {tone} test", "a {tone} trial") and spec.lasting
    assert render_toy(spec, 0, tone=1.9).captions == ("a high test", "a high trial")


# Recordings

def wave_bytes(clip, folder):
    path = folder / "body.wav"
    save_audio(path, clip.audio, clip.sample_rate, overwrite=True)
    return path.read_bytes()


def cat_bytes(entries):
    "An OpenTTD sound set of (description, WAVE bytes)"
    at, table, body = 8 * len(entries), b"", b""
    for i, (description, wave) in enumerate(entries):
        text = description.encode() + b"\0"
        offset = (at + len(body)) | (0x80000000 if i == 0 else 0)
        table += offset.to_bytes(4, "little") + len(wave).to_bytes(4, "little")
        body += bytes([len(text)]) + text + wave
    return table + body


CREDIT = '"Splat". Original by "Someone". License: Creative Commons Zero 1.0.'


@pytest.fixture
def tree(tmp_path):
    "The five packages in miniature"
    root = tmp_path / "recordings"
    def put(package, name, clip):
        path = root / package / PACKAGES[package].folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return save_audio(path, clip.audio, clip.sample_rate)
    put("widelands-data", "sound/animals/frog.ogg", toy_clip("frog", 1))
    put("widelands-data", "sound/new/unknown.ogg", toy_clip("frog", 2))
    put("widelands-data", "music/intro.ogg", toy_clip("bell", 2))
    long = toy_clip("fire", 1, duration=25.0, sample_rate=8000)
    put("wesnoth-1.16-data", "data/core/sounds/ambient/campfire.ogg", long)
    put("tuxpaint-stamps-default", "animals/mammals/dogs/dog.ogg", toy_clip("dog", 1))
    put("tuxpaint-stamps-default", "animals/mammals/dogs/dog_desc.ogg", toy_clip("dog", 2))
    put("tuxpaint-stamps-default", "animals/mammals/elephant_desc_fr.wav", toy_clip("dog", 2))
    silent = Clip(torch.zeros(1, RATE), RATE, ("x",), "x")
    crow = put("sonic-pi-samples", "misc_crow.flac", silent)
    (crow.parent / "misc_burp.flac").write_bytes(b"fLaC damaged")
    put("sonic-pi-samples", "elec_tick.flac", Clip(torch.full((1, 500), 0.1), RATE, ("x",), "x"))
    set_path = root / "openttd-opensfx" / PACKAGES["openttd-opensfx"].folder / "opensfx.cat"
    set_path.parent.mkdir(parents=True)
    set_path.write_bytes(cat_bytes([('"Mill". By A. License: X.', wave_bytes(toy_clip("engine", 1), tmp_path)),
                                    ('"Empty". By B.', b""), (CREDIT, wave_bytes(toy_clip("splash", 1), tmp_path))]))
    return root


def test_cat_round_trip(tmp_path):
    entries = [("first", b"abc"), ("", b""), ("third é", b"x" * 300)]
    (tmp_path / "a.cat").write_bytes(cat_bytes(entries))
    assert [(e.description, e.wave) for e in read_cat(tmp_path / "a.cat")] == entries
    assert [e.index for e in read_cat(tmp_path / "a.cat")] == [0, 1, 2]


@pytest.mark.parametrize("damage, message", [
    (lambda b: b[:-1], "cut short"), (lambda b: b[:20], "cut short"), (lambda b: b"", "not an OpenTTD"),
    (lambda b: b"RIFFwave" + b, "not an OpenTTD"), (lambda b: bytes(64), "not an OpenTTD")])
def test_damaged_cat_is_refused(tmp_path, damage, message):
    (tmp_path / "a.cat").write_bytes(damage(cat_bytes([("a", b"1" * 50), ("b", b"2" * 50)])))
    with pytest.raises(ValueError, match=message):
        read_cat(tmp_path / "a.cat")


def test_caption_table_is_sound():
    rows = caption_table()
    assert {r.package for r in rows} == set(PACKAGES)
    assert len({(r.package, r.pattern) for r in rows}) == len(rows), "a pattern appears twice"
    for row in rows:
        if row.kind == "-":
            assert not row.captions, row
            continue
        assert 3 <= len(row.captions) <= 6 and len(set(row.captions)) == len(row.captions), row
        for caption in row.captions:
            assert caption == caption.strip().lower() and 0 < len(caption.split()) <= 12, caption
            assert not any(f" a {v}" in f" {caption}" for v in "aeio"), caption
    counted = Counter(r.kind for r in rows)
    assert len(counted) >= 40 and set(counted) & set(TOY_KINDS) >= {"bell", "bird", "dog", "fire", "saw", "wind"}


def test_first_matching_row_counts():
    assert find_row("sonic-pi-samples", "drum_cymbal_pedal.flac").pattern == "drum_cymbal_pedal.flac"
    assert find_row("sonic-pi-samples", "drum_cymbal_soft.flac").pattern == "drum_cymbal_*.flac"
    assert find_row("sonic-pi-samples", "no such thing") is None
    assert find_row("tuxpaint-stamps-default", "no such thing").kind == "-"


def test_read_recordings(tree):
    with pytest.warns(UserWarning) as caught:
        clips = read_recordings(tree)
    assert len(caught) == 1
    message = str(caught[0].message)
    for name in ("misc_burp.flac", "01 Empty", "misc_crow.flac", "elec_tick.flac", "sound/new/unknown.ogg"):
        assert name in message
    assert "unreadable" in message and "silent" in message and "shorter" in message and "desc" not in message
    names = [c.name for c in clips]
    assert names == ["openttd-opensfx/00 Mill", "openttd-opensfx/02 Splat", "widelands-data/sound/animals/frog.ogg",
                     *(f"wesnoth-1.16-data/data/core/sounds/ambient/campfire.ogg#{i}" for i in range(3)),
                     "tuxpaint-stamps-default/animals/mammals/dogs/dog.ogg"]
    assert all(c.sample_rate == RATE and c.seconds <= 10 and c.audio.dtype == torch.float32 for c in clips)
    assert len({c.group for c in clips}) == 5 and clips[2].kind == "frog" and "a dog barks" in clips[-1].captions
    assert clips[1].source.endswith(CREDIT)


def test_cache_is_used_and_follows_its_inputs(tree, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first = read_recordings(tree)
        assert len(list((tmp_path / "cache").glob("recordings-*"))) == 10, "a pair for each package"
        made = sorted((tmp_path / "cache").glob("recordings-widelands-data-*"))
        assert [p.suffix for p in made] == [".jsonl", ".safetensors"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            second = read_recordings(str(tree))
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.audio, b.audio) and {**vars(a), "audio": 0} == {**vars(b), "audio": 0}
        for file, damage in zip(made, (b'{"audio": 5}\n', b"cut")):
            file.write_bytes(damage)
            assert torch.equal(read_recordings(tree)[0].audio, first[0].audio), "a damaged cache is built again"
        assert read_recordings(tree, sample_rate=8000)[0].audio.shape[-1] == -(-first[0].audio.shape[-1] // 2)
        frog, dog = (tree / p / PACKAGES[p].folder / n for p, n in (("widelands-data", "sound/animals/frog.ogg"),
                                                                     ("tuxpaint-stamps-default", "animals/mammals/dogs/dog.ogg")))
        size = max(frog.stat().st_size, dog.stat().st_size)
        for path in (frog, dog):                                       # equally long files: the other sound, the same size
            path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        before = read_recordings(tree)[2].audio
        frog.write_bytes(dog.read_bytes())
        assert read_recordings(tree)[2].audio.shape != before.shape or not torch.equal(read_recordings(tree)[2].audio, before)
        shutil.rmtree(tree / "openttd-opensfx")
        assert len(read_recordings(tree)) == len(first) - 2
    with pytest.raises(FileNotFoundError, match="audiogen-nb fetch-recordings"):
        read_recordings(tmp_path / "nothing here")


def test_credits_name_every_author(tree):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clips = read_recordings(tree)
    text = recording_credits([*clips, toy_clip("bell", 0)])
    assert CREDIT in text and "CC BY-SA 3.0" in text and "GPL-2+" in text and "sonic-pi" not in text and "toy" not in text
    assert recording_credits([]) == ""


def test_fetch_needs_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="apt-get and dpkg-deb"):
        fetch_recordings(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def mirror(tree, tmp_path, monkeypatch):
    "A pretended apt-get that serves packages built from the tree"
    if not shutil.which("dpkg-deb"):
        pytest.skip("needs dpkg-deb")
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for package in chosen_packages():
        (tree / package / "DEBIAN").mkdir()
        (tree / package / "DEBIAN" / "control").write_text(
            f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: test\n", encoding="utf-8")
        copyright = tree / package / "usr/share/doc" / package / "copyright"
        copyright.parent.mkdir(parents=True)
        copyright.write_text("free", encoding="utf-8")
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree / package, shelf / f"{package}.deb"], check=True,
                       capture_output=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {tools}/log\ncp "{shelf}/$2.deb" . || exit 100\n', encoding="utf-8")
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return shelf


def test_fetch_unpacks_only_sounds(mirror, tmp_path):
    dest = tmp_path / "fetched"
    assert fetch_recordings(dest) == dest
    files = {str(p.relative_to(dest)) for p in dest.rglob("*") if p.is_file()}
    assert sum(f.endswith("copyright") for f in files) == 5
    assert any(f.endswith("opensfx.cat") for f in files) and any(f.endswith("frog.ogg") for f in files)
    assert not any("_desc" in f or "music" in f or "DEBIAN" in f for f in files)
    assert sorted(p.name for p in dest.iterdir()) == sorted(chosen_packages())
    log = (tmp_path / "tools" / "log").read_text(encoding="utf-8")
    fetch_recordings(dest)
    assert (tmp_path / "tools" / "log").read_text(encoding="utf-8") == log, "what is there is not fetched again"


def test_fetch_leaves_nothing_half_done(mirror, tmp_path):
    dest = tmp_path / "fetched"
    (mirror / "wesnoth-1.16-data.deb").write_bytes(b"!<arch>\nbroken")
    with pytest.raises((ValueError, OSError)):
        fetch_recordings(dest)
    assert sorted(p.name for p in dest.iterdir()) == ["openttd-opensfx", "widelands-data"]
    (mirror / "wesnoth-1.16-data.deb").unlink()
    with pytest.raises(FileNotFoundError, match="could not download wesnoth"):
        fetch_recordings(dest)


def test_trim_and_cut():
    x = torch.zeros(1, RATE)
    x[0, 8000:8960] = 0.5
    assert trim_silence(x, RATE).shape[-1] == 960 + 2 * 800
    assert trim_silence(x, RATE, threshold=0.0).shape[-1] == RATE
    assert torch.equal(trim_silence(torch.ones(1, 50), RATE), torch.ones(1, 50))
    pieces = cut_pieces(torch.arange(23.0)[None], 10)
    assert max(p.shape[-1] for p in pieces) <= 10 and torch.equal(torch.cat(pieces, -1)[0], torch.arange(23.0))


# Splits, folders, crops, batches

def some_clips(kind, n):
    return [Clip(torch.zeros(1, 1), 1, ("x",), kind, name=f"{kind}{i}", group=f"{kind}{i // 2}") for i in range(n)]


def test_split_by_group_within_kinds():
    clips = some_clips("a", 80) + some_clips("b", 10) + some_clips("c", 4)
    kept, aside = split_clips(clips, 0.1)
    assert Counter(c.kind for c in aside) == {"a": 8, "b": 2} and len(kept) + len(aside) == len(clips)
    assert not {c.group for c in kept} & {c.group for c in aside}
    assert {c.name for c in split_clips(clips[:80], 0.1)[1]} == {c.name for c in aside if c.kind == "a"}
    assert split_clips(clips, 0.0) == (clips, [])
    assert len(split_clips(clips, 0.5)[1]) > len(aside)
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match="held_out"):
            split_clips(clips, wrong)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "sounds"
    (root / "weather").mkdir(parents=True)
    for i, name in enumerate(["a_big-bell.wav", "weather/rain 2.flac", "horn.ogg"]):
        save_audio(root / name, toy_clip("rain", i, duration=0.5).audio, RATE)
    return root


def test_folder_without_manifest(folder):
    (folder / "horn.txt").write_text("a car horn\n\na honk\n", encoding="utf-8")
    (folder / "notes.md").write_text("not a sound", encoding="utf-8")
    clips = SoundFolder(folder)
    assert [(c.name, c.captions, c.kind) for c in clips] == [
        ("a_big-bell.wav", ("a big bell",), "other"), ("horn.ogg", ("a car horn", "a honk"), "other"),
        ("weather/rain 2.flac", ("rain",), "weather")]
    assert SoundFolder(folder, sample_rate=8000)[0].audio.shape == (1, 4000)


@pytest.mark.parametrize("name, text", [
    ("m.csv", "caption2,file,kind,caption\na gong,a_big-bell.wav,bell,a bell\n,horn.ogg,,a horn\n"),
    ("m.jsonl", '{"file": "a_big-bell.wav", "captions": ["a gong", "a bell"], "kind": "bell"}\n\n{"file": "horn.ogg", "caption": "a horn"}\n')])
def test_folder_with_manifest(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    clips = SoundFolder(folder, manifest=folder / name)
    assert [(c.captions, c.kind) for c in clips] == [(("a gong", "a bell"), "bell"), (("a horn",), "other")]
    (folder / name).rename(folder / f"manifest{Path(name).suffix}")
    with pytest.warns(UserWarning, match="rain 2.flac .not in manifest"):
        assert len(SoundFolder(folder)) == 2, "a file called manifest is found"


def test_folder_names_what_it_skips(folder):
    (folder / "broken.wav").write_bytes(b"RIFF????")
    save_audio(folder / "silent.wav", torch.zeros(1, RATE), RATE)
    with pytest.warns(UserWarning, match=r"skipped 2 of 5 .*broken.wav \(unreadable\), silent.wav \(silent\)") as caught:
        assert len(SoundFolder(folder)) == 3
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="skipped 1 of 5"):
        quick = SoundFolder(folder, scan=False)
    assert len(quick) == 4


def test_folder_errors(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no usable sound"):
        SoundFolder(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        SoundFolder(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no manifest"):
        SoundFolder(folder, manifest=folder / "absent.csv")
    (folder / "m.csv").write_text("file,caption\nhorn.ogg,x\ngone.wav,y\nlost.wav,z\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=r"m.csv names 2 files.*gone.wav \(line 3, not there\), lost.wav \(line 4"):
        SoundFolder(folder, manifest=folder / "m.csv")
    (folder / "notes.txt").write_text("file,caption", encoding="utf-8")
    with pytest.raises(ValueError, match="the name of a manifest ends in .csv"):
        SoundFolder(folder, manifest="notes.txt")


TABLES_READ = {
    "usual": b"file,caption\nhorn.ogg,a horn\n",
    "byte-order mark, Windows line ends": b"\xef\xbb\xbffile,caption\r\nhorn.ogg,a horn\r\n",
    "line ends of old": b"file,caption\rhorn.ogg,a horn\r",
    "case and blanks": b' File , Caption \n horn.ogg , "a horn" \n',
    "AudioFolder": b"file_name,text\nhorn.ogg,a horn\n",
    "AudioCraft": b"path,description\nhorn.ogg,a horn\n",
    "semicolons": b"file;caption\nhorn.ogg;a horn\n", "tabs": b"file\tcaption\nhorn.ogg\ta horn\n",
    "quotes": b'"file","caption"\n"horn.ogg","a horn"\n', "blank rows": b"\nfile,caption\n,\n\nhorn.ogg,a horn\n\n",
    "other columns": b"id,file,length,caption,licence\n1,horn.ogg,2,a horn,free\n",
    "Windows path": b"file,caption\n.\\horn.ogg,a horn\n",
}


@pytest.mark.parametrize("data", TABLES_READ.values(), ids=TABLES_READ)
def test_tables_as_people_write_them(folder, data):
    (folder / "m.csv").write_bytes(data)
    assert [(c.name, c.captions, c.kind) for c in SoundFolder(folder, manifest="m.csv")] == [("horn.ogg", ("a horn",), "other")]


def test_lines_of_json_as_people_write_them(folder):
    rows = [{"File_Name": "horn.ogg", "Text": "a horn, then rain", "caption": None, "label": 3},
            {"audio": {"path": str(folder / "a_big-bell.wav"), "bytes": None}, "captions": ["a bell\u2028rings", "", None]}]
    (folder / "metadata.jsonl").write_text("\ufeff" + "\r\n\r\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.warns(UserWarning, match=r"skipped 1 of 3 .*\(1 .flac\): weather/rain 2.flac \(not in metadata.jsonl\)"):
        clips = SoundFolder(folder)
    assert [(c.name, c.captions, c.kind) for c in clips] == [
        ("horn.ogg", ("a horn, then rain",), "3"), ("a_big-bell.wav", ("a bell rings",), "other")]


TABLES_REFUSED = {
    "more cells": (b"file,caption\nhorn.ogg,a horn, then rain\n", 2), "fewer cells": (b"file,kind,caption\n\nhorn.ogg,a\n", 3),
    "no caption": (b"file,caption\nhorn.ogg,x\nhorn.ogg,\n", 3), "no file": (b"file,caption\n,x\n", 2),
    "unknown column": (b"name,caption\nhorn.ogg,x\n", 1), "no rows": (b"file,caption\n", 1), "nothing": (b"", 1),
    "open quote": (b'file,caption\nhorn.ogg,x\na.wav,"x\nb.wav,y\n', 3), "kinds": (b"file,caption,kind\nhorn.ogg,x,a\nhorn.ogg,y,b\n", 3),
    "UTF-16": ("file,caption\nhorn.ogg,x\n".encode("utf-16"), 1), "UTF-16, no mark": ("file,caption\n".encode("utf-16-le"), 1),
    "latin-1": ("file,caption\nhorn.ogg,x\nhorn.ogg,T\u00fcr\n".encode("latin-1"), 3),
}
LINES_REFUSED = {
    "invalid": (b'{"file": "horn.ogg", "caption": "x"}\n{"file": "horn.ogg", \n', 2), "list": (b"[1]\n", 1),
    "number": (b'\n{"file": "horn.ogg", "caption": 3}\n', 2), "kind": (b'{"file": "horn.ogg", "caption": "x", "kind": []}\n\n{}', 3),
    "surrogate": (b'{"file": "horn.ogg", "caption": "\\ud800"}\n', 1), "file": (b'{"file": 3, "caption": "x"}\n', 1),
    "zero": (b'{"file": "a\\u0000b", "caption": "x"}\n', 1), "deep": (b"[" * 100000, 1),
    "latin-1": (b'{"file": "horn.ogg", "caption": "T\xfcr"}\n', 1),
}


@pytest.mark.parametrize("name, data, line", [
    *(pytest.param("m.csv", *v, id=k) for k, v in TABLES_REFUSED.items()), *(pytest.param("m.jsonl", *v, id=k) for k, v in LINES_REFUSED.items())])
def test_refusals_name_file_and_line(folder, name, data, line):
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=rf"{name}, line {line}: "):
        SoundFolder(folder, manifest=name)


@pytest.mark.parametrize("data, line", [(b"ok\nT\xfcr\n", 2), ("a horn".encode("utf-16"), 1), (b" \n", 1)])
def test_a_text_beside_a_sound_is_checked(folder, data, line):
    (folder / "horn.txt").write_bytes(data)
    with pytest.raises(ValueError, match=f"horn.txt, line {line}: "):
        SoundFolder(folder)
    (folder / "horn.txt").write_bytes(b"\xef\xbb\xbfa horn\r\n")
    assert SoundFolder(folder)[1].captions == ("a horn",)


def test_paths_in_a_table(folder, tmp_path, monkeypatch):
    "Absolute ones, ones outside the folder, a table elsewhere, rows of one sound"
    outside = save_audio(tmp_path / "out.wav", toy_clip("bell", 1, duration=0.3).audio, RATE)
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "t.csv").write_text(f"file,caption\n{folder}/horn.ogg,x\n{outside},y\nhorn.ogg,z\nweather/../horn.ogg,x\n", encoding="utf-8")
    clips = SoundFolder(folder, manifest=lists / "t.csv")
    assert [(c.name, c.captions) for c in clips] == [("horn.ogg", ("x", "z")), (outside.as_posix(), ("y",))]
    monkeypatch.chdir(tmp_path)
    assert [c.name for c in SoundFolder("sounds", manifest="lists/t.csv")] == [c.name for c in clips]


def test_tables_in_subfolders(folder):
    (folder / "weather" / "Metadata.CSV").write_text("file_name,text\nrain 2.flac,rain falls\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="skipped 2 of 3 .*horn.ogg .not in weather/Metadata.CSV"):
        assert [(c.name, c.captions) for c in SoundFolder(folder)] == [("weather/rain 2.flac", ("rain falls",))]
    (folder / "weather" / "manifest.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="weather has two tables, .* pass one"):
        SoundFolder(folder)


def test_a_table_that_cannot_be_read_is_named(folder):
    (folder / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match="metadata.parquet .a table that cannot be read"):
        assert len(SoundFolder(folder)) == 3


def test_every_format_is_read_or_named(tmp_path):
    import soundfile
    audio = toy_clip("hum", 0, duration=0.3).audio[0].numpy()
    for name, options in {"a.aiff": {}, "b.aif": {"format": "AIFF"}, "c.au": {}, "d.W64": {"format": "W64"}, "e.caf": {}, "f.oga": {"format": "OGG"},
                          "g.opus": {"format": "OGG", "subtype": "OPUS"}, "h.mp3": {"format": "MP3"}, "i.rf64": {}, "j.snd": {"format": "AU"}}.items():
        soundfile.write(tmp_path / name, audio, RATE, **options)
    assert len(SoundFolder(tmp_path)) == 10
    for suffix in "m4a aac wma mp4 webm amr m4a2 MOV raw".split():
        (tmp_path / f"x.{suffix}").write_bytes(bytes(900))
    (tmp_path / "y.m4a").write_bytes(bytes(900))
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / "._a.wav").write_bytes(b"\0\5\x16\7")
    with pytest.warns(UserWarning) as caught:
        assert len(SoundFolder(tmp_path)) == 10
    said = str(caught[0].message)
    assert len(caught) == 1 and "skipped 12 of 22" in said and "2 .m4a" in said and "1 .mov" in said and "m4a2" not in said
    for name in ("x.m4a (.m4a cannot be read here; convert", "folder.wav (a folder)", "gone.wav (a dangling link)", "._a.wav (a note of macOS", "x.raw ("):
        assert name in said
    (tmp_path / "manifest.csv").write_text("file,caption\na.aiff,x\ny.m4a,y\n", encoding="utf-8")
    with pytest.warns(UserWarning, match=r"y.m4a \(.m4a cannot be read"):
        assert [c.name for c in SoundFolder(tmp_path)] == ["a.aiff"]


def test_hidden_files_are_left_out_and_links_are_followed(folder, tmp_path):
    (folder / ".ipynb_checkpoints").mkdir()
    shutil.copy(folder / "horn.ogg", folder / ".ipynb_checkpoints" / "horn-checkpoint.ogg")
    shutil.copy(folder / "horn.ogg", folder / ".horn.ogg")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(folder / "horn.ogg", tmp_path / "elsewhere" / "honk.ogg")
    (folder / "horns").symlink_to(tmp_path / "elsewhere")
    (folder / "weather" / "again").symlink_to(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [c.name for c in SoundFolder(folder)] == ["a_big-bell.wav", "horn.ogg", "horns/honk.ogg", "weather/rain 2.flac"]


def test_names_of_no_words_and_of_odd_bytes(tmp_path):
    "A sound whose caption would be 'other' is named; a name that is not UTF-8 can be printed, split and kept"
    odd = save_audio(tmp_path / "a.wav", toy_clip("hum", 0, duration=0.3).audio, RATE)
    shutil.copy(odd, tmp_path / "0001.wav")
    shutil.copy(odd, os.fsencode(tmp_path) + b"/b\xe9ll.wav")
    with pytest.warns(UserWarning) as caught:
        clips = list(SoundFolder(tmp_path))
    said = [str(w.message) for w in caught]
    assert "1 sounds in" in said[-1] and "have no caption but 'other'" in said[-1] and "0001.wav" in said[-1]
    assert [c.captions for c in clips][:2] == [("other",), ("a",)]
    kept = json.dumps([*said, *[(c.name, c.source, c.kind) for c in clips]], ensure_ascii=False).encode("utf-8")
    assert rb"b\\udce9ll" in kept and split_clips(clips)


def test_the_package_names_what_most_programs_need():
    import audiogen_nb.data as data
    from audiogen_nb.data import clips
    machinery = {"SOUND_SUFFIXES", "read_utf8"}                                     # for other readers of tables
    assert set(data.__all__) == set(clips.__all__) - machinery | {"ClipRef", "SoundSet", "DATASETS", "read_dataset"}
    assert data.SoundFolder is SoundFolder and {getattr(data, name).__module__ for name in ("ClipRef", "read_dataset")} \
        == {"audiogen_nb.data.refs", "audiogen_nb.data.datasets"}


@pytest.mark.parametrize("text, normal", [
    ("A Dog BARKS!", "a dog barks"), ("rain, wind & thunder (3x)", "rain wind thunder x"), ("the bird's song", "the birds song"),
    ("  a\tb\n c ", "a b c"), ("snake_case-name", "snake case name"), ("Frösche im März", "frösche im märz"), ("42", "")])
def test_normalise_caption(text, normal):
    assert normalise_caption(text) == normal == normalise_caption(normal)


def test_random_crop():
    g = torch.Generator().manual_seed(0)
    x = torch.zeros(1, 10000)
    x[0, 7000:7500] = torch.randn(500, generator=g)
    assert sum(random_crop(x, 1000, g).abs().max() > 0 for _ in range(200)) > 180
    starts = {random_crop(torch.arange(1, 10001).float()[None], 1000, g)[0, 0].item() for _ in range(200)}
    assert len(starts) > 100 and min(starts) >= 1 and max(starts) <= 9001
    assert torch.equal(random_crop(x, 10000, g), x)
    padded = [random_crop(torch.ones(1, 3), 10, g) for _ in range(100)]
    assert {int(p[0].argmax()) for p in padded} == set(range(8)) and all(p.shape == (1, 10) and p.sum() == 3 for p in padded)
    assert random_crop(torch.zeros(1, 50), 10, g).shape == (1, 10), "silence has crops too"
    assert random_crop(x, 100).shape == (1, 100), "without a generator"
    with pytest.raises(ValueError, match="n_samples"):
        random_crop(x, 0, g)
    with pytest.raises(ValueError, match="NaN"):
        random_crop(torch.full((1, 9), float("nan")), 4, g)


def test_collate():
    audio, captions = collate([(torch.ones(1, 4), "a"), (torch.ones(1, 6), "b")])
    assert audio.shape == (2, 1, 6) and audio.sum() == 10 and captions == ["a", "b"]
    with pytest.raises(ValueError, match="at least one"):
        collate([])


def test_table_ships_beside_the_module():
    assert (PACKAGE / "recordings.csv").is_file()


@pytest.mark.parametrize("kind", TOY_KINDS)
def test_a_toy_is_the_same_sound_whatever_the_number_of_threads(kind):
    n_threads, sounds = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            sounds.append(toy_clip(kind, 3).audio)
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(n_threads)
    assert torch.equal(sounds[0], sounds[1]) and torch.equal(sounds[0], sounds[2])
