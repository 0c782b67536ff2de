"Mixing: levels, offsets, captions, batches, and AudioCraft's reference numbers."
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiogen_nb.data.mixing import JOINERS, audiocraft_mix, join_captions, mix_batch, mix_pair, random_mix
from audiogen_nb.sound import level_db, set_level

DATA = Path(__file__).parent / "data"
REFERENCE = json.loads((DATA / "mixing.json").read_text())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=seeded(seed))


@pytest.mark.parametrize("snr", [-5.0, 0.0, 7.5])
def test_ratio_is_what_was_asked_for(snr):
    clean, other = noise(1, 4000), 3 * noise(1, 4000, seed=1)
    rest = mix_pair(clean, other, snr, 0) - clean
    assert abs((level_db(clean) - level_db(rest)).item() - snr) < 1e-3


def test_noise_starts_at_the_offset_and_keeps_the_length():
    clean = noise(1, 1000)
    for length in (300, 1000, 2500):
        mixed = mix_pair(clean, noise(1, length, seed=1), 0.0, 400)
        assert mixed.shape == clean.shape
        assert torch.equal(mixed[:, :400], clean[:, :400]) and not torch.equal(mixed[:, 400:500], clean[:, 400:500])
    assert torch.equal(mix_pair(clean, noise(1, 300, seed=1), 0.0, 400)[:, 700:], clean[:, 700:])


def test_silence_stays_harmless():
    clean = noise(1, 100)
    assert torch.equal(mix_pair(clean, torch.zeros(1, 100), 0.0, 0), clean)
    assert random_mix(torch.zeros(1, 100), clean, seeded()).isfinite().all()


def test_random_mix_depends_on_its_generator_only():
    clean, other = noise(1, 1000), noise(1, 1000, seed=1)
    first = random_mix(clean, other, seeded(5))
    torch.rand(3)
    assert torch.equal(first, random_mix(clean, other, seeded(5)))
    assert not torch.equal(first, random_mix(clean, other, seeded(6)))


def test_random_mix_keeps_the_level_and_never_clips():
    spiky = torch.zeros(1, 1000); spiky[:, 500] = 0.99
    for seed in range(20):
        assert random_mix(spiky, spiky, seeded(seed)).abs().max() <= 0.9901
        clean = noise(1, 1000)
        assert abs((level_db(random_mix(clean, noise(1, 1000, seed=1), seeded(seed))) - level_db(clean)).item()) < 1e-3


def test_random_mix_respects_range_and_overlap():
    clean, other = noise(1, 1000), noise(1, 1000, seed=1)
    fixed = random_mix(clean, other, seeded(), snr_range=(3.0, 3.0), min_overlap=1.0)
    expected = mix_pair(clean, other, 3.0, 0)
    assert torch.allclose(fixed / fixed.norm(), expected / expected.norm(), atol=1e-5)
    for seed in range(30):
        quarter = random_mix(clean, other, seeded(seed), min_overlap=0.75)
        ratio = quarter[0, 251:] / clean[0, 251:]
        assert ratio.std() > 1e-3  # from a quarter on, something has been added
    assert random_mix(noise(1, 1), noise(1, 1, seed=1), seeded(), min_overlap=0.0).shape == (1, 1)


def test_captions():
    assert join_captions("a dog", "rain") == "a dog and rain"
    assert join_captions("a dog.", "rain", " ") == "a dog rain"
    assert join_captions("Rain.", "rain") == "Rain"
    assert join_captions("", "rain") == "rain"
    with pytest.raises(TypeError, match="first"): join_captions(None, "rain")
    with pytest.raises(TypeError, match="second"): join_captions("rain", None)


def test_batches_keep_their_size_and_never_mix_a_clip_with_itself():
    audio, captions = noise(5, 1, 200), list("abcde")
    met = set()
    for seed in range(40):
        mixed, joined = mix_batch(audio, captions, 1.0, seeded(seed), joiners=["+"])
        assert mixed.shape == audio.shape and len(joined) == 5
        for own, caption in zip(captions, joined):
            first, second = caption.split("+")
            assert first == own != second
            met.add(caption)
    assert len(met) == 20


