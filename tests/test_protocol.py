"""Evaluation by real clips: figures against independent computations, the card, kept sounds, reports that are compared or refused."""
import copy
import itertools
import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

import audiogen_nb.judge.protocol as pr
from audiogen_nb.cli import main
from audiogen_nb.data.clips import Clip
from audiogen_nb.judge.distances import spectral_embedding
from audiogen_nb.judge.embedding import FunctionEmbedder
from audiogen_nb.judge.protocol import (CARD, EvaluationSet, compare_reports, drawn_items, evaluate_on, evaluation_set, format_card,
                                        make_item_sounds, read_report, sound_card)
from audiogen_nb.judge.scores import (Hearing, Yardstick, chance_of_hit, half_scores, hear, jackknife_interval, nearest_hits, right_clips,
                                      score_table, set_scores)
from audiogen_nb.sound import load_audio
from audiogen_nb.soundfiles import read_tags

RATE = 16_000
KINDS = ["dog", "bell", "rain", "siren"]


def statistics(x):
    return spectral_embedding(x, RATE, n_mels=6)                                                       # (N, 12)


def small_ear(version="1", classes=True, power=1):
    return FunctionEmbedder("statistics", lambda x: statistics(x) ** power, RATE, 12, version, seconds=0.25,
                            classify=(lambda x: statistics(x)[:, :4]) if classes else None)


def noise(i, seconds=0.4):
    "A burst of noise, another colour and length for each number"
    g = torch.Generator().manual_seed(i)
    x = torch.randn(1, round(seconds * RATE) + 160 * i, generator=g)
    smooth = 1 + i % 4 * 3
    return 0.3 * torch.nn.functional.avg_pool1d(x[None], smooth, 1, smooth // 2)[0, :, :x.shape[-1]]


@pytest.fixture(scope="module")
def real():
    "Twelve clips of eight files and four kinds"
    clips = [Clip(noise(i), RATE, (f"a {KINDS[i % 4]} in number {i}", "another caption"), KINDS[i % 4], "", f"clip {i}",
                  f"file {min(i, 23 - i) if i > 7 else i}") for i in range(12)]
    return EvaluationSet("bursts", "all", clips, clips, RATE)


OPTIONS = dict(seconds=0.25, ear=small_ear(), fad_dims=2, progress=False)

FAST = {**OPTIONS, "fad_dims": None}                                       # too few blocks: no FAD, which takes most of the time


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def report(tiny, real, home):
    return evaluate_on(tiny, real, home / "a.json", sounds=home / "sounds", **OPTIONS)


@pytest.fixture(scope="module")
def second(tiny, real, home):
    return evaluate_on(tiny, real, home / "b.json", sounds=home / "more", seed=1, guidance_scale=1.0, **OPTIONS)


# Figures, computed once more

def peak(audio):
    return audio / audio.abs().max()


def test_distances_agree_with_loops(report, real, home):
    paths = sorted((home / "sounds").glob("*.flac"))
    x = small_ear().embed([peak(clip.audio[:, :4000]) for clip in real.items], RATE).double().numpy()
    y = small_ear().embed([peak(load_audio(path)[0]) for path in paths], RATE).double().numpy()
    distances = sorted(np.linalg.norm(a - b) for a, b in itertools.combinations(x, 2))
    h = distances[(len(distances) - 1) // 2]                                  # of an even number the lower one
    k = lambda a, b: math.exp(-((a - b) ** 2).sum() / (2 * h * h))
    n = len(x)
    within = sum(k(z[i], z[j]) for z in (x, y) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    expected = within - 2 * sum(k(a, b) for a in x for b in y) / n ** 2
    assert report["scores"]["generated"]["kernel_distance"]["value"] == pytest.approx(expected, abs=1e-4)


def test_fad_looks_at_the_directions_in_which_real_clips_differ_most(report, real, home):
    parts = [np.concatenate([made.double().numpy() for made in small_ear().blocks([peak(a) for a in sounds], RATE)]) for sounds in (
        [clip.audio[:, :4000] for clip in real.items], [load_audio(p)[0] for p in sorted((home / "sounds").glob("*.flac"))])]
    values, vectors = np.linalg.eigh(np.cov(parts[0].T))
    a, b = (part @ vectors[:, -2:] for part in parts)
    product = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T))
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T)) - 2 * np.sqrt(product.astype(complex)).real.sum()
    assert report["scores"]["generated"]["fad"]["value"] == pytest.approx(expected, rel=1e-3)


