"The public face, on the bundled model."
import warnings

import pytest
import torch

from audiogen_nb import AudioGen, AudioLM, Codec


@pytest.fixture(scope="module")
def pocket():
    return AudioGen.from_pretrained("pocket")


def test_bundled_model_is_small_and_complete(pocket):
    from audiogen_nb.data.recordings import PACKAGES
    from audiogen_nb.hub import POCKET
    assert sum(p.stat().st_size for p in POCKET.rglob("*") if p.is_file()) <= 32e6
    card = (POCKET / "README.md").read_text()
    assert all(package in card for package in PACKAGES)
    stages = pocket.provenance["codec"] + pocket.provenance["language_model"]
    assert len(stages) >= 2 and all(stage["training"]["n_steps"] > 0 for stage in stages)
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


@pytest.mark.parametrize("change", [dict(guidance_scale=1.0), dict(guidance_scale=lambda done: 6.0 - 5.0 * done),
                                    dict(temperature=0.5), dict(top_k=5), dict(top_p=0.3), dict(seed=8), dict(greedy=True),
                                    dict(negative_prompt="rain"), dict(best_of=8, score=lambda audio, text: -audio.abs().mean())])
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
    dict(guidance_scale=float("nan")), dict(guidance_scale=-1), dict(guidance_scale=lambda done: -1.0), dict(seed=-1),
    dict(seed=[1, 2]), dict(seed=2**63), dict(best_of=0), dict(score=len), dict(negative_prompt=["a", "b"]),
    dict(negative_prompt="wind", guidance_scale=1.0), dict(negative_prompt=" ")])
def test_bad_settings_are_named(pocket, settings):
    with pytest.raises(ValueError, match="empty" if settings == dict(negative_prompt=" ") else next(iter(settings))):
        pocket.generate("rain", **settings)


@pytest.mark.parametrize("prompt, message", [
    (torch.zeros(2, 8000), "mono"), (torch.full((1, 800), float("nan")), "NaN"), (torch.zeros(1, 0), "empty"),
    (torch.zeros(1, 16_000 * 5), "nothing to generate"), (torch.zeros(1, 64_000), "nothing to generate")])
def test_bad_audio_prompts(pocket, prompt, message):
    with pytest.raises(ValueError, match=message):
        pocket.continuation(prompt, 16_000, "rain", duration=4.0)


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


def test_callback_may_stop_and_keep_what_is_finished(tiny):
    whole = tiny.generate_codes("rain", duration=0.5, seed=1)
    for progress in (False, True):
        part = tiny.generate_codes("rain", duration=0.5, seed=1, callback=lambda step, n_steps: step == 20, progress=progress)
        assert 15 < part.shape[-1] < 21 and torch.equal(part, whole[..., :part.shape[-1]])
    assert tiny.generate("rain", callback=lambda step, n_steps: True).shape == (1, 1, 0)
    pieces = list(tiny.stream("rain", duration=0.5, seed=1, callback=lambda step, n_steps: step == 20))
    assert torch.cat(pieces, -1).shape[-1] == part.shape[-1] * tiny.codec.hop_length


def test_what_cannot_fit_is_refused_before_it_is_allocated(tiny, monkeypatch):
    monkeypatch.setattr("audiogen_nb.engine.budget.free_memory", lambda device="cpu": 1000)
    for call in (tiny.generate, tiny.generate_codes, tiny.stream):
        with pytest.raises(ValueError, match="GB are free"):
            call(["rain"] * 3)


def test_settings_by_position_and_by_name_are_the_same(tiny):
    by_name = tiny.generate_codes("rain", duration=0.3, guidance_scale=2.0, temperature=0.9, top_k=20, top_p=0.0, seed=4)
    assert torch.equal(tiny.generate_codes("rain", 0.3, 2.0, 0.9, 20, 0.0, 4), by_name)
    torch.testing.assert_close(tiny.codec.decode(by_name)[..., :4800], tiny.generate("rain", 0.3, 2.0, 0.9, 20, 0.0, 4))
    with pytest.raises(TypeError, match="volume"):
        tiny.generate_codes("rain", volume=11)


def test_negative_prompt_takes_the_place_of_no_text(tiny):
    plain = tiny.generate_codes(["rain", "wind"], seed=0)
    away = tiny.generate_codes(["rain", "wind"], seed=0, negative_prompt=["a dog", "a bell"])
    assert not torch.equal(away, plain)
    assert torch.equal(tiny.generate_codes("wind", seed=0, negative_prompt="a bell")[0], away[1])


def test_best_of_keeps_the_best_and_each_item_its_own(tiny):
    from audiogen_nb.sound import level_db
    score = lambda audio, text: level_db(audio).item()
    alone = tiny.generate(["rain", "wind"], seed=[1, 2])
    best = tiny.generate(["rain", "wind"], seed=[1, 2], best_of=3, score=score)
    assert (level_db(best) >= level_db(alone) - 1e-3).all()
    assert torch.allclose(tiny.generate("wind", seed=2, best_of=3, score=score), best[1:], atol=1e-5)
    seen = []
    tiny.generate("rain", duration=0.1, best_of=4, score=lambda audio, text: seen.append((audio.shape, text)) or 0.0)
    assert seen == [((1, 1600), "rain")] * 4
    gain = lambda codes: (tiny.log_likelihood(codes, "rain") - tiny.log_likelihood(codes, None)).mean()
    assert gain(tiny.generate_codes("rain", seed=5, best_of=4)) >= gain(tiny.generate_codes("rain", seed=5))
    with pytest.raises(ValueError, match="score"):
        tiny.generate(None, best_of=2)


def test_log_likelihood_is_that_of_the_predictions(tiny):
    codes = tiny.generate_codes(["rain", "wind"], duration=0.4, seed=0)
    nats = tiny.log_likelihood(codes, ["rain", "wind"])
    logits, known = tiny.lm.predict(codes, *tiny.text_encoder(["rain", "wind"]))
    expected = (logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0] * known).sum(1)
    assert torch.allclose(nats, expected.detach(), atol=1e-4) and torch.equal(tiny.log_likelihood(codes[1:], "wind")[0], nats[1])


def test_determinism_over_random_batches(tiny):
    "An item alone, first or last in a batch, among others of any length: the same tokens"
    import random
    rng, words = random.Random(0), "rain wind dog bell thunder siren engine water bird train".split()
    text = lambda: " ".join(rng.choices(words, k=rng.randint(1, 6)))
    different = 0
    for _ in range(20):
        mine, seed, others = text(), rng.randrange(1000), [text() for _ in range(rng.randint(1, 4))]
        seeds = [rng.randrange(1000) for _ in others]
        alone = tiny.generate_codes(mine, duration=0.1, seed=seed)[0]
        first = tiny.generate_codes([mine, *others], duration=0.1, seed=[seed, *seeds])[0]
        last = tiny.generate_codes([*others, mine], duration=0.1, seed=[*seeds, seed])[-1]
        different += not (torch.equal(alone, first) and torch.equal(alone, last))
    assert different == 0


def test_full_disk_leaves_nothing(pocket, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("audiogen_nb.hub.save_file", full)
    with pytest.raises(OSError, match="No space"):
        pocket.save_pretrained(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_public_classes_are_whole():
    assert callable(AudioLM.generate) and callable(AudioGen.from_pretrained) and callable(Codec.preset)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AudioLM(AudioLM.preset("tiny"))
