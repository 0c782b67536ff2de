"""Does an ear recognise what was asked for: prompts and their words, right answers, chance, ceilings, the report, the command."""
import json
import math
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import audiogen_nb.judge.recognition as rec
from audiogen_nb.cli import main
from audiogen_nb.data.clips import Clip
from audiogen_nb.data.recordings import caption_table
from audiogen_nb.files import read_json
from audiogen_nb.judge.adherence import caption_words, content_stems, read_prompts
from audiogen_nb.judge.embedding import FunctionEmbedder
from audiogen_nb.judge.recognition import (
    Asked, RecordingShelf, asked_kind, chance_of_both, clip_stems, confusion_counts, evaluate_prompts, expected_clips, judge_recognition, mixture_clips,
    judge_sounds, read_asked, real_answers, recognition_rows)
from audiogen_nb.judge.scores import chance_of_hit, nearest_clips, nearest_hits

RATE = 16_000
TONES = {"dog": 300.0, "bell": 900.0, "bird": 2500.0, "rain": 6000.0}       # Hz: a kind is a pitch


def tone(hz, number=0, seconds=1.0):
    t = torch.arange(round(seconds * RATE)) / RATE
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(number))
    return (0.5 * torch.sin(2 * math.pi * hz * (1 + 0.01 * number) * t) + 0.01 * noise)[None]


def pitch_ear():
    "Hears how much power lies around each of the four pitches"
    def hear(audio):
        power = torch.fft.rfft(audio).abs().square()
        f = torch.arange(power.shape[1]) * RATE / audio.shape[1]
        bands = torch.stack([(power * (-((f / hz).clamp_min(1e-6).log() / 0.15) ** 2).exp()).sum(1) for hz in TONES.values()], 1)
        return torch.nn.functional.normalize(bands.sqrt(), dim=1)
    return FunctionEmbedder("pitch", hear, RATE, 4, "1", seconds=1.0)


def make_clips(n=8):
    say = {"dog": "a dog barks", "bell": "a bell rings", "bird": "a bird sings", "rain": "rain falls"}
    return [Clip(tone(hz, i), RATE, (say[kind],), kind, name=f"x/{kind}/take_{i}.wav", group=f"x/{kind}/{i}")
            for kind, hz in TONES.items() for i in range(n)]


@pytest.fixture(scope="module")
def shelf():
    return RecordingShelf(pitch_ear(), make_clips())


def ask(wording, prompt, *words):
    return Asked("test", wording, prompt, tuple(tuple(group.split()) for group in words))


ASKED = [ask("plain", "a dog barks", "dog"), ask("plain", "a bell rings", "bell"), ask("reworded", "a hound", "dog wolf"),
         ask("pair", "a dog barks and a bird sings", "dog", "bird"), ask("plain", "a horse neighs", "horse")]


# The committed prompts

def test_the_committed_prompts_are_what_the_chapter_says():
    report, validation = read_asked(), read_asked(use="validation")
    counts = lambda asked: [sum(one.wording == wording for one in asked) for wording in rec.WORDINGS]
    assert counts(report) == [20, 20, 20] and all(n >= least for n, least in zip(counts(validation), (20, 10, 10)))
    assert not {one.prompt for one in report} & {one.prompt for one in validation}
    assert len(read_asked(use=None)) == len(report) + len(validation)
    own = read_prompts()
    for wording, theirs in (("plain", "trained"), ("reworded", "reworded")):
        assert [one.prompt for one in report if one.wording == wording] == [p.text for p in own if p.wording == theirs]


def test_what_the_wording_claims_is_true():
    for one in read_asked(use=None):
        words = content_stems(one.prompt)
        if one.wording == "plain":
            assert words <= caption_words(), one
        if one.wording == "reworded":
            assert not words & caption_words(), one


def test_words_are_fair_by_the_caption_table_and_the_default_recordings_have_both_of_a_pair():
    rows = [row for row in caption_table() if row.kind != "-"]
    table = [Clip(torch.zeros(1, 1), RATE, row.captions, row.kind, name=f"{row.package}/{row.pattern}") for row in rows]
    asked = read_asked(use=None)
    share = expected_clips(asked, table).double().mean(2)
    assert (share > 1 / 1000).all() and (share < 0.25).all()
    first = {"openttd-opensfx", "widelands-data", "wesnoth-1.16-data", "tuxpaint-stamps-default", "sonic-pi-samples"}
    pairs = [one for one in asked if one.wording == "pair"]
    default = expected_clips(pairs, [clip for clip, row in zip(table, rows) if row.package in first])
    assert default.any(2).all()
    assert (default[0] & ~default[1]).any(1).all() and (default[1] & ~default[0]).any(1).all(), "two sounds, not one"


