"""Evaluation: prompts keep their promise, the listener is deterministic and balanced, reports are complete and safe."""
import csv
import json
import math
import sys

import pytest
import torch

import audiogen_nb.judge.adherence as ad
import audiogen_nb.judge.listener as li
import audiogen_nb.judge.quality as qu
import audiogen_nb.judge.report as ev
from audiogen_nb.pipeline import AudioGen
from audiogen_nb.sampling.request import Generation
from audiogen_nb.lm.transformer import AudioLM
from audiogen_nb.data.recordings import caption_table
from audiogen_nb.text.hf import load_text_encoder
from audiogen_nb.data.toy import TOY_KINDS
from audiogen_nb.data.toy_kinds import ToyWorld, toy_clip
from audiogen_nb.codec.vq import Codec

KINDS = ["bell", "rain", "dog"]
QUICK = li.ListenerTraining(n_steps=4, batch_size=4, width=2, seconds=1.0, n_each=3)


@pytest.fixture(scope="module")
def toys():
    return [toy_clip(kind, seed, 1.0) for kind in KINDS for seed in range(4)]


@pytest.fixture(scope="module")
def model(root):
    "An untrained AudioGen"
    torch.manual_seed(0)
    text = load_text_encoder(root / "audiogen_nb" / "pocket" / "text")
    return AudioGen(Codec(Codec.preset("tiny")), AudioLM(AudioLM.preset("tiny")), text, Generation(0.5, 1.0))


@pytest.fixture(scope="module")
def listener():
    "An untrained listener that knows all kinds"
    torch.manual_seed(0)
    return li.Listener(li.KINDS, width=2).eval()


# Prompts

def test_prompts_are_forty_over_twenty_kinds_half_of_them_reworded():
    prompts = ad.read_prompts()
    assert len(prompts) == len({p.text for p in prompts}) == 40
    assert [sum(p.wording == w for p in prompts) for w in ("trained", "reworded")] == [20, 20]
    assert len({p.kind for p in prompts}) >= 20 and {p.kind for p in prompts} <= set(li.KINDS)


def test_reworded_prompts_share_no_content_word_with_any_caption(root):
    "Counted here once more, from the files themselves: the captions that the bundled model learned from"
    with open(root / "audiogen_nb" / "recordings.csv", newline="") as file:
        captions = [c for row in csv.DictReader(file) for c in row["captions"].split(";")]
    world = ToyWorld(20 * len(TOY_KINDS), seed=1, duration=0.2)
    captions += [c for i in range(len(world)) for c in world[i].captions]
    known = set().union(*(ad.content_stems(c) for c in captions))
    assert len(known) > 800
    for prompt in ad.read_prompts():
        words = ad.content_stems(prompt.text)
        assert words, prompt
        if prompt.wording == "reworded":
            assert not words & known, (prompt, words & known)
        else:
            assert words <= known, (prompt, words - known)


def test_caption_words_hold_every_word_of_the_toy_world():
    for kind in TOY_KINDS:
        for seed in range(15):
            for caption in toy_clip(kind, seed, 0.2).captions:
                assert ad.content_stems(caption) <= ad.caption_words(), caption


def test_caption_words_hold_every_caption_of_the_table():
    assert all(ad.content_stems(c) <= ad.caption_words() for row in caption_table() for c in row.captions)


@pytest.mark.parametrize("forms", ["bark barks barking barked", "cry cries cried", "saw saws sawing", "glass glasses",
                                   "strike strikes striking", "hum hums humming hummed", "tree trees", "bee bees"])
def test_forms_of_a_word_have_one_stem(forms):
    assert len({ad.stem(word) for word in forms.split()}) == 1


def test_function_words_carry_no_sound():
    assert not ad.UNCOUNTED_WORDS & {kind for kinds in li.KINDS for kind in kinds.split()}
    assert len(ad.UNCOUNTED_WORDS) < 60


@pytest.mark.parametrize("line, message", [("dog,reworded,a barking puppy", "bark"), ("dog,trained,a puppy", "puppy"),
                                           ("dog,other,a dog", "wording"), ("dog,trained,of the", "words")])
