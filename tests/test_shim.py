"""AudioCraft's calls on our models; and every row of the tables of habits, which name these tests."""
import inspect
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from audiogen_nb import AudioGen
from audiogen_nb.peers.shim import AudioCraftStyle
from audiogen_nb.sound import level_db, load_audio, save_audio, set_level

TEXTS = ["a dog barks", "rain"]


@pytest.fixture
def shim(tiny):
    shim = AudioCraftStyle(tiny)
    shim.set_generation_params(duration=0.5, extend_stride=0.5)
    return shim


def drawn(n, seed=0):
    "The seeds that the shim draws after `torch.manual_seed`"
    torch.manual_seed(seed)
    return torch.randint(2 ** 63 - 1, (n,)).tolist()


def near(one, other):
    "The same codes, decoded in another batch or in other pieces: equal up to rounding"
    return one.shape == other.shape and (one - other).abs().max() < 1e-4


def seeded(call, *args, seed=0, **more):
    torch.manual_seed(seed)
    return call(*args, **more)


def ours(tiny, texts=TEXTS, **more):
    defaults = dict(duration=0.5, temperature=1.0, top_k=250, guidance_scale=3.0, seed=drawn(len(texts)))
    return tiny.generate(texts, **{**defaults, **more})


def test_every_row_has_its_test():
    cells = json.loads((Path(__file__).parent.parent / "nbs/peers/habits.ipynb").read_text(encoding="utf-8"))["cells"]
    rows = [row for c in cells for row in "".join(c["source"]).splitlines() if re.search(r"\| `test_\w+` \|$", row)]
    named = {re.search(r"`(test_\w+)` \|$", row)[1] for row in rows}
    assert len(rows) == 33 and named <= globals().keys(), named - globals().keys()


def test_signatures_are_those_of_audiocraft():
    "Facts from AudioCraft's source, release 1.4: audiocraft/models/audiogen.py and genmodel.py"
    of = lambda f: [(p.name, p.default) for p in inspect.signature(f).parameters.values() if p.name not in ("self", "cls")]
    none = inspect.Parameter.empty
    assert of(AudioCraftStyle.get_pretrained) == [("name", "facebook/audiogen-medium"), ("device", None)]
    assert of(AudioCraftStyle.set_generation_params) == [
        ("use_sampling", True), ("top_k", 250), ("top_p", 0.0), ("temperature", 1.0), ("duration", 10.0), ("cfg_coef", 3.0),
        ("two_step_cfg", False), ("extend_stride", 2)]
    assert of(AudioCraftStyle.generate) == [("descriptions", none), ("progress", False), ("return_tokens", False)]
    assert of(AudioCraftStyle.generate_continuation) == [
        ("prompt", none), ("prompt_sample_rate", none), ("descriptions", None), ("progress", False), ("return_tokens", False)]
    assert of(AudioCraftStyle.generate_unconditional) == [("num_samples", none), ("progress", False), ("return_tokens", False)]
    assert of(AudioCraftStyle.set_custom_progress_callback) == [("progress_callback", None)]


# AudioCraft

def test_get_pretrained(tiny_folder, tiny):
    shim = AudioCraftStyle.get_pretrained(tiny_folder, device="cpu")
    assert isinstance(shim, AudioCraftStyle) and shim.name == str(tiny_folder) and shim.device == torch.device("cpu")
    assert shim.duration == tiny.generation.limit == 2.5, "not more than the model can do"
    assert shim.generate(["rain"]).shape == (1, 1, 2.5 * shim.sample_rate)


def test_settings(shim, tiny):
    assert seeded(shim.generate, TEXTS).equal(ours(tiny))
    shim.set_generation_params(duration=0.4, top_k=5, temperature=0.7, cfg_coef=1.5, extend_stride=0.5)
    assert seeded(shim.generate, TEXTS).equal(ours(tiny, duration=0.4, top_k=5, temperature=0.7, guidance_scale=1.5))
    shim.set_generation_params(duration=0.4, top_p=0.6, extend_stride=0.5)         # the rest is back at its defaults
    assert seeded(shim.generate, TEXTS).equal(ours(tiny, duration=0.4, top_p=0.6))
    assert shim.generation_params == {"use_sampling": True, "temp": 1.0, "top_k": 250, "top_p": 0.6, "cfg_coef": 3.0, "two_step_cfg": False}
    assert tiny.generation.duration == 0.5 and tiny.generation.extend_stride is None, "the model itself was changed"
    before = shim.generation_params
    for wrong in (dict(duration=0), dict(duration="5"), dict(top_p=3), dict(top_k=-1), dict(temperature=-1), dict(cfg_coef=float("nan")),
                  dict(extend_stride=1.0), dict(extend_stride=0)):
        with pytest.raises((ValueError, TypeError)):
            shim.set_generation_params(**{"duration": 0.4, "extend_stride": 0.5, **wrong})
    assert shim.generation_params is before and shim.duration == 0.4, "refused, and yet changed"