@pytest.mark.parametrize("text, says", [
    ("", "lacks the column 'prompt'"),
    ("wording,prompt\nplain,a dog\n", "lacks the column 'words'"),
    ("wording,prompt,words\n", "no prompts"),
    ("wording,prompt,words\nloud,a dog,dog\n", "line 2: wording must be one of plain, reworded, pair, got 'loud'"),
    ("wording,prompt,words\nplain,a dog,dog\nplain,,dog\n", "line 3: the prompt is empty"),
    ("wording,prompt,words\nplain,a dog,\n", "line 2: words must be alternatives"),
    ("wording,prompt,words\nplain,a dog,the\n", "line 2: words must be alternatives"),
    ("wording,prompt,words\nplain,a dog,dog + bell\n", "line 2: words must be alternatives"),
    ("wording,prompt,words\npair,a dog and a bell,dog bell\n", "for a pair two groups"),
    ("wording,prompt,words\npair,a dog and a bell,dog + \n", "for a pair two groups"),
    ("wording,prompt,words\nplain,a dog, a big one,dog\n", "as many cells as the header"),
    ("wording,prompt,words\nplain,a dog\n", "as many cells as the header"),
    ("wording,prompt,words\nplain,a dog,dog\nplain,a dog,hound\n", "'a dog' twice"),
])
def test_a_file_of_prompts_that_is_wrong(text, says, tmp_path):
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="mine.csv") as caught:
        read_asked(tmp_path / "mine.csv", None)
    assert says in str(caught.value)


def test_files_of_one_s_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('use,wording,prompt,words\na,plain,"a dog, far away",Dogs barking\nb,pair,x,horn + bell\n', encoding="utf-8-sig")
    assert read_asked(path, "a") == [Asked("a", "plain", "a dog, far away", (("Dogs", "barking"),))]
    assert [one.use for one in read_asked(path, None)] == ["a", "b"]
    with pytest.raises(ValueError, match="no prompts for use 'c'; it has a, b"):
        read_asked(path, "c")
    with pytest.raises(FileNotFoundError, match="no file of prompts"):
        read_asked(tmp_path / "none.csv")
    path.write_bytes(b"wording,prompt,words\nplain,caf\xe9,dog\n")
    with pytest.raises(ValueError, match="UTF-8"):
        read_asked(path, None)


# Right answers and chance

def test_only_a_recording_s_own_name_counts_and_words_count_by_their_stems():
    clip = Clip(torch.zeros(1, 1), RATE, ("church bells ringing",), "bell", name="ocean-data/wav/horse/Big Dogs-2.wav#3")
    assert {"church", "bel", "ring", "big", "dog"} == clip_stems(clip)
    found = expected_clips([ask("plain", "x", word) for word in ("dogs", "rings", "wave", "ocean", "horse", "bells")], [clip])
    assert found[0, :, 0].tolist() == [True, True, False, False, False, True] and torch.equal(*found)


@pytest.mark.parametrize("seed", range(6))
def test_chance_of_both_is_the_share_of_all_draws(seed):
    g = torch.Generator().manual_seed(seed)
    right, allowed = torch.rand(2, 1, 9, generator=g) < 0.35, torch.rand(1, 9, generator=g) < 0.8
    places, rows = allowed[0].nonzero()[:, 0].tolist(), right[:, 0] & allowed[0]
    for k in (1, 2, 5, 9):
        draws = list(combinations(places, min(k, len(places))))
        share = sum(all(row[list(draw)].any() for row in rows) for draw in draws) / len(draws)
        luck = chance_of_both(right, allowed, k).item()
        assert math.isnan(luck) if not rows.any(1).all() else abs(luck - share) < 1e-12
    single = right[:1].expand(2, -1, -1)
    for k in (1, 5):
        assert torch.allclose(chance_of_both(single, allowed, k), chance_of_hit(right[0], allowed, k), equal_nan=True)


