"""The small world of the claims: pairs held out evenly, parts kept apart, intervals, arms that differ in one thing, and the committed figures."""
import json
import math
from pathlib import Path

import pytest
import torch
from scipy import stats

from audiogen_nb.files import read_json
from audiogen_nb.hub import POCKET, load_codec
from audiogen_nb.lab import claims, trial
from audiogen_nb.lab.claims import CLAIMS, Contrast, Scale, changed_encoder, claim_runs, claim_table, contrast_interval, decide, run_claims
from audiogen_nb.train.codec import without_levels
from audiogen_nb.lab.trial import FAST, FULL, HELD_OUT, KINDS, SEEN, TrialWorld, TrialSettings

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "labs" / "results" / "trial.json"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return TrialWorld(tmp_path_factory.mktemp("trial"), FAST)


def test_each_kind_is_in_two_pairs_of_each_set_and_no_pair_in_both():
    for pairs in (SEEN, HELD_OUT):
        assert len({frozenset(p) for p in pairs}) == 8
        assert all(sum(kind in p for p in pairs) == 2 for kind in KINDS)
    assert not {frozenset(p) for p in SEEN} & {frozenset(p) for p in HELD_OUT}
    assert {frozenset(p) for p in SEEN + HELD_OUT} < {frozenset(p) for p in trial.ALL_PAIRS}


def test_clips_follow_from_kind_number_and_part():
    a, b = trial.kind_clip("dog", 3), trial.kind_clip("dog", 3)
    assert torch.equal(a.audio, b.audio) and a.captions == b.captions
    for other in (trial.kind_clip("dog", 4), trial.kind_clip("dog", 3, "prompts")):
        assert not torch.equal(a.audio, other.audio)
    m = trial.mixture_clip(("dog", "rain"), 0)
    assert m.kind == "dog+rain" and m.audio.shape == (1, 24_000) and m.audio.abs().max() <= 1
    assert torch.equal(m.audio, trial.mixture_clip(("dog", "rain"), 0).audio)
    assert not torch.equal(m.audio, trial.mixture_clip(("dog", "rain"), 0, "prompts").audio)


def test_a_prompt_of_a_pair_joins_both_captions():
    clips, asked = claims.prompts_for([("dog", "rain")], 3)
    assert asked.tolist() == [[KINDS.index("dog"), KINDS.index("rain")]] * 3
    for clip in clips:
        assert " and " in clip.captions[0] and "rain" in clip.captions[0]


def test_detector_clips_hold_what_their_labels_say():
    audio, labels = trial.detector_clips(60, "here")
    assert audio.shape == (60, 1, 24_000) and set(labels.sum(1).tolist()) == {1, 2, 3}
    again = trial.detector_clips(60, "here")
    assert torch.equal(audio, again[0]) and torch.equal(labels, again[1])
    clip = trial.mixture_clip([KINDS[k] for k in [labels[0].argmax().item()]], 0, "here")
    if labels[0].sum() == 1:
        assert torch.equal(audio[0], clip.audio)


def test_precision_and_recall_are_counted_by_hand():
    g = torch.Generator().manual_seed(0)
    found, labels = (torch.rand(200, 5, generator=g) < 0.4 for _ in range(2))
    p, r = trial.precision_recall(found, labels)
    for c in range(5):
        both = sum(bool(f and y) for f, y in zip(found[:, c], labels[:, c]))
        assert p[c] == pytest.approx(both / found[:, c].sum().item()) and r[c] == pytest.approx(both / labels[:, c].sum().item())
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    assert trial.precision_recall(nothing, nothing)[0].tolist() == [0] * 5


@pytest.mark.parametrize("n", (2, 3, 5, 10, 30))
def test_the_interval_is_students(n):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    mean, half = trial.seed_interval(values)
    low, high = stats.t.interval(0.95, n - 1, values.mean().item(), stats.sem(values.numpy()))
    assert mean - half == pytest.approx(low, abs=2e-3) and mean + half == pytest.approx(high, abs=2e-3)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_an_interval_needs_two_seeds(values):
    with pytest.raises(ValueError, match="2 seeds or more"):
        trial.seed_interval(values)