def test_hits_and_chance_agree_with_loops(real):
    clips, ear = real.items, small_ear()
    x = ear.embed([peak(clip.audio[:, :4000]) for clip in clips], RATE)
    right, allowed = right_clips(clips, clips)
    z = ((x - x.mean(0)) / x.std(0)).double()
    for k in (1, 5):
        found, luck = nearest_hits(x, x, right["kind"], allowed, k), chance_of_hit(right["kind"], allowed, k)
        for i, clip in enumerate(clips):
            others = [j for j in range(12) if clips[j].group != clip.group]
            near = sorted(others, key=lambda j: -torch.cosine_similarity(z[i], z[j], 0).item())[:k]
            answers = [clips[j].kind == clip.kind for j in others]
            assert found[i] == any(clips[j].kind == clip.kind for j in near)
            draws = list(itertools.combinations(answers, k))
            assert luck[i] == pytest.approx(sum(map(any, draws)) / len(draws))


def test_a_word_is_right_in_any_form_and_a_kind_other_is_none():
    clip = lambda caption, kind, name: Clip(torch.zeros(1, 1), RATE, caption, kind, name=name)
    clips = [clip(("dogs are barking", "rain"), "other", "a"), clip(("birds", "the dog barks"), "other", "b"),
             clip(("it rains",), "rain", "c")]
    right, allowed = right_clips(clips, clips)
    assert right["word"].tolist() == [[True, True, False], [False, True, False], [True, False, True]]   # the item's first caption counts
    assert not right["kind"][:2].any() and right["kind"][2].tolist() == [False, False, True]
    assert allowed.tolist() == [[i != j for j in range(3)] for i in range(3)]


def test_an_item_without_a_right_clip_in_another_file_is_left_out():
    right = torch.tensor([[True, False], [True, True]])
    allowed = torch.tensor([[False, True], [True, True]])
    x = torch.tensor([[1.0, 0], [0, 1]])
    assert nearest_hits(x, x, right, allowed).isnan().tolist() == [True, False]
    assert chance_of_hit(right, allowed, 1).isnan().tolist() == [True, False]
    assert chance_of_hit(right, allowed, 9)[1] == 1


def test_item_scores_and_their_means(report):
    kl = report["item_scores"]["generated"]["kl"]
    assert len(kl) == 12 and report["scores"]["generated"]["kl"]["value"] == pytest.approx(np.mean(kl), rel=1e-3)
    hits = report["item_scores"]["generated"]["kind_5"]
    assert report["scores"]["generated"]["kind_5"]["value"] == pytest.approx(np.mean(hits)) and set(hits) <= {0, 1}
    assert set(report["item_scores"]) == {"generated", "codec", "real"}
    assert report["item_scores"]["real"]["kl"] == [0.0] * 12
    assert 0 < report["chance"]["kind_1"] < report["chance"]["kind_5"] <= 1 and report["chance"]["kl"] > 0


def test_the_jackknife_of_a_mean_is_student_s_interval():
    x = torch.randn(25, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, low, high = jackknife_interval(lambda keep: x[keep].mean().item(), range(25))
    half = 2.0639 * x.std().item() / 5                                       # of Student's distribution with 24 degrees of freedom
    assert (value, low, high) == pytest.approx((x.mean().item(), x.mean().item() - half, x.mean().item() + half), abs=1e-4)
    assert jackknife_interval(lambda keep: x[keep].mean().item(), range(25), 5)[1] != low
    left = []
    jackknife_interval(lambda keep: left.append(set(range(6)) - set(keep.tolist())) or 0.0, ["a", "b", "a", "c", "b", "c"])
    assert left == [{0, 2}, {1, 4}, {3, 5}, set()]


def test_real_clips_have_no_distance_from_themselves_but_of_their_halves(report):
    entries = report["scores"]["real"]
    assert "themselves" in entries["kl"]["why"] and "themselves" in entries["fad_infinity"]["why"]
    assert entries["kernel_distance"]["low"] < entries["kernel_distance"]["value"] < entries["kernel_distance"]["high"]


def test_halves_share_no_file():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=g)
    yard = Yardstick(Hearing([row[None] for row in x.repeat_interleave(2, 0)], None), [f"{i // 2}" for i in range(40)])
    assert half_scores(yard)["kernel_distance"]["value"] < 0.5         # a clip and its copy on either side would lower it below 0
    assert half_scores(yard, 1) != half_scores(yard)
    few = Yardstick(Hearing([row[None] for row in x[:, :3]], None), range(20))
    assert "value" in half_scores(few)["fad"] and "value" in set_scores(few, few.real)["fad_infinity"]


