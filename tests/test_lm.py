"The language model: layouts, estimates, prepared weights, and a row that does not depend on its batch."
from dataclasses import replace

import pytest
import torch

from audiogen_nb import AudioLM
from audiogen_nb.engine.linear import RowLinear, empty_lm, fill_lm, prepare, use_row_linear
from audiogen_nb.lm.transformer import KVCache
from audiogen_nb.lm.transformer import LMConfig
from audiogen_nb.engine.budget import check_memory
from audiogen_nb.lm.transformer import LM_PRESETS
from audiogen_nb.engine.budget import flops_per_step, memory_estimate, n_parameters

TINY = AudioLM.preset("tiny")
DTYPES = ["float32", "bfloat16", "int8"]


def loud(config=TINY, seed=0):
    "A tiny model with opinions"
    torch.manual_seed(seed)
    lm = AudioLM(config).eval()
    for p in lm.parameters():
        p.data *= 4
    return lm


def text(batch=2, length=5, width=72):
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1)), torch.ones(batch, length, dtype=torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_in, n_out", [(320, 960), (1280, 320), (96, 32)])
def test_a_row_does_not_depend_on_the_others(dtype, n_in, n_out):
    layer, x = RowLinear(n_in, n_out), torch.randn(200, n_in)
    layer.set_weight(layer.weight, dtype)
    x = x if dtype == "float32" else x.bfloat16()
    with torch.no_grad():
        whole = layer(x)
        for n in (1, 2, 3, 7, 16, 33, 64):
            assert torch.equal(layer(x[:n]), whole[:n]) and torch.equal(layer(x[-n:]), whole[-n:])


def test_packing_changes_no_bit_and_training_is_untouched():
    layer, x = RowLinear(320, 320), torch.randn(9, 320)
    with torch.no_grad():
        before = layer(x)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    layer.set_weight(layer.weight, "float32")
    with torch.no_grad():
        assert torch.equal(layer(x), before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_prepared_models_agree_and_store_the_same_names(dtype):
    lm, states = use_row_linear(AudioLM(TINY).eval()), text()     # nn.Linear would add in another order: other bits
    codes, names = torch.randint(32, (2, 2, 9)), list(lm.state_dict())
    with torch.no_grad():
        plain = lm.predict(codes, *states)[0]
        prepare(lm, dtype)
        assert (lm.predict(codes, *states)[0].float() - plain).abs().max() <= {"float32": 0, "bfloat16": 0.05, "int8": 0.1}[dtype]
    assert list(lm.state_dict()) == names
    again = AudioLM(TINY)
    again.load_state_dict(lm.state_dict())
    again = prepare(again.eval(), dtype)
    assert torch.equal(again.generate(*states, 6, seeds=[1, 2]), lm.generate(*states, 6, seeds=[1, 2]))


def test_int8_takes_a_quarter():
    with torch.no_grad():
        size = lambda lm: sum(p.numel() * p.element_size() for p in lm.blocks.parameters() if p.dim() == 2)
        lm = AudioLM(TINY)
        before = size(lm)
        assert size(prepare(lm, "int8")) * 4 == before


@pytest.mark.parametrize("pattern", ["parallel", "delay", "flatten"])
def test_one_model_serves_every_layout(pattern):
    lm, states = loud(replace(TINY, pattern=pattern)), text()
    codes = torch.randint(32, (2, 2, 9))
    logits, known = lm.predict(codes, *states)
    torch.nn.functional.cross_entropy(logits[known], codes[known]).backward()
    assert known.all() and lm.embed.weight.grad.isfinite().all()
    greedy = lm.generate(*states, 9, greedy=True, guidance_scale=1.0)
    with torch.no_grad():
        assert torch.equal(lm.predict(greedy, *states)[0].argmax(-1), greedy)


def test_a_code_moves_nothing_before_it_with_flatten():
    lm, states = loud(replace(TINY, pattern="flatten")), text(1)
    codes = torch.randint(32, (1, 2, 8))
    changed = codes.clone()
    changed[:, 0, 5] = (changed[:, 0, 5] + 1) % 32
    with torch.no_grad():
        moved = (lm.predict(changed, *states)[0] - lm.predict(codes, *states)[0]).abs().amax(-1)[0] > 1e-6
    assert moved.int().tolist() == [[0] * 6 + [1] * 2, [0] * 5 + [1] * 3]


def test_rows_beyond_the_texts_hear_nothing():
    lm, (states, mask) = use_row_linear(loud()), text(2)         # nn.Linear may add a longer batch in another order
    sequence = lm.pattern.build(torch.randint(32, (4, 2, 5)), lm.special)
    none = torch.zeros_like(mask)
    with torch.no_grad():
        short = lm.step(sequence, lm.condition(states, mask))
        full = lm.step(sequence, lm.condition(torch.cat([states, states]), torch.cat([mask, none])))
    assert torch.equal(short, full)


@pytest.mark.parametrize("name", list(LM_PRESETS))
def test_parameters_are_counted_before_they_exist(name):
    with torch.device("meta"):
        assert sum(p.numel() for p in AudioLM(LM_PRESETS[name]).parameters()) == n_parameters(LM_PRESETS[name])


def test_estimates_grow_with_what_they_depend_on():
    base = dict(batch=2, n_frames=50)
    size = lambda **more: sum(memory_estimate(TINY, **{**base, **more}).values())
    assert size(batch=4) > size() > size(dtype="bfloat16") and size(n_frames=100) > size() > size(guidance=False)
    assert size(text_length=99) > size() and size(training=True) > size()
    assert flops_per_step(TINY, 100) > flops_per_step(TINY) > flops_per_step(TINY, guidance=False)
    assert flops_per_step(TINY, text_length=99) > flops_per_step(TINY)


def test_what_cannot_fit_is_refused_before_it_is_allocated():
    giant = LMConfig(dim=65536, n_layers=100, n_heads=64)
    for refused in (lambda: empty_lm(giant, "int8"), lambda: check_memory(giant),
                    lambda: check_memory(TINY, batch=10**9, n_frames=100), lambda: check_memory(TINY, training=True, batch=10**9),
                    lambda: loud().generate(torch.zeros(1, 1, 72).expand(10**8, -1, -1), torch.ones(1, 1).bool().expand(10**8, -1),
                                            200, seeds=[])):
        with pytest.raises(ValueError, match="GB are free|seed must"):
            refused()


def test_loading_refuses_what_does_not_fit():
    state = AudioLM(TINY).state_dict()
    for tensors, message in (({"extra": torch.zeros(1)}, "no place"), ({"norm.weight": torch.zeros(3)}, "no place"),
                             ({k: v for k, v in state.items() if k != "norm.bias"}, "missing, e.g. 'norm.bias'")):
        with pytest.raises(ValueError, match=message):
            fill_lm(empty_lm(TINY), tensors.items())
    with pytest.raises(ValueError, match="int3"):
        empty_lm(TINY, "int3")
    with pytest.raises(ValueError, match="int3"):
        prepare(AudioLM(TINY), "int3")


def test_loading_holds_one_tensor_at_a_time():
    alive, most = [], []
    def tensors():
        for name, value in AudioLM(TINY).state_dict().items():
            alive.append(name)
            yield name, value.clone()
            most.append(len(alive))
            alive.clear()
    fill_lm(empty_lm(TINY, "int8"), tensors())
    assert set(most) == {1}


def test_cache_refuses_to_overflow():
    cache = KVCache(TINY, 1, 2, torch.zeros(1))
    with pytest.raises(ValueError, match="room for 2"):
        cache.extend(0, torch.zeros(2, 1, 2, 3, 16))


@pytest.mark.parametrize("wrong", [dict(pattern="zigzag"), dict(dim=0), dict(dim=30, n_heads=4)])
def test_bad_configurations(wrong):
    with pytest.raises(ValueError):
        AudioLM(replace(TINY, **wrong))