def test_a_verdict_needs_an_interval_beside_zero():
    assert [trial.verdict(*x) for x in ((1, 0.9), (1, 1.0), (-1, 0.9), (0, 0))] == \
        ["holds here", "undecided here", "fails here", "undecided here"]
    rows = [{"arm": a, "seed": s, "x": s * s + (a == "new")} for a in ("new", "old") for s in range(4)]
    assert decide(rows, Contrast("x", "new", "old")) == "holds here"
    assert decide(rows, Contrast("x", "new", "old", -1)) == "fails here"
    with pytest.raises(ValueError, match="same seeds"):
        contrast_interval(rows[:-1], Contrast("x", "new", "old"))
    with pytest.raises(ValueError, match="same seeds"):
        contrast_interval(rows, Contrast("x", "newer", "old"))


def test_the_coarse_codec_writes_the_first_streams_of_the_bundled_one(small):
    x = trial.kind_clip("bell", 0).audio[None]
    assert torch.equal(small.codec.encode(x), without_levels(load_codec(POCKET)).encode(x)[:, :2])


def test_arms_differ_in_their_mixtures_alone(small):
    recorded, seen, mixed = (small.arm(a) for a in ("none", "seen", "all"))
    n = FAST.n_items
    assert len(recorded) == 8 * FAST.n_recorded + 8 and len(seen) == len(mixed) == 2 * n
    assert torch.equal(seen.codes[:n], mixed.codes[:n]) and seen.captions[:n] == mixed.captions[:n]
    assert torch.equal(seen.codes[0], recorded.codes[0])
    assert not torch.equal(seen.codes[n:], mixed.codes[n:])
    with pytest.raises(KeyError):
        small.pool("some")


def test_encoders_of_the_words_differ_as_they_should(small):
    table, shuffled, one_hot = (changed_encoder(small.encoder, a) for a in ("table", "shuffled", "one-hot"))
    assert torch.equal(table.table, small.encoder.table)
    assert not torch.equal(shuffled.table, table.table) and shuffled.known == table.known
    rows = lambda e: sorted(map(tuple, e.table.tolist()))
    assert rows(shuffled) == rows(table)
    word = lambda e, text: e.encode([text])[0][1, : e.table.shape[1]]
    assert torch.equal(word(one_hot, "hound"), word(one_hot, "drizzle"))               # words that were never read
    known = torch.stack([word(one_hot, kind) for kind in KINDS])
    assert torch.count_nonzero(known @ known.T) == len(KINDS) and not (known @ word(one_hot, "hound")).any()
    assert len({w for words in claims.UNREAD.values() for w in words}) == 16
    read = {i for kind in KINDS for t in claims.TEMPLATES for i in table.pieces(t.format(kind))}
    for words in claims.UNREAD.values():
        for w in words:
            assert not read & set(table.pieces(w)), w


def test_scores_know_a_true_set_from_another(small):
    scale = Scale(small)
    clips, asked = claims.prompts_for(claims.SINGLES, 4)
    real = torch.stack([c.audio for c in clips])
    good, bad = scale.scores(real, asked, real), scale.scores(0.1 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0)), asked, real)
    assert good["kl"] == 0 and bad["kl"] > 0 and bad["fad"] > 2 * good["fad"] and good["diversity"] > bad["diversity"]
    assert "kernel" not in good


def test_levels_do_not_matter_to_the_ears(small):
    x = torch.stack([trial.kind_clip(kind, 0).audio for kind in KINDS])
    assert torch.allclose(claims.spectra(x), claims.spectra(0.3 * x), atol=1e-3)


