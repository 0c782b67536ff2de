"Windows, continuation and streams: equal to what they should be, stopped anywhere, bad input."
import itertools
from dataclasses import replace

import pytest
import torch

from audiogen_nb.lab.long_sounds import seam_rank, seam_times
from audiogen_nb.engine.windows import decode_windows, plan_windows


@pytest.fixture(scope="module")
def model(tiny):
    "Windows of 0.4 s, 0.1 s of new sound in each further one, up to 1.2 s"
    import copy
    model = copy.copy(tiny)
    model.generation = replace(tiny.generation, duration=0.3, max_duration=0.4, longest=1.2, extend_stride=0.1)
    return model


@pytest.mark.parametrize("window, stride", [(10, 1), (10, 5), (10, 9), (2, 1)])
def test_plans_cover_everything_once(window, stride):
    for n_frames, n_given in itertools.product(range(1, 45, 4), range(0, 40, 3)):
        if n_given >= n_frames:
            continue
        plan = plan_windows(n_frames, n_given, window, stride)
        written = [frame for w in plan for frame in range(w.given, w.end)]
        assert written == list(range(n_given, n_frames))
        assert all(0 <= w.start <= w.given < w.end <= w.start + window for w in plan)
        assert all(w.given - w.start >= min(w.given, window - stride) for w in plan)


def test_a_sound_in_windows_is_what_generate_makes_of_each(model):
    codes = model.generate_codes("rain", duration=1.0, seed=3)
    assert codes.shape == (1, 2, 100)
    assert torch.equal(codes[..., :40], model.generate_codes("rain", duration=0.4, seed=3))
    from audiogen_nb.sampling.loop import derive_seed
    states, mask = model.text_encoder(["rain"])
    w = plan_windows(100, 0, 40, 10)[1]
    second = model.lm.generate(states, mask, w.end - w.start, prompt=codes[..., w.start:w.given], seeds=[derive_seed(3, 0, 1)])
    assert torch.equal(second, codes[..., w.start:w.end])


def test_stride_and_window_matter(model):
    codes = model.generate_codes("rain", duration=1.0, seed=3)
    for change in (dict(extend_stride=0.3), dict(max_duration=0.5)):
        model.generation, own = replace(model.generation, **change), model.generation
        assert not torch.equal(model.generate_codes("rain", duration=1.0, seed=3), codes)
        model.generation = own


def test_no_position_beyond_the_models_last(model):
    "A window longer than the language model has positions is cut to those"
    model.generation, own = replace(model.generation, max_duration=9.0, longest=9.0, extend_stride=None), model.generation
    assert model.generate_codes("rain", duration=2.5, seed=0, top_k=1).shape[-1] == 250 > model.lm.config.max_frames
    model.generation = own
    states, mask = model.text_encoder(["rain"])
    with pytest.raises(ValueError, match="at most 200 frames"):
        decode_windows(model.lm, states, mask, 500, 300, 100)
    with pytest.raises(ValueError, match="n_frames"):
        model.lm.generate(states, mask, 201)


def test_items_in_windows_are_independent(model):
    both = model.generate_codes(["rain", "a dog barks"], duration=0.9, seed=[1, 2])
    assert torch.equal(model.generate_codes("a dog barks", duration=0.9, seed=2)[0], both[1])


def test_a_prompt_longer_than_the_window_is_continued(model):
    prompt = 0.1 * torch.randn(1, 9600, generator=torch.Generator().manual_seed(0))       # 0.6 s
    longer = model.continuation(prompt, 16_000, "rain", duration=1.0, seed=0)
    rebuilt = model.codec.decode(model.codec.encode(prompt[None]))
    assert longer.shape == (1, 1, 16_000) and (longer[..., :8000] - rebuilt[..., :8000]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="nothing to generate"):
        model.continuation(prompt, 16_000, "rain", duration=0.6)


def test_continuation_in_three_ways(model):
    start = model.generate("rain", duration=0.2, seed=0)[0]
    ways = [model.continuation(start, 16_000, text, duration=0.4, seed=0) for text in (None, "rain", "a siren")]
    assert all(torch.allclose(way[..., :1600], ways[0][..., :1600], atol=1e-4) for way in ways)
    assert not torch.equal(ways[0], ways[1]) and not torch.equal(ways[1], ways[2])