def test_batch_probability_and_joiners():
    audio, captions = noise(50, 1, 50), [f"sound {i}" for i in range(50)]
    same, joined = mix_batch(audio, captions, 0.0, seeded())
    assert torch.equal(same, audio) and joined == captions and same is not audio
    some = mix_batch(audio, captions, 0.3, seeded())[1]
    assert 5 <= sum(a != b for a, b in zip(some, captions)) <= 25
    assert {j for j in JOINERS if any(j in c for c in mix_batch(audio, captions, 1.0, seeded())[1])} == set(JOINERS)
    assert mix_batch(audio[:1], ["x"], 1.0, seeded())[1] == ["x"]


@pytest.mark.parametrize("case", REFERENCE["mixing"], ids=lambda case: f"case{case['case']}")
def test_audiocraft_numbers(case):
    tensors = load_file(DATA / "mixing.safetensors")
    clean, other, out = (tensors[f"mix{case['case']}_{name}"] for name in ("clean", "noise", "out"))
    ours = audiocraft_mix(clean, other, case["snr"], case["start"], case["rms_level_db"])
    assert (ours - out).abs().max() < 1e-5


def test_audiocraft_batch():
    tensors, r = load_file(DATA / "mixing.safetensors"), REFERENCE["mixsamples"]
    whole, a, b = tensors["mixsamples_in"][:, 0], r["perm_sources"][:3], r["perm_targets"][:3]
    ours = audiocraft_mix(whole[a], whole[b], r["snr"], r["start"], r["rms_level_db"])
    assert (ours - tensors["mixsamples_out"][:, 0]).abs().max() < 1e-5
    texts = r["descriptions_in"]
    assert [join_captions(texts[i], texts[j], " ") for i, j in zip(a, b)] == r["descriptions_out"]


def test_audiocraft_quirks():
    "Half a batch comes back, one of it mixed with itself; a peak taken before the magnitude is undone by the level"
    tensors, r = load_file(DATA / "mixing.safetensors"), REFERENCE["mixsamples"]
    assert len(tensors["mixsamples_in"]) == 6 and len(tensors["mixsamples_out"]) == 3
    assert r["perm_sources"][0] == r["perm_targets"][0] == 3 and r["descriptions_out"][0] == r["descriptions_in"][3]
    lopsided = torch.tensor([[0.1, -0.5, 0.05]])
    normalised = lopsided / lopsided.max().abs()
    assert normalised.abs().max() > 4.9 and torch.allclose(set_level(normalised, -25.0), set_level(lopsided, -25.0))


def test_ratios_are_drawn_evenly_around_zero():
    ones, flip = torch.ones(1, 100), torch.ones(1, 100)
    flip[:, 1::2] = -1
    mixes = torch.cat([random_mix(ones, flip, seeded(seed), min_overlap=1.0) for seed in range(400)])
    ratios = 20 * torch.log10((mixes[:, -2] + mixes[:, -1]) / (mixes[:, -2] - mixes[:, -1]).abs())
    assert ratios.abs().max() <= 5.001 and ratios.min() < -4.8 and ratios.max() > 4.8
    assert abs(ratios.mean()) < 5 * 10 / 12 ** 0.5 / 400 ** 0.5 and ratios.frac().abs().max() > 0.5


def test_errors_say_what_is_wrong():
    clean = noise(1, 100)
    with pytest.raises(ValueError, match="offset"): mix_pair(clean, clean, 0.0, 100)
    with pytest.raises(ValueError, match="offset"): mix_pair(clean, clean, 0.0, -1)
    with pytest.raises(ValueError, match="agree"): mix_pair(clean, noise(2, 100), 0.0, 0)
    with pytest.raises(ValueError, match="clean has NaN"): mix_pair(clean * float("nan"), clean, 0.0, 0)
    with pytest.raises(TypeError, match="noise must be"): mix_pair(clean, [0.1], 0.0, 0)
    with pytest.raises(ValueError, match="agree"): mix_pair(clean, clean[0], 0.0, 0)
    with pytest.raises(ValueError, match="snr_range"): random_mix(clean, clean, seeded(), snr_range=(1, 0))
    with pytest.raises(ValueError, match="min_overlap"): random_mix(clean, clean, seeded(), min_overlap=2)
    with pytest.raises(ValueError, match="captions"): mix_batch(noise(2, 1, 50), ["one"], 0.5, seeded())
    with pytest.raises(ValueError, match="p must"): mix_batch(noise(2, 1, 50), ["a", "b"], 5, seeded())