def test_use_sampling(shim, tiny):
    for settings in (dict(use_sampling=False), dict(temperature=0)):
        shim.set_generation_params(duration=0.5, extend_stride=0.5, **settings)
        assert shim.generate(TEXTS).equal(tiny.generate(TEXTS, duration=0.5, greedy=True)) and shim.generate(TEXTS).equal(shim.generate(TEXTS))


def test_two_step_cfg(shim, tiny):
    with pytest.warns(UserWarning, match="two_step_cfg makes no difference"):
        shim.set_generation_params(duration=0.5, extend_stride=0.5, two_step_cfg=True)
    assert seeded(shim.generate, TEXTS).equal(ours(tiny))
    alone = [tiny.generate(text, duration=0.5, temperature=1.0, seed=seed)[0] for text, seed in zip(TEXTS, drawn(2))]
    assert near(ours(tiny), torch.stack(alone)), "the reason for it: no item depends on the others"


def test_extend_stride(shim, tiny):
    shim.set_generation_params(duration=4.0, extend_stride=0.25)                # beyond the limit of 2.5 s: further windows
    assert shim.extend_stride == shim.model.generation.extend_stride == 0.25
    long = seeded(shim.generate, ["rain"])
    assert long.shape == (1, 1, 4 * shim.sample_rate)
    shim.set_generation_params(duration=4.0, extend_stride=0.75)
    assert not seeded(shim.generate, ["rain"]).equal(long)
    assert tiny.generation.limit == 2.5