def test_nearest_clips_are_in_order_and_allowed():
    g = torch.Generator().manual_seed(0)
    shelf, sounds = torch.randn(12, 5, generator=g), torch.randn(3, 5, generator=g)
    allowed = torch.rand(3, 12, generator=g) < 0.7
    cosines, found = nearest_clips(sounds, shelf, allowed, 4)
    assert (cosines.diff(dim=1) <= 0).all() and allowed.gather(1, found).all()
    right = torch.zeros(3, 12, dtype=torch.bool).scatter(1, found[:, 1:2], True)
    assert nearest_hits(sounds, shelf, right, allowed, 1).tolist() == [0, 0, 0]
    assert nearest_hits(sounds, shelf, right, allowed, 2).tolist() == [1, 1, 1]


# Judging

def test_real_sounds_are_recognised_and_others_are_not(shelf):
    asked = [ASKED[0], ASKED[0], ASKED[3], ASKED[3], ASKED[4]]
    both = tone(300.0, 40) + tone(2500.0, 41)
    rows = judge_sounds(shelf, asked, [tone(301.0, 40), tone(900.0, 40), both, tone(301.0, 40), tone(900.0, 40)])
    assert [(row["hit_1"], row["hit_5"]) for row in rows] == [(1, 1), (0, 0), (1, 1), (1, 1), (None, None)]
    assert "both" not in rows[0] and rows[3]["hit_both"] == 0 and rows[4]["chance_1"] is None
    assert [row["heard"] for row in rows[:2]] == ["dog", "bell"] and len(rows[0]["nearest"]) == 5
    assert rows[0]["chance_1"] == 0.25 and rows[2]["chance_1"] == 0.5
    assert rows[2]["chance_both"] == pytest.approx(1 - 2 * math.comb(24, 5) / math.comb(32, 5) + math.comb(16, 5) / math.comb(32, 5), rel=1e-3)


def test_the_level_is_no_matter_and_own_files_never_count(shelf):
    clip = shelf.clips[0]
    loud, quiet = (judge_sounds(shelf, ASKED[:1], [level * clip.audio])[0] for level in (1.0, 0.01))
    assert loud["nearest"] == quiet["nearest"] and loud["nearest"][0] == clip.name
    others = judge_sounds(shelf, ASKED[:1], [clip.audio], [frozenset([clip.group])])[0]
    assert clip.name not in others["nearest"] and others["hit_1"] == 1
    assert others["chance_1"] == pytest.approx(7 / 31, rel=1e-3)


def test_real_answers_are_held_out_and_as_long_as_asked(shelf):
    from audiogen_nb.data.clips import split_clips
    kept = {clip.group for clip in split_clips(shelf.clips)[1]}
    answers = real_answers(shelf, ASKED, 3, 1.0)
    assert all(answer.files <= kept for answer in answers) and all(answer.audio.shape == (1, RATE) for answer in answers)
    pairs = [answer for answer in answers if answer.asked.wording == "pair"]
    assert len(pairs) == 3 and all(len(answer.files) == 2 for answer in pairs)
    assert not torch.equal(pairs[0].audio, pairs[1].audio), "other ratios, or other recordings"
    assert {answer.asked.prompt for answer in answers} == {one.prompt for one in ASKED[:4]}, "nobody neighs"
    again = real_answers(shelf, ASKED, 3, 1.0)
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(answers, again))
    rows = judge_sounds(shelf, [a.asked for a in answers], [a.audio for a in answers], [a.files for a in answers])
    assert all(row["hit_5"] == 1 for row in rows)


def test_prompts_are_the_trials(shelf):
    row = lambda prompt, hit: {"wording": "plain", "prompt": prompt, "hit_1": hit, "chance_1": 0.1, "hit_5": 1, "chance_5": 0.5}
    judged = [row("a", 1), row("a", 0), row("a", 0), row("b", 1), row("c", None)]
    (made,) = recognition_rows({"generated": judged})
    assert (made["prompts"], made["n"], made["hit_1"], made["chance_1"]) == (2, 4, round((1 / 3 + 1) / 2, 4), 0.1)
    few, many = made, recognition_rows({"x": [row(str(i), i % 3 > 0) for i in range(60)]})[0]
    assert many["hit_1_high"] - many["hit_1_low"] < 0.5 * (few["hit_1_high"] - few["hit_1_low"])
    assert recognition_rows({"generated": [row("c", None)]}) == []