def test_noise_and_silence_score_worse_than_their_like(report):
    kd = {name: entries["kernel_distance"]["value"] for name, entries in report["scores"].items()}
    assert kd["silence"] > kd["codec"] and set(kd) == {"generated", "codec", "real", "noise", "silence"}
    assert report["scores"]["silence"]["vendi_score"]["value"] == 1


def test_what_cannot_be_had_says_why(tiny, real):
    found = evaluate_on(tiny, real, **{**OPTIONS, "ear": small_ear(classes=False), "fad_dims": None})
    entries = found["scores"]["generated"]
    assert "12 blocks are too few for 12 dimensions" in entries["fad"]["why"] and "fad_dims" in entries["fad_infinity"]["why"]
    assert "no classes" in entries["inception_score"]["why"] and "kl" not in entries
    assert "–" in score_table(found["scores"], found["chance"])


def test_sigmoid_and_an_ear_that_reads(tiny, real, report):
    ear = small_ear()
    ear.embed_text = lambda texts: statistics(torch.stack([noise(len(text))[0, :6000] for text in texts]))
    found = evaluate_on(tiny, real, **{**FAST, "ear": ear, "sigmoid": True})
    assert found["scores"]["generated"]["kl_sigmoid"]["value"] > 0 and "kl_sigmoid" in found["chance"]
    assert -1 <= found["scores"]["generated"]["cosine_score"]["value"] <= 1 and "cosine_score" in found["chance"]
    assert found["scores"]["real"]["cosine_score"]["value"] != found["scores"]["noise"]["cosine_score"]["value"]
    assert "cosine_score" not in report["scores"]["generated"]


# The card

def test_a_report_is_read_as_it_was_written(report, home):
    assert read_report(home / "a.json") == json.loads(json.dumps(report)) == report
    assert [*report["card"]] == [*CARD] and (home / "a.json").stat().st_size < 20_000
    assert all(f"| {key} " in format_card(report) for key in CARD)


@pytest.mark.parametrize("field, change", [("level", dict(level="as_is")), ("ear_hash", dict(ear=small_ear("2", power=3))),
                                           ("seconds", dict(seconds=0.3)), ("clips", dict(limit=10)), ("sample_rate", {})])
def test_whatever_decides_a_figure_is_on_the_card(tiny, real, report, field, change):
    if field == "sample_rate":
        clips = [replace(clip, audio=clip.audio[:, ::2], sample_rate=8000) for clip in real.items]
        real = EvaluationSet(real.name, real.split, clips, clips, 8000)
    found = evaluate_on(tiny, real, **{**FAST, **change})
    assert found["card"][field] != report["card"][field] and found["card"]["fad_dims"] == 12 != report["card"]["fad_dims"]
    for score in ("kernel_distance", "vendi_score"):
        assert found["scores"]["generated"][score] != report["scores"]["generated"][score]


@pytest.mark.parametrize("change", [dict(temperature=0.5), dict(top_k=7), dict(top_p=0.5, top_k=0), dict(guidance_scale=2.0), dict(seed=9)])
def test_whatever_decides_a_sound_is_on_the_card(tiny, tmp_path, change):
    plain, other = sound_card(tiny, "tiny", 0.25, 0), sound_card(tiny, "tiny", 0.25, **{"seed": 0, **change})
    assert all(other[key] == value != plain[key] for key, value in change.items())
    one, two = (make_item_sounds(tiny, {0: "rain"}, tmp_path / str(i), card, progress=False)[0] for i, card in enumerate((plain, other)))
    assert not torch.equal(load_audio(one)[0], load_audio(two)[0])