def test_a_prompt_that_is_not_what_it_claims_is_refused(tmp_path, line, message):
    (tmp_path / "p.csv").write_text("kind,wording,prompt\n" + line + "\n")
    with pytest.raises(ValueError, match=message):
        ad.read_prompts(tmp_path / "p.csv")


# Figures

def test_ties_and_constant_scores_are_no_hits():
    assert li.rank_of(torch.zeros(3, 4), torch.tensor([0, 1, 3])).tolist() == [4, 4, 4]
    assert li.rank_of(torch.tensor([[.2, .5, .3]]), torch.tensor([2])).tolist() == [2]


@pytest.mark.parametrize("hits, n, low, high", [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)])
def test_wilson_agrees_with_worked_examples(hits, n, low, high):
    assert ad.wilson(hits / n, n) == pytest.approx((low, high), abs=2e-4)


def test_confusions_count_everything_once(listener):
    labels = torch.randint(len(li.KINDS), (200,), generator=torch.Generator().manual_seed(0))
    scores = torch.rand(200, len(li.KINDS), generator=torch.Generator().manual_seed(1))
    rows = li.confusions(labels, scores, li.KINDS)
    assert sum(row["n"] for row in rows) == 200
    assert all(row["right"] + sum(row["heard_instead"].values()) == row["n"] for row in rows)
    assert int(li.confusion_matrix(labels, scores).diag().sum()) == sum(row["right"] for row in rows)


# Listener

def test_listener_is_determined_by_its_seed(toys):
    fit = lambda seed: li.fit_listener([(1.0, toys)], KINDS, li.ListenerTraining(**{**vars(QUICK), "seed": seed}), False)
    state = torch.get_rng_state()
    first, again, other = fit(0), fit(0), fit(1)
    assert torch.equal(state, torch.get_rng_state())           # and leaves the global generator alone
    audio = toys[0].audio[None]
    assert torch.equal(first.judge(audio), again.judge(audio)) and not torch.equal(first.judge(audio), other.judge(audio))
    assert not first.training


@pytest.mark.parametrize("change", [dict(n_steps=2), dict(batch_size=2), dict(learning_rate=1e-2), dict(width=3),
                                    dict(seconds=0.5), dict(n_each=2), dict(smoothing=0.0)])
def test_every_setting_of_the_training_counts(toys, change):
    fit = lambda **more: li.fit_listener([(1.0, toys)], KINDS, li.ListenerTraining(**{**vars(QUICK), **more}), False)
    assert not torch.equal(fit().judge(toys[0].audio[None]), fit(**change).judge(toys[0].audio[None]))


def test_listener_learns_toys():
    clips = [toy_clip(kind, seed, 1.0) for kind in KINDS for seed in range(12)]
    settings = li.ListenerTraining(n_steps=50, batch_size=12, width=4, seconds=1.0, n_each=16)
    listener = li.fit_listener([(1.0, clips)], KINDS, settings, False)
    exam = [toy_clip(kind, seed, 1.0) for kind in KINDS for seed in range(500, 508)]
    row, _ = ad.judge_clips("toys", listener, exam, placements=1, seconds=1.0)
    assert row["top_1"] > 0.7


def test_examples_are_balanced_and_weighted(toys):
    listener = li.Listener(["dog"], 2)
    loud, soft = [toys[-1]], [toy_clip("dog", 99, 1.0)]
    only = lambda w1, w2: li.listener_examples(listener, [(w1, loud), (w2, soft)], 4, 1.0)[0]
    assert torch.equal(only(1.0, 0.0), li.listener_examples(listener, [(1.0, loud)], 4, 1.0)[0])
    assert not torch.equal(only(1.0, 0.0), only(0.5, 0.5))


def test_silence_and_noise_are_judged_without_fuss(listener):
    audio = torch.stack([torch.zeros(1, 16000), torch.randn(1, 16000)])
    assert torch.isfinite(listener.judge(audio)).all()
    with pytest.raises(ValueError, match="NaN"):
        listener.judge(torch.full((1, 1, 16000), math.nan))


