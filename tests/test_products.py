"""Products of a few rows: exact enough, the same for a row in any company, chosen and kept with the model."""
import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch

from audiogen_nb import AudioLM
from audiogen_nb.engine import products
from audiogen_nb.engine.linear import RowLinear, prepare
from audiogen_nb.engine.products import (
    DigitWeight, HalfWeight, Routes, digits_are_exact, digits_product, half_product, halves_are_exact, measure_routes,
    packed_product, rounded_product, routes)
from audiogen_nb.lm.transformer import KVCache, LMConfig, attend

needs_halves = pytest.mark.skipif(not halves_are_exact(), reason="no float16 product here, or none that keeps rows apart")
needs_integers = pytest.mark.skipif(not digits_are_exact(), reason="no integer product here")
SHAPES = [(32, 32), (96, 72), (33, 40), (1024, 320), (320, 1280)]


def integers(n_out, n_in, seed=0):
    weight = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed))
    scale = (weight.abs().amax(1) / 127).bfloat16()
    return (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8), scale


def error_db(y, exact):
    return 20 * ((y.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()).log10().item()


@pytest.mark.parametrize("n_out,n_in", SHAPES)
@pytest.mark.parametrize("least", [2, 4, 6, 7])
def test_padding_changes_no_bit(n_out, n_in, least):
    weight, x = torch.randn(n_out, n_in), torch.randn(19, n_in)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
    with torch.no_grad():
        whole = packed_product(x, packed)
        assert all(torch.equal(packed_product(x[:n], packed, least=least), whole[:n]) for n in (1, 2, 3, 4, 8, 19))


@needs_integers
@pytest.mark.parametrize("n_out,n_in", SHAPES)
def test_digits_are_fourteen_bits_of_a_row(n_out, n_in):
    weight, scale = integers(n_out, n_in)
    held, x = DigitWeight.of(weight, scale), torch.randn(16, n_in) * torch.logspace(-6, 6, 16)[:, None]
    assert torch.equal(held.dense(), weight)
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T
    y = digits_product(x, held)
    for row, true, values in zip(y, exact, x):
        # an input is off by half a step of 1/8192 of the row's largest, and n_in of them add up at random
        step = values.abs().max().double() / 8192
        bound = 6 * step / 12**0.5 * (weight.double() * scale.double()[:, None]).square().sum(1).sqrt() + 1e-5 * true.abs().max()
        assert ((row.double() - true).abs() <= bound).all()
    assert all(torch.equal(digits_product(x[n:n + 1], held), y[n:n + 1]) for n in range(16))


@needs_integers
def test_digits_of_silence_and_of_damage():
    held = DigitWeight.of(*integers(64, 48))
    x = torch.randn(3, 48)
    x[1], x[2, 5] = 0, torch.inf
    y = digits_product(x, held)
    assert y[0].isfinite().all() and y[1].abs().max() < 1e-20 and not y[2].isfinite().any()


@needs_integers
def test_digits_lose_less_than_rounding():
    weight, scale = integers(512, 512)
    x = torch.randn(8, 512)
    exact = x.double() @ (weight.double() * scale.double()[:, None]).T
    assert error_db(digits_product(x, DigitWeight.of(weight, scale)), exact) < error_db(rounded_product(x, weight, scale), exact) - 20


@needs_halves
@pytest.mark.parametrize("n_out,n_in", SHAPES)
def test_halves_keep_rows_apart_and_eleven_bits(n_out, n_in):
    weight, x = torch.randn(n_out, n_in) / 8, torch.randn(37, n_in)
    held = HalfWeight.of(weight)
    assert torch.equal(held.dense(), weight.half().float())
    y = half_product(x, held)
    assert error_db(y, x.double() @ weight.half().double().T) < -110 and error_db(y, x.double() @ weight.double().T) < -65
    for first, n in ((0, 1), (3, 2), (5, 3), (0, 4), (30, 7), (1, 16), (0, 33)):
        assert torch.equal(half_product(x[first:first + n], held), y[first:first + n])


@needs_halves
def test_a_model_of_halves(chosen):
    plain, states = tiny_lm(), (torch.randn(2, 5, 72), torch.ones(2, 5, dtype=torch.bool))
    codes = torch.randint(32, (2, 2, 12))
    with torch.no_grad():
        exact = plain.predict(codes, *states)[0]
        chosen(Routes(2))
        rounded = prepare(tiny_lm(), "bfloat16")
        chosen(Routes(2, halves=True))
        halves = prepare(tiny_lm(), "bfloat16")
        error = [(lm.predict(codes, *states)[0].float() - exact).abs().max() for lm in (halves, rounded)]
    assert halves.embed.weight.dtype == torch.float32 and error[0] < error[1] / 4
    size = lambda lm: sum(p.numel() * p.element_size() for p in lm.blocks.parameters() if p.dim() == 2)
    assert size(halves) * 2 == size(plain)
    for again in (prepare(copy.deepcopy(halves), "bfloat16"), pickle.loads(pickle.dumps(halves))):
        assert torch.equal(written(again), written(halves))


@pytest.mark.parametrize("text,found", [("rows=4", Routes(4)), ("digits=1,rows=16", Routes(16, True)), (" rows = 3 , halves=1", Routes(3, False, True))])
def test_routes_are_read(text, found):
    assert Routes.parse(text) == found


@pytest.mark.parametrize("text", ["rows=1", "rows=17", "rows=four", "digits=2", "rows", "rows=4,speed=9", "rows=4,rows=5", "rows=-2", ","])
def test_other_words_are_refused(text, monkeypatch):
    with pytest.raises(ValueError, match="AUDIOGEN_NB_ROUTES must read like rows=4,digits=1,halves=0"):
        Routes.parse(text)
    monkeypatch.setenv("AUDIOGEN_NB_ROUTES", text)
    routes.cache_clear()
    try:
        with pytest.raises(ValueError, match="AUDIOGEN_NB_ROUTES"):
            routes()
    finally:
        routes.cache_clear()


def test_the_stopwatch_chooses_among_what_holds():
    found = measure_routes(256, 128, 2)
    assert found.rows in (2, 4, 6) and found.digits <= digits_are_exact() and found.halves <= halves_are_exact()


@pytest.fixture
def chosen(monkeypatch):
    "Set the routes of large and small models by hand"
    def choose(found):
        monkeypatch.setattr("audiogen_nb.engine.linear.routes", lambda large=True: found)
    return choose


def tiny_lm(seed=0):
    torch.manual_seed(seed)
    return AudioLM(AudioLM.preset("tiny")).eval()


def written(lm):
    return lm.generate(torch.ones(2, 5, 72), torch.ones(2, 5, dtype=torch.bool), 8, seeds=[1, 2])


def test_rows_change_no_bit_of_a_model(chosen):
    kept = []
    for rows in (2, 4, 6):
        chosen(Routes(rows))
        kept.append(written(prepare(tiny_lm(), "float32")))
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


@needs_integers
def test_a_model_with_digits(chosen):
    plain = tiny_lm()
    codes, states = torch.randint(32, (2, 2, 12)), (torch.randn(2, 5, 72), torch.ones(2, 5, dtype=torch.bool))
    with torch.no_grad():
        exact = plain.predict(codes, *states)[0]
        chosen(Routes(2, False))
        rounded = prepare(tiny_lm(), "int8")
        chosen(Routes(4, True))
        digits = prepare(tiny_lm(), "int8")
        assert all(torch.equal(a, b) for a, b in zip(rounded.state_dict().values(), digits.state_dict().values()) if a.dim() == 2 and a.dtype == b.dtype)
        error = [(lm.predict(codes, *states)[0].float() - exact).abs().max() for lm in (digits, rounded)]
    assert digits.embed.weight.dtype == torch.float32 and rounded.embed.weight.dtype == torch.bfloat16
    assert error[0] < error[1] <= 0.1
    for again in (prepare(copy.deepcopy(digits), "int8"), pickle.loads(pickle.dumps(digits))):
        assert torch.equal(written(again), written(digits))


@needs_integers
def test_a_pickled_model_multiplies_otherwise_where_integers_are_cut_off(chosen, monkeypatch):
    chosen(Routes(2, True))
    lm = prepare(tiny_lm(), "int8")
    stored = pickle.dumps(lm)
    monkeypatch.setattr("audiogen_nb.engine.linear.digits_are_exact", lambda: False)
    other = pickle.loads(stored)
    layers = [m for m in other.modules() if isinstance(m, RowLinear) and m.scale is not None]
    assert layers and all(layer.held is None and layer.weight.dtype == torch.int8 for layer in layers)
    assert written(other).shape == written(lm).shape


def test_a_small_model_is_not_timed(monkeypatch):
    monkeypatch.setattr(products, "measure_routes", lambda: pytest.fail("measured for a tiny model"))
    routes.cache_clear()
    try:
        prepare(tiny_lm(), "int8")
    finally:
        routes.cache_clear()


def test_loading_does_not_import_the_compiler():
    code = ("import sys; from audiogen_nb import AudioGen; m = AudioGen.from_pretrained('pocket'); m.generate('rain', duration=0.1)\n"
            "print([name for name in ('torch._dynamo', 'sympy', 'torch.fx.experimental.symbolic_shapes') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n_heads,size", [(16, 64), (5, 64), (2, 16)])
def test_attention_rounds_alike_on_every_thread(threads, n_heads, size):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n, length in ((1, 1), (1, 8), (1, 16), (1, 203), (7, 40)):
            q, store = torch.randn(16, n_heads, n, size), torch.randn(2, 16, n_heads, 210, size)
            mask = None if n == 1 else torch.ones(n, length, dtype=torch.bool).tril(length - n)
            part = lambda a, b: attend(q[a:b].clone(), *store[:, a:b].clone().narrow(3, 0, length), mask)
            with torch.no_grad():
                whole = part(0, 16)
                assert all(torch.equal(part(a, b), whole[a:b]) for a, b in ((0, 1), (5, 6), (0, 2), (9, 11), (3, 12)))
                fused = torch.nn.functional.scaled_dot_product_attention(q, *store.narrow(3, 0, length), attn_mask=mask)
            torch.testing.assert_close(whole, fused, atol=2e-6, rtol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("form", ["float32", "bfloat16", "int8"])
def test_logits_of_an_item_do_not_depend_on_its_batch_on_two_threads(form):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(0)
        lm = prepare(AudioLM(LMConfig(n_q=2, card=64, dim=512, n_layers=1, n_heads=8, text_dim=64, pattern="delay", max_frames=40)), form)
        text, seen = torch.randn(8, 16, 64), {}
        with torch.no_grad():
            for items in ([3], [5], [2, 3], list(range(8))):
                condition = lm.condition(text[items], torch.ones(len(items), 16, dtype=torch.bool))
                cache = KVCache(lm.config, 2 * len(items), 20, lm.embed.weight)
                for step in range(12):
                    codes = torch.full((2 * len(items), 2, 1), step)
                    logits = lm.step(codes, condition, cache, last=True)
                for row, item in enumerate(items * 2):
                    kept = seen.setdefault((item, row < len(items)), logits[row])
                    assert torch.equal(kept, logits[row]), (form, items, item)
    finally:
        torch.set_num_threads(before)


@needs_integers
def test_digits_give_the_same_bits_with_every_set_of_instructions():
    code = ("import hashlib, torch\nfrom audiogen_nb.engine.products import DigitWeight, digits_product\n"
            "numbers = lambda n, m: torch.arange(n * m).mul_(7919).remainder_(255).sub_(127).view(n, m)\n"
            "held = DigitWeight.of(numbers(96, 320).to(torch.int8), torch.arange(1, 97) / 4096)\n"
            "print(hashlib.sha256(digits_product(numbers(9, 320) / 7, held).numpy().tobytes()).hexdigest())")
    seen = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True,
                           env=os.environ | {"ATEN_CPU_CAPABILITY": kind}).stdout for kind in ("default", "avx2", "avx512")}
    assert len(seen) == 1 and len(seen.pop().strip()) == 64