def test_hashes_are_of_contents(tiny, real, report):
    card = lambda data: pr.protocol_card(sound_card(tiny, "given", 0.25, 0), data, 12, OPTIONS["ear"], "peak", 2, "cpu")
    same = card(real)
    assert same == report["card"]
    clips = [*real.items[:11], replace(real.items[11], audio=real.items[11].audio + 1e-4)]
    assert card(real._replace(items=clips))["sounds_hash"] != same["sounds_hash"]
    clips = [*real.items[:11], replace(real.items[11], captions=("a dog",))]
    assert card(real._replace(items=clips))["captions_hash"] != same["captions_hash"]
    assert card(real._replace(shelf=clips))["shelf_hash"] != same["shelf_hash"]
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        next(other.lm.parameters()).add_(1e-3)
    assert sound_card(other, "given", 0.25, 0)["weights"] != report["card"]["weights"]


# Sounds

def test_a_sound_is_its_item_s_whatever_the_batch(tiny, real, report, home):
    again = evaluate_on(tiny, real, batch_size=5, **OPTIONS)              # in a temporary folder, in other batches
    assert again == report
    card = sound_card(tiny, "tiny", 0.25, 0)
    paths = make_item_sounds(tiny, {3: "rain", 900: "wind"}, home / "few", card, progress=False)
    alone, = make_item_sounds(tiny, {900: "wind"}, home / "alone", card, progress=False)
    assert paths[1].name == alone.name and paths[1].read_bytes() == alone.read_bytes()
    assert read_tags(alone)["item"] == 900 and str(read_tags(alone)["seed"]) in alone.name
    assert alone.name.startswith("00900-seed") and paths[0].name.split("-")[1] != alone.name.split("-")[1]


def test_sounds_that_are_there_are_not_made_again(tiny, real, report, home, monkeypatch):
    monkeypatch.setattr(type(tiny), "generate_codes", lambda *_, **__: pytest.fail("made again"))
    assert evaluate_on(tiny, real, sounds=home / "sounds", **OPTIONS) == report


def test_a_larger_limit_makes_only_what_is_missing(tiny, real, tmp_path, monkeypatch):
    made, before = [], type(tiny).generate_codes
    monkeypatch.setattr(type(tiny), "generate_codes", lambda self, texts, *a, **k: made.extend(texts) or before(self, texts, *a, **k))
    evaluate_on(tiny, real, limit=8, sounds=tmp_path / "s", **FAST)
    assert len(made) == 8
    evaluate_on(tiny, real, limit=10, sounds=tmp_path / "s", **FAST)
    assert len(made) == len(set(made)) == 10


def test_a_damaged_sound_is_made_again(tiny, tmp_path):
    card = sound_card(tiny, "tiny", 0.25, 0)
    path, = make_item_sounds(tiny, {1: "rain"}, tmp_path / "s", card, progress=False)
    whole = path.read_bytes()
    for damage in (whole[:100], b"", b"no sound"):
        path.write_bytes(damage)
        make_item_sounds(tiny, {1: "rain"}, tmp_path / "s", card, progress=False)
        assert path.read_bytes() == whole
    short = sound_card(tiny, "tiny", 0.25, 0)
    soundfile.write(path, np.zeros(10), RATE)                             # somebody's sound under this name
    with pytest.raises(ValueError, match="made for 'None', not for 'rain'"):
        make_item_sounds(tiny, {1: "rain"}, tmp_path / "s", short, progress=False)


@pytest.mark.parametrize("change, says", [(dict(seed=1), "seed is 0, not 1"), (dict(guidance_scale=1.0), "guidance_scale is 3.0, not 1.0"),
                                          (dict(seconds=0.5), "seconds is 0.25, not 0.5")])
