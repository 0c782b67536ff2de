"""Measures of sets of sounds: against independent implementations, without bias where they promise it, never NaN, refused with a way out."""
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from audiogen_nb import judge
from audiogen_nb.judge import (bootstrap_interval, cosine_score, fad_by_size, fad_infinity, frechet_distance, inception_score,
                               kernel_distance, kl_divergence, median_distance, vendi_score)


def normal(n, dims, seed=0):
    return torch.randn(n, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_some_shape(n, dims, seed):
    "Correlated numbers off the origin"
    return normal(n, dims, seed) @ normal(dims, dims, 1000 + seed) / math.sqrt(dims) + normal(1, dims, 2000 + seed)


# Independent implementations

def trace_of_root_numpy(product):
    "The eigenvalues of the product of two covariances, as numpy finds them for a general matrix"
    return np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()


def trace_of_root_scipy(product):
    linalg = pytest.importorskip("scipy.linalg", reason="scipy is not installed")
    return np.trace(linalg.sqrtm(product)).real


def textbook_frechet(a, b, trace_of_root):
    a, b = a.numpy(), b.numpy()
    covariances = np.atleast_2d(np.cov(a, rowvar=False)), np.atleast_2d(np.cov(b, rowvar=False))
    return (((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0]) + np.trace(covariances[1])
            - 2 * trace_of_root(covariances[0] @ covariances[1]))


@pytest.mark.parametrize("trace_of_root", [trace_of_root_numpy, trace_of_root_scipy])
@pytest.mark.parametrize("n, m, dims", [(50, 70, 1), (40, 400, 8), (200, 90, 32), (400, 300, 128)])
def test_frechet_distance_agrees_with_the_textbook(n, m, dims, trace_of_root):
    a, b = of_some_shape(n, dims, 1), of_some_shape(m, dims, 2)
    assert frechet_distance(a, b) == pytest.approx(textbook_frechet(a, b, trace_of_root), rel=1e-6, abs=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def textbook_kl(p, q):
    total = 0.0
    for row_p, row_q in zip(p.tolist(), q.tolist()):
        total += sum(x * math.log(x / y) for x, y in zip(row_p, row_q))
    return total / len(p)


def test_kl_divergence_agrees_with_the_textbook():
    x, y = 3 * normal(40, 12, 1), 3 * normal(40, 12, 2)
    assert kl_divergence(x, y) == pytest.approx(textbook_kl(x.softmax(1), y.softmax(1)), rel=1e-6)
    p, q = x.sigmoid(), y.sigmoid()
    both = textbook_kl(p, q) + textbook_kl(1 - p, 1 - q)
    assert kl_divergence(x, y, "sigmoid") == pytest.approx(both, rel=1e-6)
    distributions = [torch.distributions.Bernoulli(logits=z) for z in (x, y)]
    assert kl_divergence(x, y, "sigmoid") == pytest.approx(
        torch.distributions.kl_divergence(*distributions).sum(1).mean().item(), rel=1e-6)


def test_kl_divergence_agrees_with_scipy():
    special = pytest.importorskip("scipy.special", reason="scipy is not installed")
    x, y = 3 * normal(40, 12, 1), 3 * normal(40, 12, 2)
    wanted = special.rel_entr(special.softmax(x.numpy(), 1), special.softmax(y.numpy(), 1)).sum(1).mean()
    assert kl_divergence(x, y) == pytest.approx(wanted, rel=1e-6)


def test_kernel_distance_agrees_with_loops():
    x, y = of_some_shape(23, 5, 1), of_some_shape(14, 5, 2)
    apart = sorted(math.dist(p, q) for i, p in enumerate(x.tolist()) for q in x.tolist()[:i])
    h = apart[(len(apart) - 1) // 2]
    assert median_distance(x) == pytest.approx(h, rel=1e-9)
    k = lambda p, q: math.exp(-math.dist(p, q) ** 2 / (2 * h * h))
    within = lambda z: sum(k(p, q) for i, p in enumerate(z) for j, q in enumerate(z) if i != j) / (len(z) * (len(z) - 1))
    across = sum(k(p, q) for p in x.tolist() for q in y.tolist()) / (len(x) * len(y))
    assert kernel_distance(x, y) == pytest.approx(within(x.tolist()) + within(y.tolist()) - 2 * across, rel=1e-6, abs=1e-9)
    assert kernel_distance(x, y, h) == kernel_distance(x, y) != kernel_distance(x, y, 2 * h)


def test_kernel_sums_do_not_depend_on_their_parts():
    x, y = normal(2300, 3, 1), normal(1100, 3, 2)
    k = lambda a, b: torch.exp(-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / 2)
    wanted = ((k(x, x).sum() - 2300) / (2300 * 2299) + (k(y, y).sum() - 1100) / (1100 * 1099) - 2 * k(x, y).mean()).item()
    assert kernel_distance(x, y, 1.0) == pytest.approx(wanted, abs=1e-9)
    assert kernel_distance(x + 1e6, y + 1e6, 1.0) == pytest.approx(wanted, abs=1e-6)        # far from the origin


def test_inception_score_agrees_with_loops():
    logits = 2 * normal(30, 6, 3)
    p = logits.softmax(1)
    wanted = math.exp(textbook_kl(p, p.mean(0).expand_as(p)))
    assert inception_score(logits) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("n, dims", [(12, 5), (4, 30)])
def test_vendi_score_agrees_with_eigenvalues_of_the_whole_matrix(n, dims):
    x = of_some_shape(n, dims, 4).numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = np.linalg.norm(x[:, None] - x[None], axis=2)
    for similarity, h in ((unit @ unit.T, None), (np.exp(-apart ** 2 / (2 * 1.5 ** 2)), 1.5)):
        shares = np.linalg.eigvalsh(similarity / n)
        shares = shares[shares > 1e-15]
        assert vendi_score(x, h) == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-6)


def test_cosine_score_agrees_with_torch():
    t, s = of_some_shape(9, 4, 1), of_some_shape(9, 4, 2)
    assert cosine_score(t, s) == pytest.approx(torch.nn.functional.cosine_similarity(t, s).mean().item(), rel=1e-9)


def test_fad_infinity_agrees_with_a_weighted_fit_of_numpy():
    reference, clips = normal(300, 4, 1), 1.5 * normal(90, 4, 2)
    steps = 1 / np.linspace(3 / 90, 1 / 90, 8)
    sizes = sorted({round(size) for size in steps})
    means = fad_by_size(reference, clips, sizes, repeats=5, seed=7).mean(1).numpy()
    wanted = np.polyfit(1 / np.array(sizes), means, 1, w=np.array(sizes))[1]
    assert fad_infinity(reference, clips, repeats=5, seed=7) == pytest.approx(wanted, abs=1e-6)


# Bias with the number of clips

def test_fad_falls_as_one_over_n_and_the_others_do_not():
    "Equal distributions of 6 dimensions: c = 6 + 42 / 4"
    c, seeds = 6 + 6 * 7 / 4, range(30)
    shelf = normal(20_000, 6, 999)
    h = median_distance(shelf)
    for n in (60, 240):
        sets = [normal(n, 6, seed) for seed in seeds]
        fad = torch.tensor([frechet_distance(shelf, x) for x in sets])
        assert abs(fad.mean() - c / n) < 4 * fad.std() / 30 ** 0.5 + 0.1 * c / n
        kernel = torch.tensor([kernel_distance(shelf[1000 * (i % 20) :][:1000], x, h) for i, x in enumerate(sets)])
        assert abs(kernel.mean()) < 4 * kernel.std() / 30 ** 0.5
    line = torch.tensor([fad_infinity(shelf[:4000], normal(120, 6, seed), repeats=2) for seed in range(12)])
    assert abs(line.mean()) < 4 * line.std() / 12 ** 0.5 + 0.02 < c / 120 + 0.05
    assert line.mean() < 0.5 * c / 120


def test_all_clips_give_the_plain_distance():
    reference, clips = normal(100, 3, 1), normal(30, 3, 2)
    assert fad_by_size(reference, clips, [30], 2).tolist() == [pytest.approx([frechet_distance(reference, clips)] * 2, rel=1e-9)]


def test_clips_are_drawn_whole():
    "Frames (N, F, D), a list of (F, D) and the flat frames of one-frame clips: the same, whatever the form"
    frames, reference = normal(120, 3, 1).view(30, 4, 3), normal(100, 3, 2)
    assert fad_infinity(reference, frames) == fad_infinity(reference, list(frames)) == fad_infinity(reference.view(50, 2, 3), frames)
    assert fad_infinity(reference, frames) != fad_infinity(reference, frames.flatten(0, 1))
    assert fad_infinity(reference, frames[:, :1]) == fad_infinity(reference, frames[:, 0])
    uneven = [clip[: 1 + i % 4] for i, clip in enumerate(frames)]
    assert math.isfinite(fad_infinity(reference, uneven))
    one = fad_by_size(reference, [torch.zeros(50, 3) + normal(50, 3, i) for i in range(3)], [1], 20)
    assert len(set(one.flatten().tolist())) == 3, "a set of size 1 is one whole clip"


def test_every_setting_of_fad_infinity_counts():
    reference, clips = normal(100, 3, 1), normal(40, 3, 2)
    found = fad_infinity(reference, clips)
    assert found == fad_infinity(reference, clips)
    for change in (dict(n_sizes=3), dict(repeats=3), dict(seed=1)):
        assert fad_infinity(reference, clips, **change) != found, change


# Never negative, never NaN

@pytest.mark.parametrize("a, b", [
    (torch.ones(5, 2), torch.ones(7, 2)), (torch.zeros(9, 3), normal(9, 3)), (normal(9, 1), 1e-12 * normal(9, 1)),
    (1e8 + normal(50, 4), 1e8 + normal(50, 4)), (normal(50, 4).float(), normal(50, 4).float()),
    (normal(50, 4) @ torch.diag(torch.tensor([1e6, 1, 1e-6, 0]).double()), normal(60, 4, 1)),
    (1e150 * normal(9, 2), normal(9, 2)), (torch.randint(5, (9, 2)), torch.randint(5, (9, 2)).half())])
def test_frechet_distance_of_difficult_sets(a, b):
    for x, y in ((a, b), (b, a), (a, a)):
        found = frechet_distance(x, y)
        assert math.isfinite(found) and found >= 0
    assert frechet_distance(a, a) <= 1e-12 * max(1.0, a.double().square().sum().item())


def test_few_clips_on_request():
    "Covariances of low rank: the same as numpy's, and the distance of a set to itself is 0"
    a, b = normal(10, 40, 1), normal(25, 40, 2)
    assert frechet_distance(a, b, rank_deficient=True) == pytest.approx(textbook_frechet(a, b, trace_of_root_numpy), rel=1e-5)
    assert frechet_distance(a, a, rank_deficient=True) == pytest.approx(0, abs=1e-9)
    many = normal(50, 4, 1), normal(60, 4, 2)
    assert frechet_distance(*many) == frechet_distance(*many, rank_deficient=True)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_sure_verdicts_have_finite_divergences(activation):
    sure, wrong = torch.tensor([[800.0, -800.0]]), torch.tensor([[-800.0, 800.0]])
    assert kl_divergence(sure, sure, activation) == 0
    assert kl_divergence(sure, wrong, activation) == pytest.approx(1600)
    assert kl_divergence(sure, 0 * sure, activation) == pytest.approx(math.log(2) * (1 if activation == "softmax" else 2))


def test_scores_stay_in_their_range():
    for seed in range(5):
        x = of_some_shape(20, 6, seed)
        assert 1 <= inception_score(x) <= 6 and 1 <= vendi_score(x) <= 6 + 1e-9 and 1 <= vendi_score(x, 0.5) <= 20
        assert -1 <= cosine_score(x, x.roll(1, 0)) <= 1 and cosine_score(x, 3 * x) == pytest.approx(1)
    assert inception_score(torch.zeros(3, 4)) == pytest.approx(1) and vendi_score(torch.ones(3, 4)) == pytest.approx(1)
    assert vendi_score(torch.eye(7)) == pytest.approx(7) and inception_score(1000 * torch.eye(7)) == pytest.approx(7)


def test_arrays_will_do():
    x, y = normal(30, 3, 1), normal(30, 3, 2)
    for f in (frechet_distance, kernel_distance, kl_divergence, cosine_score, fad_infinity):
        assert f(x.numpy(), y.numpy()) == f(x, y) == f(x.clone().requires_grad_(), y), f.__name__


# Intervals

def test_an_interval_of_a_mean_is_the_usual_one():
    x = normal(200, 1, 3)
    low, high = bootstrap_interval(torch.mean, x, n_resamples=3000)
    error = x.std(correction=0).item() / 200 ** 0.5
    assert (low, high) == pytest.approx((x.mean().item() - 1.96 * error, x.mean().item() + 1.96 * error), abs=0.15 * error)
    wide = bootstrap_interval(torch.mean, x, n_resamples=3000, z=2 * 1.96)
    assert wide[1] - wide[0] == pytest.approx(2 * (high - low))


def test_pairs_stay_together():
    x = normal(50, 1, 1)
    difference = lambda a, b: (a - b).mean()
    assert bootstrap_interval(difference, x, x + 1, paired=True) == pytest.approx((-1, -1))
    low, high = bootstrap_interval(difference, x, x + 1)
    assert high - low > 0.3


def test_an_interval_of_lists_and_its_seed():
    x = normal(30, 2, 1)
    mean = lambda clips: torch.stack(list(clips)).mean()
    assert bootstrap_interval(mean, list(x)) == bootstrap_interval(mean, x) != bootstrap_interval(mean, x, seed=1)


def test_the_bias_is_taken_off():
    "The square of a mean is too large by the variance over n"
    truth, found = 0.0, []
    for seed in range(40):
        low, high = bootstrap_interval(lambda x: x.mean() ** 2, normal(20, 1, seed), n_resamples=100)
        found.append((low + high) / 2)
    plain = np.mean([normal(20, 1, seed).mean().item() ** 2 for seed in range(40)])
    assert plain > 0.03 and abs(np.mean(found) - truth) < 0.5 * plain


def test_no_measure_touches_the_global_generator():
    x, y = normal(30, 3, 1), normal(30, 3, 2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fad_infinity(x, y), bootstrap_interval(frechet_distance, x, y, n_resamples=3), kernel_distance(x, y)
    assert torch.equal(torch.get_rng_state(), state)


# Refusals, each with a way out

X = normal(12, 3)


@pytest.mark.parametrize("call, says", [
    (lambda: frechet_distance(X[:3], X), "3 embeddings are too few for 3 dimensions.*pass more clips.*rank_deficient.*kernel_distance"),
    (lambda: frechet_distance(X[:1], X, rank_deficient=True), "too few"),
    (lambda: frechet_distance(X, X[:, :2]), r"\(N, D\) and \(M, D\)"),
    (lambda: frechet_distance(X, X[0]), "b must be a matrix"),
    (lambda: frechet_distance(X, torch.zeros(0, 3)), "b must be a matrix"),
    (lambda: frechet_distance(X.to(torch.complex64), X), "a must be a matrix of real numbers"),
    (lambda: frechet_distance(X * math.nan, X), "a has NaN"),
    (lambda: frechet_distance(X, X * math.inf), "b has NaN"),
    (lambda: frechet_distance(X, X * 1e200), "huge"),
    (lambda: kl_divergence(X, X[:5]), "paired, got"),
    (lambda: kl_divergence(X, X, "relu"), "'softmax' or 'sigmoid', got 'relu'"),
    (lambda: kl_divergence(X, torch.zeros(12, 3).log()), "generated has NaN, infinite"),
    (lambda: fad_infinity(X, X[:8]), "8 clips.*too few.*kernel_distance"),
    (lambda: fad_infinity(X, normal(5, 1)), "too few"),
    (lambda: fad_infinity(X, normal(30, 2)), r"\(N, D\) and \(M, D\)"),
    (lambda: fad_infinity(X, []), "one entry for each clip"),
    (lambda: fad_infinity(X, normal(30, 1)[:, 0]), "one entry for each clip"),
    (lambda: fad_infinity(X, X, n_sizes=1), "n_sizes must be at least 2"),
    (lambda: fad_by_size(X, X, [13]), "sizes must be in 1..12"),
    (lambda: fad_by_size(X, X, [4], repeats=0), "repeats must be at least 1"),
    (lambda: kernel_distance(X, X[:1]), "2 or more clips"),
    (lambda: kernel_distance(X, X[:, :2]), "2 or more clips"),
    (lambda: kernel_distance(0 * X, X), "a bandwidth of your own"),
    (lambda: kernel_distance(X, X, -1), "bandwidth must be at least 0"),
    (lambda: kernel_distance(X, X, math.nan), "bandwidth must be finite"),
    (lambda: vendi_score(X, 0), "bandwidth must be above 0"),
    (lambda: vendi_score(0 * X), "row 0 of embeddings is all zeros"),
    (lambda: cosine_score(X, X[:3]), "a row of each"),
    (lambda: inception_score(X[0]), "logits must be a matrix"),
    (lambda: bootstrap_interval(frechet_distance), "2 clips or more"),
    (lambda: bootstrap_interval(kl_divergence, X, X[:5], paired=True), r"\[12, 5\]"),
    (lambda: bootstrap_interval(torch.mean, X, n_resamples=1), "n_resamples must be at least 2"),
    (lambda: bootstrap_interval(lambda x: math.nan, X), "statistic gave NaN")])
def test_what_cannot_be_measured_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match="bandwidth must be a number"):
        kernel_distance(X, X, "2")


# The package

def test_the_package_s_names_are_imported_when_asked_for():
    code = ("import sys, audiogen_nb.judge as judge\n"
            "print(*sorted(m for m in sys.modules if m.startswith('audiogen_nb.')), 'torch' in sys.modules)\n"
            "from audiogen_nb.judge import frechet_distance, fad_infinity, kernel_distance, kl_divergence, inception_score\n"
            "print(*sorted(m for m in sys.modules if m.startswith(('audiogen_nb.judge', 'audiogen_nb.train'))))\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["audiogen_nb.judge False",
                                        "audiogen_nb.judge audiogen_nb.judge.distances audiogen_nb.judge.measures"]


def test_the_package_has_what_it_names():
    assert set(judge.__all__) <= set(dir(judge)) and all(callable(getattr(judge, name)) for name in judge.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fad'"):
        judge.fad
