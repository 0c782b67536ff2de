"""Self-supervised features: extractors of one face, InfoNCE and its bound, negatives, hidden spans, units, probes, small trainings."""
import itertools
import math

import pytest
import torch

from audiogen_nb import Codec
from audiogen_nb.data.clips import Clip
from audiogen_nb.data.toy_kinds import toy_clip
from audiogen_nb.peers.cpc import (
    CPC, CodecLatents, CPCConfig, CPCFeatures, FeatureExtractor, LinearProbe, LogMelFeatures, MFCCFeatures, ProbeWorld, cpc_loss,
    cpc_scores, first_wins, fit_cpc, info_nce, other_frames, pooled, recorded_world, toy_world, whole_frames)
from audiogen_nb.peers.hubert import (
    FeatureClusters, HuBERT, HuBERTConfig, HuBERTFeatures, features_of, fit_hubert, hubert_loss, mask_spans, masked_prediction_loss)

SMALL = dict(strides=(5, 4, 4), kernels=(10, 8, 8), widths=(8, 16, 16))                     # a hop of 80 samples
CONFIG = CPCConfig(**SMALL, context=16, n_steps=3, n_candidates=8)
MASKED = HuBERTConfig(**SMALL, dim=16, n_layers=2, n_heads=2, position_kernel=7, n_units=6, final_dim=8, mask_length=5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def audio():
    return torch.randn(4, 1, 4321, generator=generator()) * 0.1


@pytest.fixture(scope="module")
def toys():
    kinds = ("dog", "bell", "rain", "siren")
    return torch.stack([toy_clip(kind, seed, 0.4).audio for kind in kinds for seed in range(6)])


def extractors():
    torch.manual_seed(0)
    cpc, hubert = CPC(CONFIG), HuBERT(MASKED)
    found = [LogMelFeatures(), LogMelFeatures(hop_length=160, dim=20), MFCCFeatures(), MFCCFeatures(8000, 100, 5, 20),
             CodecLatents(Codec(Codec.preset("tiny"))), CPCFeatures(cpc), CPCFeatures(cpc, latents=True)]
    return found + [HuBERTFeatures(hubert, layer) for layer in (None, 0, 1, 2)]


# One face

@pytest.mark.parametrize("extractor", extractors(), ids=lambda e: type(e).__name__)
def test_an_extractor_keeps_its_promises(extractor, audio):
    assert isinstance(extractor, FeatureExtractor)
    assert all(isinstance(getattr(extractor, name), int) for name in ("sample_rate", "hop_length", "dim"))
    hop = extractor.hop_length
    for length in (hop * 9, hop * 9 + 1, hop * 10 - 1, 4321):
        x = extractor(audio[..., :length])
        assert x.shape == (4, math.ceil(length / hop), extractor.dim) and x.dtype == torch.float32
    assert not x.requires_grad and torch.equal(x, extractor(audio))
    loud = torch.cat([audio[1:2], 100 * audio[2:]])                                  # what stands beside it
    assert (extractor(audio[1:2]) - x[1:2]).abs().max() < 1e-4 * x.abs().max().clamp_min(1)
    assert (extractor(loud)[:1] - x[1:2]).abs().max() < 1e-4 * x.abs().max().clamp_min(1)


@pytest.mark.parametrize("extractor", extractors(), ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("wrong", [torch.zeros(1, 400), torch.zeros(1, 2, 400), torch.zeros(1, 1, 0), torch.full((1, 1, 400), math.nan)])
def test_an_extractor_refuses_what_is_no_mono_batch(extractor, wrong):
    with pytest.raises(ValueError, match="audio"):
        extractor(wrong)


def test_learned_features_are_a_copy_in_evaluation_mode(audio):
    for model, kind in ((CPC(CONFIG), CPCFeatures), (HuBERT(MASKED), HuBERTFeatures)):
        extractor = kind(model.train())
        before = extractor(audio)
        with torch.no_grad():
            next(model.parameters()).add_(1)
        assert torch.equal(extractor(audio), before) and model.training and not extractor.model.training


def test_mel_windows_lie_around_the_middle_of_their_frames():
    click = torch.zeros(1, 1, 3200)
    click[..., 5 * 320 + 160] = 1                                                    # the middle of frame 5
    level = LogMelFeatures()(click)[0].sum(1)
    assert level.argmax() == 5 and (level[4] - level[6]).abs() < 1e-2 * level.abs().max()


def test_the_last_frame_is_filled_with_silence():
    x = whole_frames(torch.ones(1, 1, 7), 5)
    assert x.tolist() == [[[1.0] * 7 + [0.0] * 3]]


# InfoNCE

@pytest.mark.parametrize("scores", [[[0.0, 0.0]], [[2.0, 0.0, -1.0], [0.5, 1.0, 3.0]], [[[1.0, 2.0]], [[-3.0, 4.0]]]])
def test_info_nce_is_the_hand_calculation(scores):
    rows = torch.tensor(scores).flatten(0, -2).tolist()
    by_hand = [-math.log(math.exp(row[0]) / sum(map(math.exp, row))) for row in rows]
    assert info_nce(torch.tensor(scores)).item() == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-6)


def test_info_nce_survives_large_scores():
    assert info_nce(torch.tensor([[1e4, 0.0]])).item() == 0 and math.isfinite(info_nce(torch.tensor([[0.0, 1e4]])).item())


def test_a_tie_is_no_win():
    assert first_wins(torch.tensor([[1.0, 1.0], [2.0, 1.0], [0.0, 1.0], [3.0, -1.0]])).item() == 0.5


@pytest.mark.parametrize("n", [2, 16, 128])
def test_equal_scores_cost_log_n_and_blind_ones_more(n):
    assert info_nce(torch.full((3, n), 7.0)).item() == pytest.approx(math.log(n), abs=1e-5)
    assert info_nce(torch.randn(4000, n, generator=generator())).item() > math.log(n)


@pytest.mark.parametrize("information, n", [*itertools.product((0.3, 1.0, 4.0), (4, 64))])
def test_the_bound_holds_for_a_known_source(information, n):
    "Pairs of normal numbers; the best scores give the most, others less, none more than there is"
    g, rho, rows = generator(3), math.sqrt(1 - math.exp(-2 * information)), 4000
    c, x = torch.randn(rows, 1, generator=g), torch.randn(rows, n, generator=g)
    x[:, :1] = rho * c + math.sqrt(1 - rho**2) * x[:, :1]
    best = x.square() / 2 - (x - rho * c).square() / (2 * (1 - rho**2))
    bound = math.log(n) - info_nce(best).item()
    assert 0 < bound < min(information + 0.1, math.log(n))
    assert math.log(n) - info_nce(best / 2).item() < bound


# Negatives

@pytest.mark.parametrize("where", ["clip", "batch"])
def test_others_are_never_the_frame_itself_and_stay_where_they_should(where):
    others = other_frames(3, 5, 400, where, generator())
    place = torch.arange(15).view(3, 5, 1)
    assert others.shape == (3, 5, 400) and (others != place).all() and others.min() >= 0 and others.max() < 15
    assert ((others // 5 == place // 5).all()) == (where == "clip")
    for item, frame in itertools.product(range(3), range(5)):
        assert len(others[item, frame].unique()) == (4 if where == "clip" else 14), "all of them occur"
    assert torch.equal(others, other_frames(3, 5, 400, where, generator()))
    assert not torch.equal(others, other_frames(3, 5, 400, where, generator(1)))


def test_scores_are_those_of_the_formula(audio):
    torch.manual_seed(0)
    model = CPC(CONFIG)
    z, c = model(whole_frames(audio, 80))
    others = other_frames(*z.shape[:2], 7, "batch", generator())
    for k, scores in enumerate(cpc_scores(model, audio, generator()), 1):
        w = model.predictors.weight[(k - 1) * 16 : k * 16]
        assert scores.shape == (4, z.shape[1] - k, 8)
        for item, t in ((0, 0), (3, 20), (1, z.shape[1] - k - 1)):
            candidates = torch.cat([z[item, t + k][None], z.flatten(0, 1)[others[item, t + k]]])
            assert torch.allclose(scores[item, t], candidates @ w @ c[item, t], atol=1e-5)


def test_the_context_hears_no_future(audio):
    model = CPC(CONFIG).eval()
    changed = audio.clone()
    changed[..., 2000:] = 0.5
    same = (model(audio)[1] == model(changed)[1]).all(-1).all(0)
    assert same[: 2000 // 80 - 2].all() and not same[-1]


def test_a_model_that_was_not_trained_is_near_log_n(audio):
    torch.manual_seed(0)
    loss = cpc_loss(CPC(CONFIG), audio, generator())["loss"].item()
    assert math.log(8) - 0.1 < loss < math.log(8) + 1


@pytest.mark.parametrize("changes, words", [
    (dict(strides=(5, 4)), "one value for each"), (dict(kernels=(2, 8, 8)), "shorter than its stride"), (dict(n_candidates=1), "n_candidates"),
    (dict(negatives="speaker"), "negatives"), (dict(context=0), "context"), (dict(strides=(), kernels=(), widths=()), "one value for each")])
def test_a_wrong_geometry_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        CPCConfig(**{**SMALL, **changes})


def test_wrong_calls_are_refused(audio):
    with pytest.raises(ValueError, match="longer than 3 frames"):
        cpc_loss(CPC(CONFIG), audio[..., :240])
    with pytest.raises(ValueError, match="where"):
        other_frames(2, 4, 3, "here")
    with pytest.raises(ValueError, match="no other frame"):
        other_frames(2, 1, 3, "clip")


def test_cpc_learns_and_resumes(toys, tmp_path):
    model, log = fit_cpc(CONFIG, toys, 40, tmp_path / "whole", seed=1, learning_rate=3e-3, progress=False)
    assert sum(row["loss"] for row in log[-8:]) / 8 < math.log(8) - 0.15
    assert not model.training and len(log) == 40
    again, _ = fit_cpc(CONFIG, toys, 40, tmp_path / "whole", seed=1, learning_rate=3e-3, progress=False)     # is read
    _, other_log = fit_cpc(CONFIG, toys, 3, tmp_path / "other", seed=2, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    assert other_log[0]["loss"] != log[0]["loss"], "another seed, another run"


# HuBERT

@pytest.mark.parametrize("frames, probability, length", [(64, 0.8, 10), (500, 0.65, 10), (300, 0.3, 5), (64, 0.5, 1)])
def test_spans_have_their_length_and_share(frames, probability, length):
    mask = mask_spans(300, frames, probability, length, generator())
    assert mask.shape == (300, frames) and mask.dtype == torch.bool
    for row in mask[:40].tolist():
        runs = [len(list(run)) for hidden, run in itertools.groupby(row) if hidden]
        assert runs and min(runs) >= length
    assert mask.float().mean().item() == pytest.approx(1 - (1 - probability / length) ** length, abs=0.03)
    assert torch.equal(mask, mask_spans(300, frames, probability, length, generator()))
    assert not torch.equal(mask, mask_spans(300, frames, probability, length, generator(1)))


def test_a_short_clip_has_a_span_too():
    assert mask_spans(2, 4, 0.8, 10, generator()).all()
    assert (mask_spans(50, 20, 0.01, 6, generator()).sum(1) == 6).all()


def test_the_loss_counts_hidden_frames_only():
    g = generator()
    logits, targets = torch.randn(2, 9, 4, generator=g), torch.randint(4, (2, 9), generator=g)
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, 2:5] = mask[1, 7] = True
    by_hand = [-logits[i, t].log_softmax(-1)[targets[i, t]].item() for i, t in mask.nonzero().tolist()]
    loss = masked_prediction_loss(logits, targets, mask)
    assert loss.item() == pytest.approx(sum(by_hand) / 4, abs=1e-6)
    assert torch.equal(loss, masked_prediction_loss(torch.where(mask[..., None], logits, 50.0), targets, mask))
    assert not torch.equal(loss, masked_prediction_loss(logits + torch.randn(4, generator=g), targets, mask))
    with pytest.raises(ValueError, match="hides no frame"):
        masked_prediction_loss(logits, targets, ~(mask | True))


def test_a_hidden_frame_is_hidden_and_both_sides_are_heard(audio):
    torch.manual_seed(0)
    model = HuBERT(MASKED).eval()
    whole = whole_frames(audio, 80)
    everything = torch.ones(4, whole.shape[-1] // 80, dtype=torch.bool)
    assert (model(whole, everything)[1][-1][0] - model(whole, everything)[1][-1][1]).abs().max() < 1e-5
    changed = whole.clone()
    changed[..., -400:] = 0.5
    assert not torch.allclose(model(whole)[1][1][:, 0], model(changed)[1][1][:, 0], atol=1e-6), "the future is heard"


def test_logits_are_cosines_over_the_temperature(audio):
    model = HuBERT(MASKED)
    states = model(whole_frames(audio, 80))[1][-1]
    logits = model.logits(states)
    by_hand = torch.cosine_similarity(model.project(states)[1, 3], model.units[4], dim=0) / 0.1
    assert logits[1, 3, 4].item() == pytest.approx(by_hand.item(), abs=1e-4) and logits.abs().max() <= 10 + 1e-4


def test_the_penalty_is_part_of_the_loss(audio):
    model, targets = HuBERT(MASKED), torch.zeros(4, 55, dtype=torch.long)
    light, heavy = (hubert_loss(model, audio, targets, generator(), penalty) for penalty in (0.0, 10.0))
    assert light["loss"].item() == light["masked"].item()
    assert heavy["loss"].item() == pytest.approx((heavy["masked"] + 10 * heavy["square"]).item(), rel=1e-6)


def test_clusters_are_those_of_the_points():
    g = generator()
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 1000.0]])
    x = (centres[:, None] + torch.randn(3, 50, 2, generator=g) * torch.tensor([1.0, 100.0]) * 0.1).flatten(0, 1)
    units = FeatureClusters(x, 3, seed=0)(x).view(3, 50)
    assert (units == units[:, :1]).all() and len(units[:, 0].unique()) == 3
    again = FeatureClusters(x, 3, seed=0)
    assert torch.equal(again(x).view(3, 50), units)
    assert torch.equal(again(x.view(3, 50, 2)), units), "any shape before the last"
    with pytest.raises(ValueError, match="at least as many frames"):
        FeatureClusters(x[:2], 3)


@pytest.mark.parametrize("changes, words", [
    (dict(dim=15), "multiple of n_heads"), (dict(position_kernel=6), "position_kernel"), (dict(temperature=0.0), "temperature"),
    (dict(mask_probability=1.5), "mask_probability"), (dict(n_units=1), "n_units"), (dict(widths=(8,)), "one value for each")])
def test_a_wrong_transformer_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        HuBERTConfig(**{**SMALL, **changes})


def test_hubert_learns_and_resumes(toys, tmp_path):
    extractor = MFCCFeatures(hop_length=80)
    targets = FeatureClusters(features_of(extractor, toys), 6)(features_of(extractor, toys))
    share = targets.flatten().bincount(minlength=6) / targets.numel()
    model, log = fit_hubert(MASKED, toys, targets, 80, tmp_path / "whole", seed=1, learning_rate=3e-3, progress=False)
    assert sum(row["masked"] for row in log[-10:]) / 10 < torch.special.entr(share).sum() - 0.1
    again, _ = fit_hubert(MASKED, toys, targets, 80, tmp_path / "whole", seed=1, learning_rate=3e-3, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    for wrong in (targets[:5], targets[:, :9], targets + 1):
        with pytest.raises(ValueError, match="targets"):
            fit_hubert(MASKED, toys, wrong, 1, tmp_path / "wrong", progress=False)
    with pytest.raises(ValueError, match="layer"):
        HuBERTFeatures(model, 3)


# Probes

def test_a_probe_is_at_its_optimum_and_the_same_each_time():
    g = generator()
    kinds = torch.arange(3).repeat(30)
    x = torch.randn(90, 4, generator=g) * torch.tensor([1.0, 100.0, 0.01, 1.0]) + 3 * torch.eye(3, 4)[kinds]
    probe, again = LinearProbe(x, kinds), LinearProbe(x, kinds)
    assert torch.equal(probe.weight, again.weight) and probe.accuracy(x, kinds) > 0.8
    standard = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    wrong = probe(x).softmax(1) - torch.eye(3)[kinds]
    assert (wrong.T @ standard + probe.weight).abs().max() < 1e-2 and wrong.sum(0).abs().max() < 1e-2
    strict = LinearProbe(x, kinds, strength=100.0)
    assert strict.weight.norm() < probe.weight.norm()
    with pytest.raises(ValueError, match="x must be"):
        LinearProbe(x, kinds[:5])


def test_a_clip_is_mean_and_deviation(audio):
    extractor = MFCCFeatures()
    x = extractor(audio)
    found = pooled(extractor, audio, batch_size=3)
    assert torch.allclose(found[:, :39], x.mean(1), atol=1e-4) and torch.allclose(found[:, 39:], x.std(1, correction=0), atol=1e-4)


def test_a_toy_world_never_asks_for_a_clip_it_has_shown():
    world = toy_world(3, ("dog", "bell"), n_unlabelled=3, n_train=2, n_test=4, seconds=0.4)
    assert [len(x) for x in (world.unlabelled, world.train, world.test)] == [6, 4, 8] and world.chance == 0.5
    everything = torch.cat([world.unlabelled, world.train, world.test]).flatten(1)
    assert len(everything.unique(dim=0)) == 18
    assert not torch.equal(toy_world(4, ("dog", "bell"), 3, 2, 4, 0.4).test, world.test)
    with pytest.raises(ValueError, match="8000"):
        world.accuracy(MFCCFeatures(8000))


def test_recordings_are_split_by_file():
    g = generator()
    clips = [Clip(torch.randn(1, 800, generator=g), 8000, (), kind, "", f"{kind}{i}{piece}", f"{kind}{i}")
             for kind, n in (("dog", 20), ("cat", 20), ("rare", 3)) for i in range(n) for piece in "ab"]
    world = recorded_world(clips, 0, least=10, seconds=0.2)
    assert isinstance(world, ProbeWorld) and world.kinds == ("cat", "dog") and world.sample_rate == 8000
    assert len(world.train) + len(world.test) == 40 and world.test.shape[1:] == (1, 1600)
    held = {tuple(x[:4]) for x in world.test.flatten(1).tolist()}
    shown = {tuple(x[:4]) for part in (world.unlabelled, world.train) for x in part.flatten(1).tolist()}
    pieces = {clip.group: {tuple(c.audio[0, :4].tolist()) for c in clips if c.group == clip.group} for clip in clips}
    assert all(pieces[group].isdisjoint(shown) for group in pieces if not pieces[group].isdisjoint(held))
    assert not torch.equal(recorded_world(clips, 1, least=10, seconds=0.2).test[0], world.test[0])
    with pytest.raises(ValueError, match="no kind has 99"):
        recorded_world(clips, 0, least=99)