def test_listener_survives_a_round_trip(tmp_path, listener):
    li.save_listener(listener, tmp_path / "l")
    audio = toy_clip("dog", 0, 1.0).audio[None]
    assert torch.equal(li.load_listener(tmp_path / "l").judge(audio), listener.judge(audio))
    assert not list((tmp_path / "l").glob("*.part"))
    (tmp_path / "l" / "listener.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        li.load_listener(tmp_path / "l")


# Codecs

def test_ogg_packets_of_a_real_file(tmp_path):
    from audiogen_nb.sound import save_audio
    path = save_audio(tmp_path / "a.ogg", torch.randn(1, 32000, generator=torch.Generator().manual_seed(0)) * 0.1, 16000)
    data = path.read_bytes()
    sizes = qu.ogg_packets(data)
    assert len(sizes) > 10 and 0 < len(data) - sum(sizes) < 0.3 * len(data)


def test_align_undoes_a_delay_and_keeps_the_length():
    x = toy_clip("dog", 1, 1.0).audio
    for lag in (-160, -3, 0, 160):
        y = torch.roll(x, lag, -1)
        assert torch.equal(qu.align(x, y)[:, 400:-400], x[:, 400:-400])
    assert qu.align(x, x[:, :5000]).shape == x.shape == qu.align(x, torch.cat([x, x], -1)).shape


def test_codec_table_without_opus(monkeypatch, capsys, model, toys):
    monkeypatch.setattr(qu.shutil, "which", lambda name: None)
    rows = qu.codec_table(model.codec, toys[:2], progress=False)
    assert len(rows) == 1 and rows[0]["kbit_s"] == pytest.approx(model.codec.bit_rate / 1000, rel=0.02)
    assert "opus-tools" in capsys.readouterr().err


@pytest.mark.skipif(not qu.opus_available(), reason="needs opus-tools")
def test_opus_rates_are_counted(toys):
    audio = toy_clip("rain", 0, 3.0).audio
    six, twelve = (qu.opus_round_trip(audio, 16000, kbps)[1] / 3000 for kbps in (6, 12))
    assert 5.5 < six < 6.8 and 11.5 < twelve < 13
    rows = qu.codec_table(Codec(Codec.preset("tiny")).eval(), [toy_clip("drum", 0, 0.3)], (64,), progress=False)
    assert rows[1]["si_sdr_db"] > 5


needs_zimtohrli = pytest.mark.skipif(not qu.zimtohrli_available(), reason="needs zimtohrli")


@needs_zimtohrli
def test_predicted_opinion_falls_with_noise_and_forgives_nothing_else_for_identity():
    noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(0))
    for kind in ("dog", "bell", "siren"):
        x = toy_clip(kind, 1, 1.0).audio
        levels = [x.square().mean().sqrt() * 10 ** (db / 20) for db in (-50, -35, -20)]
        opinions = [qu.zimtohrli_mos(x, x, 16000), *(qu.zimtohrli_mos(x, x + level * noise, 16000) for level in levels)]
        assert opinions[0] == pytest.approx(5, abs=1e-4) and opinions == sorted(opinions, reverse=True) and min(opinions) >= 1
        assert opinions[-1] < opinions[0] - 1


@needs_zimtohrli
@pytest.mark.skipif(not qu.opus_available(), reason="needs opus-tools")
def test_predicted_opinion_prefers_the_higher_rate():
    clips = [toy_clip(kind, 0, 1.0) for kind in ("dog", "bell", "rain")]
    _, six, twelve, much = qu.codec_table(Codec(Codec.preset("tiny")).eval(), clips, (6, 12, 48), progress=False)
    assert 1 < six["zimtohrli_mos"] < twelve["zimtohrli_mos"] < much["zimtohrli_mos"] < 5


@needs_zimtohrli
@pytest.mark.parametrize("x, y, error", [(torch.zeros(1, 9), torch.zeros(1, 8), ValueError), (torch.zeros(9), torch.zeros(9), ValueError),
                                         (torch.zeros(1, 9, dtype=int), torch.zeros(1, 9), TypeError),
                                         (torch.full((1, 9), math.nan), torch.zeros(1, 9), ValueError)])
def test_predicted_opinion_refuses(x, y, error):
    with pytest.raises(error):
        qu.zimtohrli_mos(x, y, 16000)


