"Sampling: settings, guidance, the loop, and items that do not depend on their batch."
import math

import pytest
import torch

from audiogen_nb import AudioGen
from audiogen_nb.engine.linear import prepare, use_row_linear
from audiogen_nb.sampling.loop import best_of, derive_seed
from audiogen_nb.sampling.choosing import check_sampling, guide

from test_lm import TINY, loud, replace, text


def random_batch(width, random, mine):
    "Texts of random lengths, with `mine` at a random place"
    n, draw = int(torch.randint(1, 10, (), generator=random)), lambda: int(torch.randint(1, 30, (), generator=random))
    length, at = max(mine.shape[1], draw()), int(torch.randint(n, (), generator=random))
    states = torch.randn(n, length, width, generator=random)
    mask = torch.arange(length) < torch.tensor([draw() for _ in range(n)])[:, None]
    states[at, : mine.shape[1]], mask[at] = mine[0], torch.arange(length) < mine.shape[1]
    return states, mask, at


def n_changed(lm, n_batches, n_frames, **settings):
    "In how many of random batches an item differs from itself alone"
    random = torch.Generator().manual_seed(0)
    mine = torch.randn(1, 5, lm.config.text_dim, generator=random)
    alone = lm.generate(mine, torch.ones(1, 5, dtype=torch.bool), n_frames, seeds=[7], **settings)[0]
    changed = 0
    for _ in range(n_batches):
        states, mask, at = random_batch(lm.config.text_dim, random, mine)
        changed += not torch.equal(lm.generate(states, mask, n_frames, seeds=[7 if i == at else i for i in range(len(mask))],
                                               **settings)[at], alone)
    return changed


@pytest.mark.parametrize("pattern", ["parallel", "delay", "flatten"])
def test_an_item_is_the_same_in_a_hundred_batches(pattern):
    assert n_changed(use_row_linear(loud(replace(TINY, pattern=pattern))), 100, 5) == 0


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "int8"])
def test_pocket_items_do_not_depend_on_their_batch(dtype):
    lm = AudioGen.from_pretrained("pocket").lm
    if dtype:
        prepare(lm, dtype)
    assert n_changed(lm, 100 if dtype is None else 10, 3) == 0
    assert n_changed(lm, 5, 3, guidance_scale=1.0) == 0


@pytest.mark.parametrize("pattern", ["parallel", "delay", "flatten"])
def test_frames_come_as_soon_as_they_are_finished(pattern):
    lm, states, steps = loud(replace(TINY, pattern=pattern)), text(), []
    whole = lm.generate(*states, 8, seeds=[1, 2])
    given = whole[..., :3]
    expected = lm.generate(*states, 8, prompt=given, seeds=[3, 4])
    pieces = lm.decode_frames(*states, 8, prompt=given, seeds=[3, 4], callback=lambda step, n: steps.append(step))
    assert torch.equal(next(pieces), given) and steps == []
    rest = [(piece, len(steps)) for piece in pieces]
    first, each = {"parallel": (1, 1), "delay": (2, 1), "flatten": (2, 2)}[pattern]
    assert [n for _, n in rest] == [first + i * each for i in range(5)]
    assert torch.equal(torch.cat([given, *(p for p, _ in rest)], -1), expected) and torch.equal(expected[..., :3], given)


def test_guidance_follows_its_schedule():
    lm, states = loud(), text()
    run = lambda scale: lm.generate(*states, 8, seeds=[1, 2], guidance_scale=scale)
    assert torch.equal(run(lambda done: 3.0), run(3.0)) and not torch.equal(run(lambda done: 6 * done), run(3.0))
    shares = []
    run(lambda done: shares.append(done) or 1.0)
    assert shares[-1] < 1 and 0.0 in shares
    nothing = torch.zeros_like(states[1])
    assert torch.equal(run(0), lm.generate(states[0], nothing, 8, seeds=[1, 2], guidance_scale=1.0))


def test_negative_prompts():
    lm, (states, mask) = loud(), text()
    none, other = torch.zeros_like(mask), (torch.randn(2, 20, 72), torch.ones(2, 20, dtype=torch.bool))
    plain = lm.generate(states, mask, 8, seeds=[1, 2])
    assert torch.equal(lm.generate(states, mask, 8, seeds=[1, 2], negative=(states, none)), plain)
    assert not torch.equal(lm.generate(states, mask, 8, seeds=[1, 2], negative=other), plain)
    with pytest.raises(ValueError, match="negative"):
        lm.generate(states, mask, 8, guidance_scale=1.0, negative=other)
    for wrong in ((states[:1], mask[:1]), (states[..., :3], mask)):
        with pytest.raises(ValueError, match="negative must be"):
            lm.generate(states, mask, 8, negative=wrong)