def test_kinds_and_confusions(shelf):
    assert asked_kind(ASKED[0], shelf.clips) == "dog" and asked_kind(ASKED[4], shelf.clips) is None
    assert asked_kind(ask("plain", "x", "falls rings bell"), shelf.clips) == "bell", "a kind that is named comes first"
    rows = [{"prompt": p, "heard": h} for p, h in (("a", "dog"), ("a", "wind"), ("b", "dog"), ("pair", "dog"), ("a", "wind"))]
    found = confusion_counts(rows, {"a": "dog", "b": "bell", "c": None})
    assert found == {"asked": ["dog", "bell"], "heard": ["dog", "bell", "wind"], "counts": [[1, 0, 2], [1, 0, 0]]}


# The report

def test_mixtures_are_right_answers_for_both_sounds_and_share_no_file_with_real_ones(shelf):
    mixtures, real = mixture_clips(shelf, ASKED, 3, 1.0), real_answers(shelf, ASKED, 3, 1.0)
    pair = next(one for one in ASKED if one.wording == "pair")
    assert len(mixtures) == 3 and expected_clips([pair], mixtures).all()
    assert not any(file in clip.name for answer in real for file in answer.files for clip in mixtures)
    wider = shelf.plus(mixtures)
    assert len(wider.clips) == len(shelf.clips) + 3 and torch.equal(wider.vectors[: len(shelf.clips)], shelf.vectors)
    assert shelf.plus([]) is shelf and len(shelf.clips) == 32
    rows = judge_sounds(wider, [pair], [mixtures[0].audio])
    assert rows[0]["hit_both"] == 1 and rows[0]["nearest"][0] == mixtures[0].name
    with pytest.raises(ValueError, match="names that it has not"):
        shelf.plus(shelf.clips[:1])


@pytest.fixture(scope="module")
def report(shelf, tiny, tmp_path_factory):
    home = tmp_path_factory.mktemp("report")
    return home, judge_recognition(tiny, shelf, home / "r.json", ASKED, (0, 7), 1.0, sounds=home / "sounds", progress=False,
                                   guidance_scale=1.0, name="tiny")


def test_a_report_holds_its_protocol_and_every_judgement(report, shelf):
    home, made = report
    assert read_json(home / "r.json") == made
    assert json.loads((home / "r.json").read_text(encoding="utf-8"))["format"] == "audiogen_nb recognition"
    p = made["protocol"]
    assert (p["model"], p["seeds"], p["guidance_scale"], p["seconds"], p["prompts"]) == ("tiny", [0, 7], 1.0, 1.0, 5)
    assert p["mixtures"] == 4
    assert p["ear"] == "pitch" and p["ear_hash"] == shelf.ear.fingerprint() and p["shelf_clips"] == 32 and "seed" not in p
    judged = made["judgements"]
    assert [row["seed"] for row in judged["generated"]] == [0] * 5 + [7] * 5 and len(list((home / "sounds").rglob("*.flac"))) == 10
    assert made["not_judged"] == ["a horse neighs"]
    sets = {(row["wording"], row["sounds"]) for row in made["rows"]}
    assert sets == {(w, s) for w in rec.WORDINGS for s in ("generated", "recordings", "codec")}
    real = [row for row in made["rows"] if row["sounds"] == "recordings"]
    assert all(row["chance_1"] < row["hit_1"] and row["hit_5"] == 1 for row in real)
    assert made["confusions"]["recordings"]["counts"] == [[2, 0], [0, 1]]


def test_a_seed_fixes_a_sound_whatever_the_batch_and_the_other_seeds(report, shelf, tiny):
    again = judge_recognition(tiny, shelf, None, ASKED[:2], (7,), 1.0, batch_size=1, progress=False, guidance_scale=1.0)
    assert again["judgements"]["generated"] == report[1]["judgements"]["generated"][5:7]