def test_sounds_of_another_card_are_never_mixed_in(tiny, tmp_path, change, says):
    make_item_sounds(tiny, {1: "rain"}, tmp_path / "s", sound_card(tiny, "tiny", 0.25, 0), progress=False)
    before = sorted(p.name for p in (tmp_path / "s").iterdir())
    with pytest.raises(ValueError, match=says):
        make_item_sounds(tiny, {2: "wind"}, tmp_path / "s", sound_card(tiny, "tiny", **{"seconds": 0.25, "seed": 0, **change}), progress=False)
    with pytest.raises(ValueError, match="was made for 'rain', not for 'wind'"):
        make_item_sounds(tiny, {1: "wind"}, tmp_path / "s", sound_card(tiny, "another name", 0.25, 0), progress=False)
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == before


def test_a_folder_of_other_things_is_left_alone(tiny, tmp_path):
    card = sound_card(tiny, "tiny", 0.25, 0)
    (tmp_path / "mine").mkdir(), (tmp_path / "mine" / "a.txt").write_text("mine")
    (tmp_path / "broken").mkdir(), (tmp_path / "broken" / "card.json").write_text("{")
    for folder, error in (("mine", "not empty"), ("broken", "not a file of JSON"), ("mine/a.txt", "no folder of sounds")):
        with pytest.raises(ValueError, match=error):
            make_item_sounds(tiny, {1: "rain"}, tmp_path / folder, card, progress=False)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_item_sounds(tiny, {1: "rain"}, tmp_path / "no" / "where", card, progress=False)
    assert len(list((tmp_path / "mine").iterdir())) == 1


def test_items_are_drawn_in_one_order():
    assert drawn_items(5) == [0, 1, 2, 3, 4] and set(drawn_items(50, 7)) < set(drawn_items(50, 20))
    assert drawn_items(50, 7) == sorted(drawn_items(50, 7)) == drawn_items(50, 7) and drawn_items(3, 9) == [0, 1, 2]


# Sets

def esc50(root):
    (root / "meta").mkdir(parents=True), (root / "audio").mkdir()
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    for i in range(8):
        rows.append(f"1-{i}-A-0.wav,{1 + i % 2},0,{KINDS[i % 4]},False,{i},A")
        soundfile.write(root / "audio" / f"1-{i}-A-0.wav", noise(i)[0].numpy(), RATE)
    (root / "meta" / "esc50.csv").write_text("\n".join(rows), encoding="utf-8")


def clotho(root):
    (root / "evaluation").mkdir(parents=True)
    rows = ["file_name,caption_1,caption_2,caption_3,caption_4,caption_5"]
    for i in range(8):
        rows.append(f"{i}.wav," + ",".join(f"{KINDS[i % 4]} number {i} phrase {j}" for j in range(5)))
        soundfile.write(root / "evaluation" / f"{i}.wav", noise(i)[0].numpy(), 8000)
    (root / "clotho_captions_evaluation.csv").write_text("\n".join(rows), encoding="utf-8")


def folder(root, n=8):
    for i in range(n):
        (root / KINDS[i % 4]).mkdir(parents=True, exist_ok=True)
        soundfile.write(root / KINDS[i % 4] / f"{KINDS[i % 4]} {'abcdefghijklmnop'[i]} sound.wav", noise(i)[0].numpy(), 22_050)


@pytest.mark.parametrize("write, name, split, kinds", [(esc50, "esc50", "all", True), (clotho, "clotho", "test", False),
                                                       (folder, None, None, True)])
def test_sets_of_any_layout(tiny, tmp_path, write, name, split, kinds):
    write(tmp_path / "set")
    found = evaluate_on(tiny, name or tmp_path / "set", split=split, root=tmp_path / "set" if name else None, **FAST)
    assert found["card"]["clips"] == found["card"]["shelf_clips"] == 8
    assert ("value" in found["scores"]["generated"]["kind_1"]) == kinds and "value" in found["scores"]["generated"]["word_1"]
    assert all(item["caption"] and "phrase 1" not in item["caption"] for item in found["items"])
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = evaluate_on(tiny, name or tmp_path / "moved", split=split, root=tmp_path / "moved" if name else None, **FAST)
    assert {k: v for k, v in moved["card"].items() if k != "data"} == {k: v for k, v in found["card"].items() if k != "data"}
    assert moved["scores"] == found["scores"] and str(tmp_path) not in json.dumps(found)


