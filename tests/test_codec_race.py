"""The race of codecs: what a shelf recognises, what the committed tables say, and how a variant is trained and refused."""
import json
from pathlib import Path

import pytest
import torch

from audiogen_nb.codec.adversarial import DISCRIMINATOR_PRESETS, DiscriminatorConfig, MSSTFTDiscriminator
from audiogen_nb.data.toy_kinds import toy_clip
from audiogen_nb.judge.distances import spectral_embedding
from audiogen_nb.judge.embedding import FunctionEmbedder
from audiogen_nb.judge.recognition import RecordingShelf
from audiogen_nb.lab.codec_race import COMMON, VARIANTS, fit_variant, rebuild_clips, with_intervals
from audiogen_nb.train.codec import CodecTraining

RESULTS = Path(__file__).resolve().parent.parent / "nbs" / "labs" / "results"
RACE = json.loads((RESULTS / "codec_race.json").read_text("utf-8"))
ORACLES = json.loads((RESULTS / "codec_oracles.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def shelf():
    ear = FunctionEmbedder("stand-in", lambda x: spectral_embedding(x, 16_000), 16_000, 32, "1", seconds=1.0)
    return RecordingShelf(ear, [toy_clip(kind, seed, 1.2) for kind in ("dog", "bell", "rain") for seed in range(4)])


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_training_that_can_be_run(name):
    settings = CodecTraining(**{"n_steps": VARIANTS[name].n_steps, **COMMON, **VARIANTS[name].training})
    assert settings.n_steps > 1000 and (settings.schedule == "constant" or settings.only_levels)


def test_an_unknown_variant_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="unknown variant 'huge'; choose from"):
        fit_variant("huge", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_round_trip_that_is_late_is_put_in_step_again(shelf):
    clips = shelf.clips[:3]
    late = rebuild_clips(shelf, clips, lambda audio: torch.nn.functional.pad(audio, (40, 0)))
    assert all(torch.equal(y[:, :15_000], shelf.cut(clip)[:, :15_000]) for y, clip in zip(late, clips))


def test_differences_are_made_clip_by_clip(shelf):
    scores, files = {"cosine": torch.tensor([0.1, 0.5, 0.9])}, ["a", "b", "c"]
    better = {"cosine": scores["cosine"] + 0.05}
    mean, low, high = with_intervals(better, files, scores)["cosine"]
    assert (mean, low, high) == pytest.approx((0.05, 0.05, 0.05), abs=1e-3)


def test_scores_that_a_clip_has_not_are_left_out(shelf):
    scores = {"kind_1": torch.tensor([1.0, torch.nan, 0.0, 1.0])}
    assert with_intervals(scores, ["a", "b", "c", "d"])["kind_1"][0] == pytest.approx(2 / 3, abs=1e-3)


def test_compressed_discriminators_see_what_is_faint():
    "A faint noise under a loud tone changes what they see much more than what the linear ones see"
    time = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * torch.pi * 500 * time)[None, None]
    noisy = tone + 1e-3 * torch.randn(tone.shape, generator=torch.Generator().manual_seed(0))
    changed = {}
    for name in ("pocket", "compressed"):
        torch.manual_seed(0)
        model = MSSTFTDiscriminator(DISCRIMINATOR_PRESETS[name])
        with torch.no_grad():
            pairs = [(a[0], b[0]) for (_, a), (_, b) in zip(model(tone), model(noisy))]
        changed[name] = sum(((a - b).norm() / a.norm()).item() for a, b in pairs) / len(pairs)
    assert changed["compressed"] > 5 * changed["pocket"], changed


@pytest.mark.parametrize("power", [0.0, -1.0, 1.5])
def test_a_power_that_is_none_is_refused(power):
    with pytest.raises(ValueError, match="power must be above 0 and at most 1"):
        DiscriminatorConfig(power=power)


def test_the_committed_race_is_whole():
    assert RACE["clips"]["n"] > 500 and RACE["as it is"]["scores"]["cosine"][0] == pytest.approx(1, abs=1e-3)
    assert set(VARIANTS) <= set(RACE)
    for name in VARIANTS:
        row = RACE[name]
        assert row["steps"] == VARIANTS[name].n_steps and row["minutes"] > 5 and 0 < row["mel_distance"] < 2
        assert row["kbit_s"] == pytest.approx(VARIANTS[name].codec["n_q"] * 0.5, rel=0.05)                   # 10 bits, 50 a second
        for low_mean_high in (*row["scores"].values(), *row["against_bundled"].values()):
            mean, low, high = low_mean_high
            assert low <= mean <= high
        assert (len(row["hinge"]) == 50) == ("discriminator" in VARIANTS[name].training)


def test_the_chapter_says_what_the_oracles_say():
    rows = {name: row["scores"]["cosine"] for name, row in ORACLES["rows"].items()}
    assert rows["its band levels put right"][1] > rows["through the codec"][2]
    assert rows["only its phases"][1] > rows["noise with the right band levels"][2] > rows["through the codec"][2]
    noises = [rows[f"original + noise at {db} dB"][0] for db in (-70, -60, -50, -40)]
    assert noises == sorted(noises, reverse=True) and abs(noises[2] - rows["through the codec"][0]) < 0.1