def test_without_zimtohrli_the_column_is_absent(monkeypatch, capsys, model, toys):
    complete = qu.codec_table(model.codec, toys[:1], (), progress=False)
    monkeypatch.setitem(sys.modules, "zimtohrli", None)
    with pytest.raises(ModuleNotFoundError, match="pip install zimtohrli"):
        qu.zimtohrli_mos(toys[0].audio, toys[0].audio, 16000)
    assert not qu.zimtohrli_available()
    capsys.readouterr()
    rows = qu.codec_table(model.codec, toys[:1], (), progress=False)
    assert "zimtohrli" in capsys.readouterr().err
    assert rows == [{k: v for k, v in complete[0].items() if k != "zimtohrli_mos"}]
    assert "zimtohrli is not installed" in ev._perceptual()


def test_codec_table_compares_editions(model, toys):
    torch.manual_seed(1)
    other = Codec(Codec.preset("tiny")).eval()
    alone = [qu.codec_table(codec, toys[:2], (), progress=False)[0] for codec in (model.codec, other)]
    rows = qu.codec_table({"first": model.codec, "second": other}, toys[:2], (), progress=False)
    assert [row["name"].split(",")[0] for row in rows] == ["first", "second"] and rows[0] != rows[1]
    assert [{**row, "name": ""} for row in rows] == [{**row, "name": ""} for row in alone]


@pytest.mark.parametrize("codecs, clips", [({}, 1), ("codec", 0), ("codec", "other rate")])
def test_codec_table_refuses(model, toys, codecs, clips):
    clips = [toy_clip("dog", 0, 0.5, 8000)] if clips == "other rate" else toys[:clips]
    with pytest.raises(ValueError, match="one sample rate"):
        qu.codec_table(model.codec if codecs == "codec" else codecs, clips, progress=False)


# The whole

def test_adherence_does_not_depend_on_the_batch(model, listener):
    prompts = ad.read_prompts()[18:22]
    run = lambda size: ad.adherence(model, listener, prompts, (1.0, 3.0), (0,), 0.3, size, False)
    (rows, judged), (_, again) = run(4), run(1)
    assert [(j["text"], j["guidance"], j["seed"]) for j in judged] == [(j["text"], j["guidance"], j["seed"]) for j in again]
    assert [(r["name"], r["guidance"]) for r in rows] == [("trained prompts", 1.0), ("trained prompts", 3.0),
                                                         ("reworded prompts", 1.0), ("reworded prompts", 3.0)]
    assert all(r["trials"] == 2 and r["chance_1"] == pytest.approx(1 / len(li.KINDS), abs=1e-4) for r in rows)


def test_evaluate_writes_a_whole_report(tmp_path, monkeypatch, model, listener):
    clips = [toy_clip(kind, seed, 1.0) for kind in ("dog", "bell", "rain") for seed in range(5)]
    monkeypatch.setattr(ev, "read_recordings", lambda root, rate: clips)
    monkeypatch.setattr(ev, "trained_listener", lambda groups, progress: listener)
    monkeypatch.setattr(ev, "read_prompts", lambda: PROMPTS)
    report = ev.evaluate_model(model, tmp_path / "r.json", seeds=(4,), progress=False)
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(report))
    assert [row["name"] for row in report["accuracy"]] == ["held-out recordings", "toys", "held-out recordings through the codec",
                                                           "toys through the codec", *["trained prompts"] * 2,
                                                           *["reworded prompts"] * 2]
    assert report["codec"][0]["n"] == 3 and report["speed"]["seconds"] > 0 and len(report["judgements"]) == 2 * len(PROMPTS)
    with pytest.raises(FileExistsError, match="overwrite"):
        ev.evaluate_model(model, tmp_path / "r.json")
    assert not list(tmp_path.glob("*.part"))


PROMPTS = ad.read_prompts()[19:21]


@pytest.mark.parametrize("arguments, error", [(dict(out="no/where.json"), FileNotFoundError), (dict(seeds=()), ValueError),
                                              (dict(seeds=(1, 1)), ValueError), (dict(model="no such model"), FileNotFoundError)])
def test_evaluate_refuses_before_it_works(tmp_path, monkeypatch, arguments, error):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        ev.evaluate_model(**arguments)
    assert not list(tmp_path.iterdir())


def test_missing_recordings_are_named(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="audiogen-nb fetch-recordings"):
        ev.evaluate_model(model, tmp_path / "r.json", recordings_folder=tmp_path / "none")