def test_held_out_clips_stand_before_a_shelf_of_all(tmp_path, monkeypatch, real):
    folder(tmp_path / "set", 16)
    whole = evaluation_set(tmp_path / "set")
    kept = evaluation_set(tmp_path / "set", "held_out", sample_rate=8000)
    assert whole.items is whole.shelf and len(kept.items) < len(kept.shelf) == 16 and kept.items[0].sample_rate == 8000
    many = [replace(clip, name=f"{clip.name} {j}", group=f"{clip.group} {j}") for clip in real.items for j in range(30)]
    monkeypatch.setattr(pr, "read_recordings", lambda root, rate: many)
    some = evaluation_set()
    assert (some.name, some.split) == ("recordings", "held_out") and 0 < len(some.items) < len(some.shelf) == 360
    assert len(evaluation_set("recordings", "all").items) == 360


@pytest.mark.parametrize("arguments, says", [
    (dict(data="nowhere"), "a folder of sounds, got 'nowhere'"), (dict(data="esc50"), "needs root"),
    (dict(data="recordings", split="test"), "'held_out' or 'all'")])
def test_a_set_that_is_none_is_refused(arguments, says, monkeypatch):
    monkeypatch.setattr(pr, "read_recordings", lambda root, rate: [])
    with pytest.raises(ValueError, match=says):
        evaluation_set(**arguments)


@pytest.mark.parametrize("change, error, says", [
    (dict(limit=5), ValueError, "6 files or more"), (dict(limit=0), ValueError, "limit must be at least 1"),
    (dict(level="loud"), ValueError, "level must be"), (dict(loud=1), ValueError, "no key 'loud'"), (dict(top_k=-1), ValueError, "top_k"),
    (dict(seconds=99), ValueError, "duration must be"), (dict(seconds="1"), TypeError, "seconds must be a number"),
    (dict(seed=-1), ValueError, "seed must be"), (dict(fad_dims=13), ValueError, "fad_dims must be at most"),
    (dict(batch_size=0), ValueError, "batch_size"), (dict(split="all"), ValueError, "a set that is given by its name"), (dict(out="nowhere/a.json"), FileNotFoundError, "create it first")])
def test_what_cannot_be_done_is_refused_before_a_sound_is_made(tiny, real, monkeypatch, change, error, says):
    monkeypatch.setattr(type(tiny), "generate_codes", lambda *_, **__: pytest.fail("a sound was made"))
    with pytest.raises(error, match=says):
        evaluate_on(tiny, real, **{**OPTIONS, **change})


def test_an_existing_report_is_kept(tiny, real, home, report):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        evaluate_on(tiny, real, home / "a.json", **OPTIONS)


# Two reports

def with_card(report, **fields):
    return {**report, "card": {**report["card"], **fields}}


def test_a_comparison_of_equal_protocols(report, second, home):
    found = compare_reports(home / "a.json", second)
    assert set(found.judged) == {"seed", "guidance_scale"} and not found.incomparable and not found.noted
    rows = {row["score"]: row for row in found.rows}
    assert rows["kernel_distance"]["difference"] is None and rows["kernel_distance"]["verdict"] == "no paired values"
    apart = np.subtract(*(r["item_scores"]["generated"]["kl"] for r in (second, report)))
    assert rows["kl"]["difference"]["value"] == pytest.approx(apart.mean(), abs=1e-4)
    back = {row["score"]: row for row in compare_reports(second, report).rows}
    assert back["kl"]["difference"]["low"] == pytest.approx(-rows["kl"]["difference"]["high"])
    text = str(found)
    assert "guidance_scale: 3.0 | 1.0" in text and "WARNING" not in text and "second - first" in text


def test_a_report_does_not_differ_from_itself(report):
    rows = compare_reports(report, report).rows
    assert {row["verdict"] for row in rows} == {"may be luck", "no paired values"}


@pytest.mark.parametrize("field", [key for key, field in CARD.items() if field.role == "same"])
def test_incomparable_reports_are_refused_by_name(report, field):
    value = report["card"][field]
    other = with_card(report, **{field: value + "x" if isinstance(value, str) else value + 1})
    with pytest.raises(ValueError, match=rf"must not be compared.*{field} \("):
        compare_reports(report, other)
    found = compare_reports(report, other, force=True)
    assert set(found.incomparable) == {field} and "WARNING" in str(found) and field in str(found)