def test_pairs_of_recordings_are_found_among_mixtures_of_others(monkeypatch):
    from audiogen_nb.data.clips import Clip
    from audiogen_nb.judge.embedding import FunctionEmbedder
    kinds = {"dog": 400.0, "bell": 1500.0, "bird": 4000.0}
    monkeypatch.setattr(claims, "RECORDED", {k: claims.RECORDED[k] for k in kinds})
    t = torch.arange(32_000) / 16_000
    clips = [Clip(torch.sin(6.283 * f * (1 + 0.01 * i) * t)[None], 16_000, (k,), k, "", f"{k}{i}", f"{k}{i}")
             for k, f in kinds.items() for i in range(5)]
    ear = FunctionEmbedder("bands", lambda x: claims.spectral_embedding(x, 16_000), 16_000, 32, "1")
    shelf = claims.PairShelf(ear, clips, 3)
    asked = [("dog", "bell"), ("dog", "bird"), ("bell", "bird")] * 4
    made = [claims.recorded_mixture(clips, pair, i, "true") for i, pair in enumerate(asked)]
    sounds, groups = [a for a, _ in made], [g for _, g in made]
    assert all(a.shape == (1, 64_000) and len(g) == 2 for a, g in made)
    assert shelf.heard(sounds, asked, groups, k=1).nanmean() > 0.8
    assert shelf.heard(sounds, asked[1:] + asked[:1], groups, k=1).nanmean() < 0.3


def test_every_claim_runs_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    tiny = TrialSettings(seeds=1, n_steps=2, n_recorded=1, n_items=8, n_each=1, n_clips=16, n_detector=2, n_real=3)
    monkeypatch.setattr(claims, "LAYOUTS", (("x128", "parallel"), ("x128", "delay")))
    monkeypatch.setattr(claims, "STREAMS", {"x128": claims.STREAMS["x128"]})
    for settings in ("GUIDANCE", "SAMPLING"):
        monkeypatch.setattr(claims, settings, {arm: how for arm, how in getattr(claims, settings).items()
                                               if arm in (CLAIMS[settings.lower()].arm, CLAIMS[settings.lower()].control)})
    monkeypatch.setattr(claims, "SIZES", {"small": claims.SIZES["small"], "large": claims.SIZES["small"]})
    runs = claim_runs(TrialWorld(tmp_path / "models", tiny), None, budget=0.01, equal_steps=1, codec_steps=2)
    found = run_claims(runs, tmp_path / "found.json")
    assert set(found) == {*CLAIMS, "detector"} and all(found[name]["rows"] for name in found)
    for name, claim in CLAIMS.items():
        if name != "streams":
            seeds = [row["seed"] for row in found[name]["rows"] if row["arm"] == claim.arm]
            assert seeds == [0]
    assert {row.get("stage") for row in found["streams"]["rows"]} == {None, "equal steps", "equal time"}
    never = {name: lambda: pytest.fail("run again") for name in runs}
    assert run_claims(never, tmp_path / "found.json") == found


def test_a_stopped_trial_keeps_what_it_has(tmp_path):
    def stop(): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run_claims({"a": lambda: [{"x": 1 / 3}], "b": stop}, tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["a"]["rows"] == [{"x": 0.33333}]


# The committed figures

def test_the_committed_results_are_whole():
    results = read_json(RESULTS)
    assert set(results) == {*CLAIMS, "detector", "recordings"}
    for name, claim in CLAIMS.items():
        rows = results[name]["rows"]
        for arm in (claim.arm, claim.control):
            stages = {row.get("stage") for row in rows if row["arm"] == arm}
            for stage in stages:
                assert [row["seed"] for row in rows if row["arm"] == arm and row.get("stage") == stage] == list(range(FULL.seeds))
        assert all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))
    assert RESULTS.stat().st_size < 200_000


def test_the_chapter_says_what_the_figures_say():
    text = "".join("".join(c["source"]) for c in json.loads((RESULTS.parents[2] / "18_paper_on_trial.ipynb").read_text("utf-8"))["cells"])
    table = {row["claim"]: row for row in claim_table(read_json(RESULTS))}
    for name, row in table.items():
        line = next(line for line in text.splitlines() if line.startswith("|") and f"`{name}`" in line)
        assert f"**{row['verdict']}**" in line, f"{name}: {row['verdict']}"
