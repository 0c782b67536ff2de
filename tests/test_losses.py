"The losses: AudioCraft's reference numbers, and what training relies on."
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, multiprocessing

from audiogen_nb.codec.adversarial import (DISCRIMINATOR_PRESETS, DiscriminatorConfig, MSSTFTDiscriminator, discriminator_loss,
                                     feature_loss, generator_loss)
from audiogen_nb.codec.balancer import Balancer
from audiogen_nb.codec.losses import MelLoss, MelScale

DATA = Path(__file__).parent / "data" / "parity"
WEIGHTS = {"a": 4.0, "b": 1.0, "c": 0.1}


@pytest.fixture(scope="module")
def reference():
    return load_file(DATA / "losses.safetensors")


@pytest.fixture(scope="module")
def judged(reference):
    "AudioCraft's discriminator in our class, and what it says of both sounds"
    disc = MSSTFTDiscriminator(replace(MSSTFTDiscriminator.preset("audiocraft"), n_filters=4))
    state = load_file(DATA / "msstftd_state.safetensors")
    disc.load_state_dict({key.replace(".conv.", ".").replace("conv_post", "last"): weights
                          for key, weights in state.items() if not key.endswith("window")})
    fake = reference["fake"].clone().requires_grad_()
    return disc(reference["real"]), disc(fake), fake


def close(ours, theirs, atol=0.0, rtol=0.0):
    torch.testing.assert_close(ours.detach(), theirs, atol=atol, rtol=rtol)


def close_to_largest(ours, theirs):
    "Within 5e-5 of the largest value: ten times what rounding leaves"
    assert (ours - theirs).abs().max() < 5e-5 * theirs.abs().max()


def noise(*shape, seed=0):
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Mel

def test_mel_loss_and_its_gradient_equal_audiocraft(reference):
    fake = reference["fake"].clone().requires_grad_()
    loss = MelLoss(16_000, [2 ** i for i in range(6, 11)], f_min=64, form="audiocraft")(reference["real"], fake)
    loss.backward()
    close(loss, reference["msspec_loss"], rtol=1e-4)
    close_to_largest(fake.grad, reference["msspec_grad_wrt_fake"])


