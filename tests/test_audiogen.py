"The public face, on the bundled model."
import warnings

import pytest
import torch

from audiogen_nb import AudioGen, AudioLM, Codec


@pytest.fixture(scope="module")
def pocket():
    return AudioGen.from_pretrained("pocket")


def test_bundled_model_is_small_and_complete(pocket):
    from audiogen_nb.audiogen import POCKET
    assert sum(p.stat().st_size for p in POCKET.rglob("*") if p.is_file()) <= 24e6
    card = (POCKET / "README.md").read_text()
    for package in ("openttd-opensfx", "widelands-data", "wesnoth-1.16-data", "tuxpaint-stamps-default", "sonic-pi-samples"):
        assert package in card
    assert pocket.provenance["language_model"]["training"]["n_steps"] > 0
    assert pocket.sample_rate == 16_000 and pocket.frame_rate == 50 and pocket.n_parameters > 10e6


def test_generate_gives_sound(pocket):
    audio = pocket.generate("heavy rain", duration=1.0, seed=0)
    assert audio.shape == (1, 1, 16_000) and audio.dtype == torch.float32 and audio.device.type == "cpu"
    assert audio.isfinite().all() and 0.003 < audio.square().mean().sqrt() and audio.abs().max() < 1.5


def test_text_changes_the_sound(pocket):
    dog, rain = pocket.generate_codes(["a dog barks", "heavy rain"], duration=1.0, seed=0)
    assert not torch.equal(dog, rain)


def test_unconditional(pocket):
    assert pocket.generate(None, duration=0.5, seed=0).shape == (1, 1, 8_000)


@pytest.mark.parametrize("change", [dict(guidance_scale=1.0), dict(temperature=0.5), dict(top_k=5), dict(top_p=0.3),
                                    dict(seed=8), dict(greedy=True)])
def test_every_setting_matters(pocket, change):
    settings = {**dict(duration=1.0, seed=7), **change}
    assert not torch.equal(pocket.generate_codes("a dog barks", **settings),
                           pocket.generate_codes("a dog barks", duration=1.0, seed=7))


def test_same_seed_same_bits(pocket):
    first, second = (pocket.generate("a bell rings", duration=1.0, seed=3) for _ in range(2))
    assert torch.equal(first, second)


def test_item_does_not_depend_on_its_batch(pocket):
    alone = pocket.generate_codes("a dog barks", duration=1.0, seed=5)[0]
    others = ["heavy rain on a tin roof at night", "thunder", "a bell"]
    assert torch.equal(pocket.generate_codes(["a dog barks", *others], duration=1.0, seed=5)[0], alone)
    assert torch.equal(pocket.generate_codes([*others, "a dog barks"], duration=1.0, seed=[1, 2, 3, 5])[3], alone)


def test_continuation_keeps_the_prompt(pocket):
    start = pocket.generate("heavy rain", duration=1.0, seed=0)[0]
    longer = pocket.continuation(start, 16_000, "heavy rain", duration=2.0, seed=0)
    assert longer.shape == (1, 1, 32_000)
    rebuilt = pocket.codec.decode(pocket.codec.encode(start[None]))
    assert (longer[..., :12_000] - rebuilt[..., :12_000]).abs().max() < 0.05
    with pytest.warns(UserWarning, match="resampling"):
        pocket.continuation(start, 22_050, duration=2.0, seed=0)


@pytest.mark.parametrize("text, error, message", [
    ("", ValueError, "empty"), (" \t ", ValueError, "empty"), ("bark " * 400, ValueError, "tokens"), (3, TypeError, "str"),
    (["rain", None], TypeError, "None"), ([], ValueError, "empty"), (["rain", ""], ValueError, "empty")])
def test_bad_descriptions(pocket, text, error, message):
    with pytest.raises(error, match=message):
        pocket.generate(text)


@pytest.mark.parametrize("settings", [
    dict(duration=0), dict(duration=-1), dict(duration=1000), dict(duration=float("nan")), dict(temperature=float("nan")),
    dict(temperature=-1), dict(temperature=float("inf")), dict(top_k=-1), dict(top_p=-0.1), dict(top_p=1.1),
    dict(guidance_scale=float("nan")), dict(guidance_scale=-1), dict(seed=-1), dict(seed=[1, 2])])
def test_bad_settings_are_named(pocket, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        pocket.generate("rain", **settings)


@pytest.mark.parametrize("prompt, message", [
    (torch.zeros(2, 8000), "mono"), (torch.full((1, 800), float("nan")), "NaN"), (torch.zeros(1, 0), "empty"),
    (torch.zeros(1, 16_000 * 5), "nothing to generate")])
def test_bad_audio_prompts(pocket, prompt, message):
    with pytest.raises(ValueError, match=message):
        pocket.continuation(prompt, 16_000, "rain")


def test_bad_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="pocket"):
        AudioGen.from_pretrained("poket")
    with pytest.raises(ValueError, match="config.json"):
        AudioGen.from_pretrained(tmp_path)


def test_callback_may_stop(pocket):
    def stop(step, n_steps):
        if step == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        pocket.generate("rain", callback=stop)


def test_full_disk_leaves_nothing(pocket, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("audiogen_nb.audiogen.save_file", full)
    with pytest.raises(OSError, match="No space"):
        pocket.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_public_classes_are_whole():
    assert callable(AudioLM.generate) and callable(AudioGen.from_pretrained) and callable(Codec.preset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AudioLM(AudioLM.preset("tiny"))