def test_harmless_differences_are_told(report):
    found = compare_reports(report, with_card(report, torch="9.9", python="4.0", device="cuda:0", data="moved"))
    assert set(found.noted) == {"torch", "python", "device", "data"} and "should not matter" in str(found)
    assert not found.judged and not found.incomparable


def constructed(report, values, files):
    items = [{**report["items"][0], "number": i, "file": file} for i, file in enumerate(files)]
    return {**with_card(report, clips=len(values)), "items": items, "scores": {"generated": {"kl": {"value": 0.0, "low": 0.0, "high": 0.0}}},
            "item_scores": {"generated": {"kl": values}}}


def test_the_paired_interval(report):
    g = np.random.default_rng(0)
    hard = g.normal(size=30)
    a, b = hard + 0.1 * g.normal(size=30), hard - 0.2 + 0.1 * g.normal(size=30)
    row, = compare_reports(constructed(report, a.tolist(), map(str, range(30))), constructed(report, b.tolist(), map(str, range(30)))).rows
    half = 2.0452 * (b - a).std(ddof=1) / 30 ** 0.5
    expected = (b - a).mean() - half, (b - a).mean() + half
    assert (row["difference"]["low"], row["difference"]["high"]) == pytest.approx(expected, abs=1e-4) and row["verdict"] == "lower"
    twice = [str(i // 2) for i in range(60)]                                 # every item a second time, from the same file
    wide, = compare_reports(*(constructed(report, np.repeat(x, 2).tolist(), twice) for x in (a, b))).rows
    assert (wide["difference"]["low"], wide["difference"]["high"]) == pytest.approx(expected, abs=1e-4)


def test_only_items_that_both_have_are_paired(report):
    files = [str(i) for i in range(10)]
    a = constructed(report, [0.0] * 9 + [None], files)
    b = constructed(report, [None] + [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0, 2.0] + [50.0], files)
    row, = compare_reports(a, b).rows
    assert row["difference"]["n"] == 8 and row["difference"]["value"] == pytest.approx(1.5)
    other = {**b, "items": [{**item, "caption": "another"} for item in b["items"]]}
    assert compare_reports(a, other).rows[0]["difference"] is None


def test_a_score_that_one_report_lacks(tiny, real, report):
    more = evaluate_on(tiny, real, **{**FAST, "sigmoid": True})
    more = with_card(more, fad_dims=2)
    row = next(row for row in compare_reports(report, more).rows if row["score"] == "kl_sigmoid")
    assert row["first"] is None and row["difference"] is None and "kl_sigmoid" in str(compare_reports(report, more))


DAMAGE = {
    "format": lambda r: {**r, "format": "another"},
    "the report has no key": lambda r: {**r, "more": 1},
    "lacks 'card'": lambda r: {k: v for k, v in r.items() if k != "card"},
    "lacks 'ear'": lambda r: {**r, "card": {k: v for k, v in r["card"].items() if k != "ear"}},
    "the card has no key": lambda r: with_card(r, more=1),
    "seconds in the card must be": lambda r: with_card(r, seconds="4"),
    "seconds in the card must be finite": lambda r: with_card(r, seconds=math.nan),
    "clips in the card must be int": lambda r: with_card(r, clips=True),
    "items must be a list of 12": lambda r: {**r, "items": r["items"][1:]},
    "texts of an item": lambda r: {**r, "items": [{**item, "name": 3} for item in r["items"]]},
    "number of an item": lambda r: {**r, "items": [{**item, "number": "a"} for item in r["items"]]},
    "must be an object with keys": lambda r: {**r, "card": []},
    "scores must be an object": lambda r: {**r, "scores": []},
    "chance of kl": lambda r: {**r, "chance": {"kl": "0"}},
    "no scores of generated": lambda r: {**r, "scores": {}},
    "outside its interval": lambda r: {**r, "scores": {"generated": {"kl": {"value": 1, "low": 2, "high": 3}}}},
    "kl of generated must be a number": lambda r: {**r, "scores": {"generated": {"kl": {"value": None, "low": 2, "high": 3}}}},
    "lacks 'low'": lambda r: {**r, "scores": {"generated": {"kl": {"value": 1}}}},
    "must be a list of 12": lambda r: {**r, "item_scores": {"generated": {"kl": [1]}}},
    "kl of the items of generated": lambda r: {**r, "item_scores": {"generated": {"kl": ["x"] * 12}}},
}


@pytest.mark.parametrize("says", DAMAGE)
def test_damaged_and_foreign_reports_are_refused_by_name(report, tmp_path, says):
    (tmp_path / "r.json").write_text(json.dumps(DAMAGE[says](report)), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"r\.json is no report of an evaluation, or damaged: .*{says}"):
        read_report(tmp_path / "r.json")
    with pytest.raises(ValueError, match="r.json"):
        compare_reports(report, tmp_path / "r.json")


def test_any_cut_of_a_report_is_refused(home, report, tmp_path):
    text = (home / "a.json").read_text(encoding="utf-8")
    for at in range(0, len(text) - 2, 501):
        (tmp_path / "cut.json").write_text(text[:at], encoding="utf-8")
        with pytest.raises(ValueError, match="cut.json"):
            read_report(tmp_path / "cut.json")
    with pytest.raises(FileNotFoundError, match="no report at"):
        read_report(tmp_path / "none.json")


# The command

def test_the_command_from_a_model_to_a_comparison(tiny_folder, tmp_path, monkeypatch, capsys):
    folder(tmp_path / "set")
    monkeypatch.setattr(pr, "load_embedder", lambda name, device: small_ear())
    call = lambda *argv: main(["evaluate", *map(str, argv)])
    options = ["--data", tmp_path / "set", "--model", tiny_folder, "--seconds", 0.25, "--quiet"]
    assert call(*options, "-o", tmp_path / "a.json", "--sounds", tmp_path / "sounds") == 0
    assert call(*options, "-o", tmp_path / "b.json", "--guidance-scale", 1, "--seed", 3, "--sigmoid") == 0
    assert read_report(tmp_path / "a.json")["card"]["model"] == "tiny" and len(list((tmp_path / "sounds").glob("*.flac"))) == 8
    capsys.readouterr()
    assert call("--compare", tmp_path / "a.json", tmp_path / "b.json") == 0
    assert "- seed: 0 | 3" in capsys.readouterr().out
    assert call(*options, "-o", tmp_path / "c.json", "--limit", 7) == 0
    capsys.readouterr()
    assert call("--compare", tmp_path / "a.json", tmp_path / "c.json") == 2
    assert "clips (8 and 7)" in capsys.readouterr().err
    assert call("--compare", tmp_path / "a.json", tmp_path / "c.json", "--force") == 0
    assert "WARNING" in capsys.readouterr().out
    for wrong, says in ((["-o", tmp_path / "a.json"], "--force"), (["-o", tmp_path / "d.json", "--seed", 1, "--seed", 2], "given once"),
                        (["-o", tmp_path / "d.json", "--recordings", "x"], "--root"), (["-o", tmp_path / "d.txt"], ".json")):
        assert call(*options, *wrong) == 2
        assert says in capsys.readouterr().err
    assert call("--limit", 9, "-o", tmp_path / "d.json") == 2 and "--limit needs --data" in capsys.readouterr().err


def test_without_the_ear_s_weights_the_command_says_how_to_get_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AUDIOGEN_NB_CACHE", str(tmp_path / "cache"))
    assert main(["evaluate", "--data", "recordings", "-o", str(tmp_path / "r.json")]) == 2
    assert "audiogen-nb fetch-judge" in capsys.readouterr().err and not (tmp_path / "r.json").exists()


def test_nothing_is_drawn_from_the_global_generator(tiny, real):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate_on(tiny, real, limit=8, **FAST)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_package_s_names():
    code = "from audiogen_nb.judge import compare_reports, evaluate_on, format_card, jackknife_interval, read_report; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "fine\n", done.stderr


def test_one_entry_of_heard_sounds_a_clip(real):
    made = hear(small_ear(), [clip.audio for clip in real.items] * 3, RATE)
    assert len(made.blocks) == 36 == len(made.logits) and torch.equal(made.vectors[:12], made.vectors[24:])
    assert hear(small_ear(), [real.items[0].audio], RATE, classes=False).logits is None