def test_mixing_logits_is_mixing_log_probabilities():
    c, u = torch.randn(2, 5, 30)
    mixed = (3 * c.log_softmax(-1) - 2 * u.log_softmax(-1)).softmax(-1)
    assert torch.allclose(guide(c, u, 3.0).softmax(-1), mixed, atol=1e-6)
    assert (3 * c.softmax(-1) - 2 * u.softmax(-1)).min() < 0


@pytest.mark.parametrize("change", [dict(guidance_scale=0.0), dict(guidance_scale=1), dict(guidance_scale=lambda done: 1 + done),
                                    dict(top_k=0), dict(top_p=1.0), dict(temperature=0.01)])
def test_settings_at_the_edge_work(change):
    assert loud().generate(*text(), 4, seeds=[0, 2 ** 63 - 1], **change).shape == (2, 2, 4)


@pytest.mark.parametrize("change, error, message", [
    (dict(guidance_scale=-0.1), ValueError, "guidance_scale"), (dict(guidance_scale=math.nan), ValueError, "guidance_scale"),
    (dict(guidance_scale="3"), TypeError, "guidance_scale"), (dict(guidance_scale=math.inf), ValueError, "guidance_scale"),
    (dict(guidance_scale=lambda done: math.nan if done > 0.8 else 2.0), ValueError, "guidance_scale"),
    (dict(guidance_scale=lambda done: "2"), TypeError, "guidance_scale"), (dict(temperature=0), ValueError, "temperature"),
    (dict(top_k=1.5), ValueError, "top_k"), (dict(top_p=-0.1), ValueError, "top_p"), (dict(seeds=[1]), ValueError, "seed must be"),
    (dict(seeds=[1, -1]), ValueError, "seed must be"), (dict(seeds=[1, 2 ** 63]), ValueError, "seed must be"),
    (dict(seeds=[1, 2, 3]), ValueError, "seed must be"), (dict(seeds=["a", 1]), TypeError, "seed must be"), (dict(seeds=5.0), TypeError, "seed must be"),
    (dict(n_frames=0), ValueError, "n_frames"), (dict(n_frames=201), ValueError, r"1\.\.200"),
    (dict(prompt=torch.zeros(2, 2, 6, dtype=torch.int64)), ValueError, "prompt must be"),
    (dict(prompt=torch.zeros(2, 2, 9, dtype=torch.int64)), ValueError, "prompt must be"),
    (dict(prompt=torch.zeros(2, 3, 2, dtype=torch.int64)), ValueError, "prompt must be")])
def test_bad_settings_are_named_before_any_step(change, error, message):
    def never(step, n_steps): raise AssertionError("a step was made")
    settings = dict(n_frames=6, callback=never) | change
    with pytest.raises(error, match=message):
        loud().decode_frames(*text(), **settings)


def test_stopping():
    lm, states = loud(), text()
    whole = lm.generate(*states, 8, seeds=[1, 2])
    stopped = lm.generate(*states, 8, seeds=[1, 2], callback=lambda step, n: step == 4)
    assert stopped.shape[-1] == 3 and torch.equal(stopped, whole[..., :3])
    assert lm.generate(*states, 8, seeds=[1, 2], callback=lambda step, n: True).shape == (2, 2, 0)
    assert lm.generate(*states, 8, seeds=[1, 2], callback=lambda step, n: "go on").shape == (2, 2, 8)
    def interrupt(step, n): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        lm.generate(*states, 8, callback=interrupt)
    pieces = lm.decode_frames(*states, 8)
    next(pieces), pieces.close()
    assert torch.equal(lm.generate(*states, 8, seeds=[1, 2]), whole)


def test_best_of_keeps_the_winner_which_can_be_made_again_alone():
    lm, (states, mask) = loud(), text(1)
    make = lambda seeds: lm.generate(states.expand(len(seeds), -1, -1), mask.expand(len(seeds), -1), 8, seeds=seeds)
    best = best_of(make, lambda codes: codes.float().mean(), n=7, seed=5)
    assert best.scores[best.index] == max(best.scores) and best.seeds[0] == 5 and len(set(best.seeds)) == 7
    assert torch.equal(make([best.seeds[best.index]])[0], best.result)
    assert torch.equal(best_of(make, len, n=1, seed=5).result, make([5])[0])
    for n in (0, -1, 1.5, True):
        with pytest.raises((TypeError, ValueError), match="n must be"):
            best_of(make, len, n)
    with pytest.raises(ValueError, match="finite"):
        best_of(make, lambda codes: math.inf, 2)


def test_derived_seeds_are_seeds():
    seeds = {derive_seed(s, i) for s in (0, 1, 2 ** 63 - 1) for i in range(100)} | {derive_seed(0, 1, 2)}
    assert len(seeds) == 301 and all(0 <= s < 2 ** 63 for s in seeds)


def test_a_schedule_is_checked_with_the_other_settings():
    check_sampling(lambda done: 2.0, 1.0, 250, 0.0)
    with pytest.raises(ValueError, match="guidance_scale"):
        check_sampling(lambda done: -1.0, 1.0, 250, 0.0)