def test_generate(shim, tiny):
    assert shim.generate(TEXTS).shape == (2, 1, shim.sample_rate // 2)
    assert tiny.generate("rain", seed=1).equal(tiny.generate(["rain"], seed=1))
    mixed = seeded(shim.generate, ["a dog barks", None, "rain"])
    seeds = drawn(3)
    same = dict(duration=0.5, temperature=1.0)
    assert near(mixed[1:2], tiny.generate(None, seed=seeds[1], **same)) and near(mixed[2:], tiny.generate("rain", seed=seeds[2], **same))
    for wrong in ("rain", [], None):
        with pytest.raises(TypeError, match="list with at least one"):
            shim.generate(wrong)


def test_return_tokens(shim, tiny):
    audio, tokens = seeded(shim.generate, TEXTS, return_tokens=True)
    codes = tiny.generate_codes(TEXTS, duration=0.5, temperature=1.0, seed=drawn(2))
    assert tokens.equal(codes) and audio.equal(ours(tiny)) and shim.generate_audio(tokens).equal(audio)
    assert (tiny.codec.decode(codes)[..., :audio.shape[-1]] - audio).abs().max() < 1e-4


def test_generate_continuation(shim, tiny):
    prompt = ours(tiny)[..., :2000]
    shim.set_generation_params(duration=0.5, extend_stride=0.5)
    more = dict(duration=0.5, temperature=1.0)
    longer = seeded(shim.generate_continuation, prompt, tiny.sample_rate, TEXTS)
    assert longer.equal(tiny.continuation(prompt, tiny.sample_rate, TEXTS, seed=drawn(2), **more))
    stereo = torch.cat([prompt * 1.5, prompt * 0.5], 1)                         # (2, 2, T): its mean is the prompt
    assert (seeded(shim.generate_continuation, stereo, tiny.sample_rate, TEXTS) - longer).abs().max() < 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")                                          # AudioCraft resamples without a word
        assert shim.generate_continuation(prompt[0], 2 * tiny.sample_rate).shape == (1, 1, tiny.sample_rate // 2)
    for wrong, message in (((prompt[0, 0], 16_000), "C, T"), ((prompt, 16_000, ["one"]), "as many of each")):
        with pytest.raises(ValueError, match=message):
            shim.generate_continuation(*wrong)
    with pytest.raises(ValueError, match="return_tokens"):
        shim.generate_continuation(prompt, tiny.sample_rate, return_tokens=True)


def test_generate_unconditional(shim, tiny):
    made = seeded(shim.generate_unconditional, 2)
    assert near(made, torch.cat([tiny.generate(None, duration=0.5, temperature=1.0, seed=seed) for seed in drawn(2)]))
    assert not made[0].equal(made[1])
    with pytest.raises(ValueError, match="num_samples"):
        shim.generate_unconditional(0)


def test_progress(shim, tiny, capsys):
    seen = []
    shim.set_custom_progress_callback(lambda step, n_steps: seen.append((step, n_steps)) or True)
    shim.generate(["rain"])
    assert not seen, "with progress=False nothing is called, as in AudioCraft"
    made = seeded(shim.generate, ["rain"], progress=True)
    assert seen and seen[-1][0] == seen[-1][1] and made.equal(ours(tiny, ["rain"])), "the callback's result stops nothing"
    shim.set_custom_progress_callback()
    shim.generate(["rain"], progress=True)
    assert "step" in capsys.readouterr().err, "no bar"
    told = []
    tiny.generate("rain", duration=0.5, callback=lambda step, n_steps: told.append((step, n_steps)) and None)
    assert told == seen


def test_manual_seed(shim, tiny):
    one, again, other = (seeded(shim.generate, ["rain", "rain"], seed=seed) for seed in (0, 0, 1))
    assert one.equal(again) and not one.equal(other) and not one[0].equal(one[1])
    assert tiny.generate("rain", seed=0).equal(tiny.generate("rain", seed=0))


def test_parts(shim, tiny):
    assert shim.compression_model is tiny.codec and shim.lm is tiny.lm and shim.audio_channels == 1
    assert (shim.sample_rate, shim.frame_rate, shim.max_duration) == (tiny.sample_rate, tiny.frame_rate, 1.0)


def test_audio_write(tiny, tmp_path):
    path = save_audio(tmp_path / "a.wav", set_level(ours(tiny)[0], -20.0), tiny.sample_rate)
    audio, rate = load_audio(path)
    assert rate == tiny.sample_rate and level_db(audio) == pytest.approx(-20.0, abs=0.1)


# transformers

def test_one_call_loads_all(tiny_folder):
    assert AudioGen.from_pretrained(tiny_folder).generate(["rain"]).shape[:2] == (1, 1)


def test_max_new_tokens(tiny):
    assert tiny.generate_codes("rain", duration=10 / tiny.frame_rate).shape[-1] == 10


def test_same_names(tiny):
    settings = dict(duration=0.4, guidance_scale=2.0, temperature=0.9, top_k=10, top_p=0.0)
    assert tiny.generate("rain", seed=0, **settings).shape[-1] == 0.4 * tiny.sample_rate
    assert settings.keys() <= inspect.signature(AudioGen.generate).parameters.keys()


def test_stream(tiny):
    pieces = list(tiny.stream("rain", duration=0.5, seed=0, chunk=0.1))
    assert len(pieces) > 1 and near(torch.cat(pieces, -1), tiny.generate("rain", duration=0.5, seed=0))


def test_dtype(tiny_folder):
    for dtype in (torch.bfloat16, "bfloat16"):
        assert AudioGen.from_pretrained(tiny_folder, dtype=dtype).generate("rain", seed=0).isfinite().all()


def test_save_pretrained(tiny, tmp_path):
    for _ in range(2):
        tiny.save_pretrained(tmp_path / "m", exist_ok=True)
    assert AudioGen.from_pretrained(tmp_path / "m").generate("rain", seed=0).equal(tiny.generate("rain", seed=0))


# diffusers

def test_numpy(tiny):
    audio = tiny.generate("rain")[0, 0].numpy()
    assert audio.dtype == np.float32 and audio.ndim == 1


def test_negative_prompt(tiny):
    plain, led = (tiny.generate("rain", seed=0, guidance_scale=2.5, negative_prompt=text) for text in (None, "a dog barks"))
    assert plain.shape == led.shape and not plain.equal(led)


def test_several_of_one(tiny):
    three = tiny.generate(["rain"] * 3, seed=[0, 1, 2])
    assert len(three) == 3 and not three[0].equal(three[1]) and near(three[2:], tiny.generate("rain", seed=2))


def test_steps(tiny):
    steps = []
    tiny.generate("rain", duration=0.4, callback=lambda step, n_steps: steps.append(n_steps) and None)
    frames = 0.4 * tiny.frame_rate
    assert frames <= steps[-1] <= frames + tiny.lm.config.n_q                     # the delay adds a few
    with pytest.raises(TypeError, match="num_inference_steps"):
        tiny.generate("rain", num_inference_steps=10)                             # not ignored in silence