@pytest.mark.parametrize("i", range(5))
def test_mel_spectrogram_equals_audiocraft(reference, i):
    theirs = reference[f"msspec_scale{i}_mel_linear_real"]
    assert (MelScale(16_000, 2 ** (6 + i), f_min=64)(reference["real"][:1]) - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("form", ["paper", "audiocraft", "log"])
def test_mel_loss_of_a_batch_is_the_mean_of_its_items(form):
    loss, x, y = MelLoss(16_000, (64, 512), form=form), noise(3, 1, 4000), noise(3, 1, 4000, seed=1)
    close(loss(x, y), torch.stack([loss(a[None], b[None]) for a, b in zip(x, y)]).mean(), rtol=1e-5)
    assert loss(x, x) == 0 and not torch.equal(loss(x, y), MelLoss(16_000, (64, 512), form=form, alpha=(1.0, 2.0))(x, y))


def test_a_perfect_reconstruction_has_no_gradient():
    x = noise(1, 1, 4000)
    y = x.clone().requires_grad_()
    sum(MelLoss(16_000, (64, 512), form=form)(x, y) for form in ("paper", "audiocraft", "log")).backward()
    assert y.grad.abs().max() == 0


# Discriminators

@pytest.mark.parametrize("i", range(5))
def test_discriminator_equals_audiocraft(reference, judged, i):
    real, fake, _ = judged
    close(real[i][0], reference[f"disc{i}_logits_real"], atol=1e-4)
    close(fake[i][0], reference[f"disc{i}_logits_fake"], atol=1e-4)
    statistics = torch.stack([torch.stack([f.mean(), f.std(), f.abs().mean()]) for f in fake[i][1]])
    close(statistics, reference[f"disc{i}_fmap_mean_std_absmean_fake"], atol=1e-5)


def test_feature_maps_equal_audiocraft(reference, judged):
    for layer, features in enumerate(judged[1][1][1]):
        close(features[:1], reference[f"disc1_item0_fmap{layer}_fake"], atol=1e-4)


def test_adversarial_losses_equal_audiocraft(reference, judged):
    real, fake, audio = judged
    close(generator_loss(fake), reference["adv_g_loss"], rtol=1e-4)
    close(discriminator_loss(real, fake), reference["adv_d_loss"], rtol=1e-4)
    close(feature_loss(real, fake), reference["feat_loss"], rtol=1e-4)
    close(generator_loss(fake[:1]), reference["crit_hinge_gen_disc0"], rtol=1e-4)
    close(discriminator_loss(real[:1], fake[:1]), reference["crit_hinge_real_disc0"] + reference["crit_hinge_fake_disc0"], rtol=1e-4)
    ours, = torch.autograd.grad(4 * generator_loss(fake) + 4 * feature_loss(real, fake), [audio], retain_graph=True)
    close_to_largest(ours, reference["grad_4adv_4feat_wrt_fake"])


def said(*verdicts):
    "One list of verdicts for each scale, no features"
    return [(torch.tensor(v), []) for v in verdicts]


def test_the_generator_loss_of_audiocraft_is_minus_the_mean_verdict():
    assert generator_loss(said([0.5, 1.5], [3.0])).item() == -2.0
    assert torch.equal(generator_loss(said([0.5, 1.5], [3.0]), form="audiocraft"), generator_loss(said([0.5, 1.5], [3.0])))


def test_the_generator_loss_of_the_paper_is_a_hinge():
    "Means of max(0, 1 - D) over a map, then over the scales"
    assert generator_loss(said([0.5, 1.5], [3.0]), form="paper").item() == 0.125
    assert generator_loss(said([-2.0], [1.0]), form="paper").item() == 1.5


@pytest.mark.parametrize(("form", "pulls"), [("audiocraft", [-0.5, -0.5]), ("paper", [-0.5, 0.0])])
def test_only_the_paper_form_stops_at_the_margin(form, pulls):
    verdicts = torch.tensor([0.0, 5.0], requires_grad=True)
    generator_loss([(verdicts, [])], form).backward()
    assert verdicts.grad.tolist() == pulls


def test_an_unknown_form_of_the_generator_loss_is_refused():
    with pytest.raises(ValueError, match="form must be one of"):
        generator_loss(said([0.0]), form="hinge")


@pytest.mark.parametrize("name", DISCRIMINATOR_PRESETS)
def test_a_discriminator_teaches_both_sides(name):
    torch.manual_seed(0)
    disc = MSSTFTDiscriminator(replace(MSSTFTDiscriminator.preset(name), n_filters=2))
    fake = noise(1, 1, 4000).requires_grad_()
    real_says, fake_says = disc(noise(1, 1, 4000, seed=1)), disc(fake)
    discriminator_loss(real_says, fake_says).backward(inputs=list(disc.parameters()), retain_graph=True)
    assert fake.grad is None and all(p.grad.abs().sum() > 0 for p in disc.parameters() if p.ndim > 1)
    before = [p.grad.clone() for p in disc.parameters()]
    Balancer({"g": 1.0, "f": 1.0}).backward({"g": generator_loss(fake_says), "f": feature_loss(real_says, fake_says)}, fake)
    assert fake.grad.abs().sum() > 0 and all(torch.equal(a, p.grad) for a, p in zip(before, disc.parameters()))


@pytest.mark.parametrize("shape", [(1, 1, 511), (1, 4000), (1, 2, 4000)])
def test_discriminator_refuses_what_it_cannot_judge(shape):
    with pytest.raises(ValueError, match="at least 512"):
        MSSTFTDiscriminator(MSSTFTDiscriminator.preset("tiny"))(torch.zeros(shape))


def test_discriminator_settings_that_cannot_work_are_refused():
    for wrong in ({"windows": ()}, {"n_filters": 0}, {"overlap": 0}, {"kernel_size": (0, 8)}):
        with pytest.raises(ValueError, match="at least 1"):
            DiscriminatorConfig(**wrong)


# Balancer

def three_losses(reference, n, y):
    return {"a": (y - reference[f"bal_t1_{n}"]).abs().mean(), "b": (y - reference[f"bal_t2_{n}"]).square().mean(),
            "c": y.pow(4).sum()}


def test_balancer_equals_audiocraft(reference):
    balancer = Balancer(WEIGHTS)
    for n in range(3):
        y = reference[f"bal_y{n}"].clone().requires_grad_()
        figures = balancer.backward(three_losses(reference, n, y), y)
        close(y.grad, reference[f"bal_grad{n}"], atol=1e-5)
        assert abs(figures["balanced"] - reference[f"bal_effective_loss{n}"].item()) < 1e-5
        close(torch.tensor([figures[f"ratio_{name}"] for name in "abc"]), reference[f"bal_ratios{n}"], atol=1e-5)
        saved, balancer = balancer.state_dict(), Balancer(WEIGHTS)         # a restart between the calls changes nothing
        balancer.load_state_dict(saved)


def test_balancer_switched_off_equals_audiocraft(reference):
    y = reference["bal_y0"].clone().requires_grad_()
    figures = Balancer(WEIGHTS, balance=False).backward(three_losses(reference, 0, y), y)
    close(y.grad, reference["bal_off_grad"], atol=1e-5)
    assert abs(figures["balanced"] / reference["bal_off_effective_loss"].item() - 1) < 1e-5


def test_a_loss_that_joins_later_gets_its_share_at_once():
    balancer, y = Balancer({"a": 1.0, "b": 1.0}), torch.ones(1, 1, 2, requires_grad=True)
    for losses in ({"a": y[..., 0].sum()}, {"a": y[..., 0].sum(), "b": 1000 * y[..., 1].sum()}):
        y.grad = None
        balancer.backward(losses, y)
    close(y.grad, torch.tensor([[[0.5, 0.5]]]), atol=1e-6)


def test_losses_without_weight_send_nothing_on():
    y = torch.ones(1, 1, 2, requires_grad=True)
    Balancer({"a": 0.0, "b": 1.0}).backward({"a": y.sum()}, y)
    assert y.grad.abs().max() == 0


def two_processes(rank, file):
    torch.set_num_threads(1)                         # the parent's other threads did not come along, and would be waited for
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    y = torch.ones(1 + rank, 1, 1, requires_grad=True)                     # one item here, two items there
    Balancer({"a": 1.0}).backward({"a": ((1 + 2 * rank) * y).sum()}, y)   # norms of the items: 1 | 3, 3
    torch.testing.assert_close(y.grad, torch.full_like(y, (1 + 2 * rank) / (7 / 3)))
    distributed.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="starts processes by forking")
def test_processes_share_one_norm(tmp_path):
    context = multiprocessing.start_processes(two_processes, (tmp_path / "store",), nprocs=2, start_method="fork", join=False)
    while not context.join(timeout=60):
        pass