@pytest.mark.parametrize("change, says", [
    ({"seeds": ()}, "seeds must be"), ({"seeds": (1, 1)}, "seeds must be"), ({"seconds": 0}, "seconds must be at least"),
    ({"top_kk": 3}, "top_k"), ({"temperature": 0.0}, "temperature"), ({"batch_size": 0}, "batch_size"), ({"seeds": (-1,)}, "seed")])
def test_settings_that_cannot_be(change, says, shelf, tiny, tmp_path):
    with pytest.raises(ValueError, match=says):
        judge_recognition(tiny, shelf, tmp_path / "r.json", ASKED[:1], **({"seconds": 0.5, "progress": False} | change))
    with pytest.raises(ValueError, match="asked holds no prompt"):
        judge_recognition(tiny, shelf, None, [])
    assert not list(tmp_path.iterdir())


def test_files_are_not_replaced_by_accident_nor_written_in_part(report, shelf, tiny, tmp_path, monkeypatch):
    home, _ = report
    with pytest.raises(FileExistsError, match="overwrite=True"):
        judge_recognition(tiny, shelf, home / "r.json", ASKED[:1])
    with pytest.raises(FileNotFoundError, match="create it first"):
        judge_recognition(tiny, shelf, None, ASKED[:1], sounds=tmp_path / "a" / "b", progress=False)
    with pytest.raises(ValueError, match="another card|other card"):
        judge_recognition(tiny, shelf, None, ASKED[:1], (0,), 0.5, sounds=home / "sounds", progress=False)
    before = (home / "r.json").read_bytes()
    monkeypatch.setattr(rec.json, "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        judge_recognition(tiny, shelf, home / "r.json", ASKED[:1], (0,), 0.5, progress=False, overwrite=True)
    assert (home / "r.json").read_bytes() == before and not list(home.glob("*.json?*"))


# By name, and the command

@pytest.fixture
def by_name(monkeypatch):
    "Ear and recordings without a download; what is asked of `read_recordings`"
    asked = []
    monkeypatch.setattr(rec, "load_embedder", lambda name, device: pitch_ear())
    monkeypatch.setattr(rec, "read_recordings", lambda *given: asked.append(given) or make_clips(6))
    return asked


def test_the_command_from_prompts_to_a_report(by_name, tiny_folder, tmp_path, capsys):
    (tmp_path / "mine.csv").write_text("wording,prompt,words\nplain,a dog barks,dog\npair,a dog and a bell,dog + bell\n", encoding="utf-8")
    call = lambda *argv: main(["evaluate", "--model", str(tiny_folder), "--seconds", "0.5", *map(str, argv)])
    assert call("--prompts", tmp_path / "mine.csv", "--seed", 3, "--guidance-scale", 1, "-o", tmp_path / "r.json", "--root", "there",
                "--all") == 0
    assert "hit_both" in capsys.readouterr().out and by_name == [(tmp_path.__class__("there"), 16000, "all")]
    made = read_json(tmp_path / "r.json")
    assert made["protocol"]["model"] == "tiny" and made["protocol"]["seeds"] == [3] and len(made["judgements"]["generated"]) == 2
    assert call("--prompts", tmp_path / "mine.csv", "-o", tmp_path / "r.json") == 2 and "--force" in capsys.readouterr().err


@pytest.mark.parametrize("argv, says", [
    (["--prompts", "dogs"], "'report', 'validation' or a .csv"),
    (["--prompts", "none.csv"], "no file of prompts at none.csv"),
    (["--prompts", "report", "--data", "recordings"], "exclude each other"),
    (["--prompts", "report", "--compare", "a.json", "b.json"], "exclude each other"),
    (["--prompts", "report", "--recordings", "x"], "pass --root"),
    (["--prompts", "report", "--fad-dims", "3"], "--fad-dims goes with --data"),
    (["--prompts", "report", "--sample-rate", "16000"], "--sample-rate goes with --data"),
    (["--prompts", "report", "--sigmoid"], "--sigmoid goes with --data"),
    (["--prompts", "report", "--guidance-scale", "1", "--guidance-scale", "2"], "with --prompts, --guidance-scale may be given once"),
    (["--prompts", "report", "--guidance-scale", "-1"], "guidance_scale must be"),
    (["--prompts", "report", "--seed", "1", "--seed", "1"], "different numbers"),
    (["--all"], "--all needs --data"),
    (["--data", "recordings", "--all"], "--all goes with --prompts"),
])
def test_options_that_do_not_go_together(by_name, argv, says, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rec, "RecordingShelf", None)                        # would be called too early
    assert main(["evaluate", "--model", str(tiny_folder), *argv]) == 2
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_what_is_missing_says_how_to_fetch_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUDIOGEN_NB_CACHE", str(tmp_path / "cache"))
    assert main(["evaluate", "--prompts", "report", "-o", str(tmp_path / "r.json")]) == 2
    assert "audiogen-nb fetch-judge" in capsys.readouterr().err
    monkeypatch.setattr(rec, "load_embedder", lambda name, device: pitch_ear())
    assert main(["evaluate", "--prompts", "report", "-o", str(tmp_path / "r.json")]) == 2
    assert "audiogen-nb fetch-recordings" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_refused_before_the_shelf_is_heard(by_name, monkeypatch):
    monkeypatch.setattr(rec, "RecordingShelf", None)
    with pytest.raises((FileNotFoundError, ValueError, OSError), match="nowhere"):
        evaluate_prompts("./nowhere", ear=pitch_ear())


def test_the_front_page_says_what_the_report_says():
    root = Path(__file__).resolve().parent.parent
    row = json.loads((root / "nbs/labs/results/recognition.json").read_text("utf-8"))["rows"][0]
    assert (row["wording"], row["sounds"]) == ("plain", "generated")
    said = [f"{100 * row[key]:.0f} %" for key in ("hit_1", "chance_1", "hit_5", "chance_5")]
    for name in ("README.md", "nbs/sounds/README.md", "nbs/17_evaluate.ipynb"):
        text = (root / name).read_text("utf-8")
        found = re.search(r"(\d+ %) (?:of|for)\s+plainly\s+worded\s+prompts\s+\((\d+ %) by chance\).{0,80}?(\d+ %)[^()]{0,16}\((\d+ %) by chance\)",
                          text, re.DOTALL)
        assert found and list(found.groups()) == said, name


# What was heard is kept

class Counting(FunctionEmbedder):
    "An ear that counts what it hears"
    def __init__(self, version="1"):
        super().__init__("counting", self.hear, RATE, 4, version, seconds=1.0)
        self.n = 0

    def hear(self, audio):
        self.n += len(audio)
        return torch.nn.functional.normalize(audio[:, :4].abs() + 1, dim=1)


def test_a_shelf_is_heard_once(tmp_path):
    ear, clips = Counting(), make_clips(2)
    first = RecordingShelf(ear, clips, keep=tmp_path / "new" / "shelves")
    heard = ear.n
    again = RecordingShelf(ear, clips, keep=tmp_path / "new" / "shelves")
    assert heard >= len(clips) and ear.n == heard and torch.equal(first.vectors, again.vectors)
    assert torch.equal(first.vectors, RecordingShelf(Counting(), clips).vectors)


@pytest.mark.parametrize("change", ["another ear", "another length", "a word", "a sample", "fewer"])
def test_another_shelf_is_heard_again(tmp_path, change):
    clips, ear = make_clips(2), Counting()
    RecordingShelf(ear, clips, keep=tmp_path)
    ear = Counting("2") if change == "another ear" else Counting()
    if change == "a word":
        clips[0] = replace(clips[0], captions=("a wolf howls",))
    if change == "a sample":
        clips[0] = replace(clips[0], audio=clips[0].audio + 1e-6)
    RecordingShelf(ear, clips[: 7 if change == "fewer" else None], seconds=5.0 if change == "another length" else 10.0, keep=tmp_path)
    assert ear.n and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "nan"])
def test_a_damaged_shelf_is_heard_again(tmp_path, damage):
    clips, ear = make_clips(2), Counting()
    whole = RecordingShelf(ear, clips, keep=tmp_path).vectors
    path, = tmp_path.iterdir()
    if damage in ("cut", "empty"):
        path.write_bytes(path.read_bytes()[:40] if damage == "cut" else b"")
    else:
        save_file({"vectors": whole[:3]} if damage == "other" else {"vectors": whole * float("nan")}, path)
    ear = Counting()
    assert torch.equal(RecordingShelf(ear, clips, keep=tmp_path).vectors, whole) and ear.n
    assert torch.equal(load_file(path)["vectors"], whole)