@pytest.mark.parametrize("duration, chunk", [(0.3, 0.05), (0.31, 0.25), (1.1, 0.1), (1.1, 5.0)])
def test_a_stream_is_what_generate_returns(model, duration, chunk):
    pieces = list(model.stream("rain", duration=duration, seed=7, chunk=chunk))
    whole = model.generate("rain", duration=duration, seed=7)
    streamed = torch.cat(pieces, -1)
    assert streamed.shape == whole.shape and (streamed - whole).abs().max() < 1e-4
    assert all(piece.dim() == 3 and piece.shape[-1] for piece in pieces)


def test_the_pocket_model_streams_from_half_a_second_on(pocket):
    steps = []
    settings = dict(duration=2.0, seed=1)
    stream = pocket.stream("heavy rain", **settings, callback=lambda step, n_steps: steps.append(step))
    pieces = [next(stream)]
    assert len(steps) <= pocket.frame_rate / 2 + pocket.lm.config.n_q - 1 and pieces[0].shape[-1] > 0
    pieces += stream
    assert (torch.cat(pieces, -1) - pocket.generate("heavy rain", **settings)).abs().max() < 1e-4


def test_closing_a_stream_stops_the_work_and_keeps_what_was_given(model):
    steps, whole = [], model.generate("rain", duration=1.1, seed=7)
    stream = model.stream("rain", duration=1.1, seed=7, chunk=0.1, callback=lambda step, n_steps: steps.append(step))
    heard = torch.cat([next(stream), next(stream)], -1)
    stream.close()
    made = len(steps)
    assert list(stream) == [] and len(steps) == made < 110
    assert (heard - whole[..., :heard.shape[-1]]).abs().max() < 1e-4
    for piece in model.stream("rain", duration=1.1, seed=7, chunk=0.1):      # breaking out is closing
        break
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
    assert torch.equal(model.generate("rain", duration=1.1, seed=7), whole)  # the model is none the worse for it


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_in_the_middle_loses_nothing_given_before(model, error):
    def stop(step, n_steps):
        if step == 70:
            raise error
    whole, kept = model.generate("rain", duration=1.1, seed=7), []
    with pytest.raises(error):
        for piece in model.stream("rain", duration=1.1, seed=7, chunk=0.1, callback=stop):
            kept.append(piece)
    kept = torch.cat(kept, -1)
    assert 0.2 * 16_000 < kept.shape[-1] < 0.7 * 16_000 and (kept - whole[..., :kept.shape[-1]]).abs().max() < 1e-4


def test_no_gradient_mode_leaks_between_pieces(model):
    for piece in itertools.islice(model.stream("rain", duration=0.4, chunk=0.1), 2):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert (torch.ones(1, requires_grad=True) * piece.sum()).requires_grad


def test_progress_counts_the_steps_of_all_windows(model):
    seen = []
    model.generate_codes("rain", duration=1.1, callback=lambda *step: seen.append(step))
    assert [step for step, _ in seen] == list(range(1, len(seen) + 1)) and {n for _, n in seen} == {len(seen)}


@pytest.mark.parametrize("settings, message", [
    (dict(duration=1.3), "at most 1.2 s"), (dict(chunk=0), "chunk"), (dict(chunk=float("nan")), "chunk"),
    (dict(best_of=2), "best_of"), (dict(seed=[1, 2]), "seed"), (dict(guidance_scale=float("nan")), "guidance_scale"),
    (dict(temperature=0), "temperature"), (dict(negative_prompt=["a", "b"]), "negative_prompt")])
def test_bad_settings_are_refused_before_the_first_piece(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.stream("rain", **settings)


def test_bad_texts_are_refused_before_the_first_piece(model):
    for text, error in (("", ValueError), (["rain", None], TypeError), (3, TypeError)):
        with pytest.raises(error):
            model.stream(text)


def test_seams(model):
    assert seam_times(model, 0.4) == [] and seam_times(model, 0.6) == [0.4, 0.5]
    assert seam_times(model, 1.0, prompt=0.75) == [0.85, 0.95]
    noise = 0.1 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(0))
    click = torch.cat([noise, 0.3 * torch.sin(torch.arange(16_000) / 10)[None]], -1)
    assert seam_rank(click, 16_000, 1.0) > 0.9 > seam_rank(click, 16_000, 0.5)
