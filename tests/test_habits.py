"""What callers bring along: other libraries' numbers, defaults and habits; and what a call leaves behind."""
import copy
import inspect
import io
import json
import os
import pickle
import random
import subprocess
import sys
import unittest.mock
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from audiogen_nb import AudioGen, Codec
from audiogen_nb.cli import main, refused_on_purpose
from audiogen_nb.files import atomic_path, new_folder
from audiogen_nb.sampling.choosing import uniform_streams
from audiogen_nb.sampling.request import Generation, items_of, Request
from audiogen_nb.sound import load_audio
from audiogen_nb.soundfiles import read_tags

SHORT = dict(duration=0.2, seed=1)


@pytest.fixture(scope="module")
def rain(tiny):
    return tiny.generate("rain", **SHORT)


# Numbers and seeds

def test_numbers_of_other_libraries(tiny):
    plain = tiny.generate("rain", duration=0.25, seed=5, guidance_scale=2.5, temperature=0.5, top_k=7, top_p=0.0)
    other = tiny.generate("rain", duration=np.float32(0.25), seed=np.int64(5), guidance_scale=np.float32(2.5),
                          temperature=torch.tensor(0.5), top_k=np.uint8(7), top_p=np.float64(0))
    assert torch.equal(plain, other)
    assert torch.equal(tiny.generate(["rain", "wind"], duration=0.25, seed=np.array([5, 6])),
                       tiny.generate(["rain", "wind"], duration=0.25, seed=[5, 6]))


@pytest.mark.parametrize("setting", [dict(duration="1"), dict(duration=True), dict(seed=1.0), dict(seed=True), dict(top_k="5"),
                                     dict(temperature=None, top_p=[0.5]), dict(num_return_sequences=0.5), dict(best_of=True)])
def test_what_is_no_number_is_refused(tiny, setting):
    with pytest.raises(TypeError, match="must be a (whole )?number"):
        tiny.generate("rain", **setting)


def test_every_seed_of_the_range_matters():
    seeds = [5, 2 ** 32 + 5, 2 ** 33 + 5, 2 ** 63 - 1, 2 ** 32, 2 ** 31]
    streams = uniform_streams(seeds, 50, 2)
    assert len({tuple(s.flatten().tolist()) for s in streams}) == len(seeds)
    assert torch.equal(uniform_streams([2 ** 40], 60, 2)[..., :50], uniform_streams([2 ** 40], 50, 2))
    assert 0 <= streams.min() and streams.max() < 1 and abs(streams.mean() - 0.5) < 0.1


def test_torch_decides_when_no_seed_is_given(tiny):
    torch.manual_seed(3); first = tiny.generate("rain", duration=0.2)
    torch.manual_seed(3); assert torch.equal(tiny.generate("rain", duration=0.2), first)
    made = [tiny.generate("rain", duration=0.2, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert torch.equal(made[0], first) and torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    with pytest.raises(ValueError, match="pass one of them"):
        tiny.generate("rain", seed=1, generator=torch.Generator())
    with pytest.raises(TypeError, match="torch.Generator"):
        tiny.generate("rain", generator=np.random.default_rng(0))


def test_several_sounds_of_a_text(tiny):
    codes = tiny.generate_codes
    three = codes(["rain", "wind"], **SHORT, num_return_sequences=3)
    assert three.shape[0] == 6 and torch.equal(three[:1], codes("rain", **SHORT))
    assert torch.equal(three[3:4], codes("wind", **SHORT))
    assert len({tuple(s.flatten().tolist()) for s in three}) == 6
    assert torch.equal(three[:3], codes("rain", **SHORT, num_return_sequences=3)), "a batch-mate matters"
    start = 0.1 * torch.randn(1, 1600, generator=torch.Generator().manual_seed(0))
    assert tiny.continuation(start, 16_000, "rain", duration=0.4, seed=0, num_return_sequences=2).shape[0] == 2
    streamed = torch.cat(list(tiny.stream(["rain", "wind"], **SHORT, num_return_sequences=3)), -1)
    assert (streamed - tiny.generate(["rain", "wind"], **SHORT, num_return_sequences=3)).abs().max() < 1e-4
    unwanted = codes(["rain", "wind"], **SHORT, num_return_sequences=2, negative_prompt=["sea", "dog"])
    assert torch.equal(unwanted[2:3], codes("wind", **SHORT, negative_prompt="dog"))
    best = codes("rain", **SHORT, num_return_sequences=2, best_of=2)
    assert torch.equal(best[:1], codes("rain", **SHORT, best_of=2))


def test_equal_sounds_are_said(tiny):
    with pytest.warns(UserWarning, match="equal descriptions with equal seeds"):
        both = tiny.generate(["rain", "rain"], **SHORT)
    assert torch.equal(both[0], both[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        items_of(["rain", "rain"], Request(seed=[1, 2]))
        items_of([None, None], Request(seed=1))             # continuations of two sounds


def test_a_settings_object(tiny):
    soft = replace(tiny.generation, temperature=0.3, duration=0.3, guidance_scale=1.0)
    assert torch.equal(tiny.generate("rain", seed=1, settings=soft),
                       tiny.generate("rain", 0.3, 1.0, 0.3, seed=1))
    assert torch.equal(tiny.generate("rain", duration=0.2, seed=1, settings=soft), tiny.generate("rain", 0.2, 1.0, 0.3, seed=1))
    with pytest.raises(TypeError, match="dataclasses.replace"):
        tiny.generate("rain", settings={"temperature": 0.3})


@pytest.mark.parametrize("method", ["generate", "generate_codes", "continuation", "stream"])
def test_signatures_can_be_read(method):
    shown = inspect.signature(getattr(AudioGen, method)).parameters
    assert {"duration", "guidance_scale", "seed", "generator", "num_return_sequences", "settings"} <= shown.keys()
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in shown.values())


# Damaged numbers

@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("greedy", [False, True])
def test_damaged_logits_name_the_step(tiny, value, greedy):
    broken = copy.deepcopy(tiny)
    broken.lm.heads.weight.data.flatten()[3] = value
    with pytest.raises(FloatingPointError, match="logits of step 1"):
        broken.generate("rain", **SHORT, greedy=greedy)


def test_a_damaged_codec_is_said(tiny):
    broken = copy.deepcopy(tiny)
    for p in broken.codec.decoder.parameters():
        p.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="decoded sound has NaN"):
        broken.generate("rain", **SHORT)


# Surroundings

def test_other_people_s_settings_change_nothing(tiny, rain):
    try:
        torch.set_default_device("meta")                     # stands in for cuda
        assert torch.equal(tiny.generate("rain", **SHORT), rain)
        assert (torch.cat(list(tiny.stream("rain", **SHORT)), -1) - rain).abs().max() < 1e-4
        assert torch.zeros(1).device.type == "meta"
    finally:
        torch.set_default_device(None)
    try:
        torch.set_default_dtype(torch.float64)
        assert torch.equal(tiny.generate("rain", **SHORT), rain)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tiny.generate("rain", **SHORT), rain)
    for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad()):
        with mode:
            assert torch.equal(tiny.generate("rain", **SHORT), rain)


def test_a_stream_leaves_its_caller_alone(tiny):
    for piece in tiny.stream("rain", duration=0.5, seed=1, chunk=0.1):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and not piece.requires_grad


def test_no_call_leaves_a_trace(tiny, tmp_path):
    os.umask(0o027)
    try:
        torch.manual_seed(0); random.seed(0); np.random.seed(0)
        before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), torch.get_num_threads(),
                  torch.get_default_dtype(), torch.is_grad_enabled())
        audio = tiny.generate("rain", **SHORT)
        tiny.continuation(audio[0], tiny.sample_rate, duration=0.4, seed=2)
        tiny.save_pretrained(tmp_path / "m")
        with atomic_path(tmp_path / "f") as path:
            path.write_text("x", encoding="utf-8")
        after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), torch.get_num_threads(),
                 torch.get_default_dtype(), torch.is_grad_enabled())
        assert torch.equal(before[0], after[0]) and before[1] == after[1] and (before[2] == after[2]).all() and before[3:] == after[3:]
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640, "the rights that the umask leaves"
        assert (tmp_path / "m").stat().st_mode & 0o777 == 0o750
        assert {p.stat().st_mode & 0o777 for p in (tmp_path / "m").iterdir() if p.is_file()} == {0o640}
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(0o022)


def test_long_names_and_replaced_folders(tmp_path):
    name = "é" * 120 + ".txt"                                 # 244 bytes, 255 are allowed
    with atomic_path(tmp_path / name) as path:
        path.write_text("x", encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    with new_folder(tmp_path / "m") as folder:
        (folder / "a").write_text("1", encoding="utf-8")
    with pytest.raises(RuntimeError, match="stop"), new_folder(tmp_path / "m", replace=True) as folder:
        raise RuntimeError("stop")
    assert (tmp_path / "m" / "a").exists() and len(list(tmp_path.iterdir())) == 2


# A module where it is expected

def test_the_face_of_a_module(tiny):
    assert tiny.dtype == torch.float32 and tiny.device == torch.device("cpu") and tiny.eval() is tiny and tiny.to("cpu") is tiny
    assert sum(p.numel() for p in tiny.parameters()) >= tiny.n_parameters


def test_a_subclass_stays_one(tiny_folder):
    class Mine(AudioGen):
        pass
    assert type(Mine.from_pretrained(tiny_folder)) is Mine


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "int8"])
def test_a_model_of_any_form_can_be_copied(tiny_folder, dtype, tmp_path):
    model = AudioGen.from_pretrained(tiny_folder, dtype=dtype)
    wanted = model.generate("rain", **SHORT)
    torch.save(model, tmp_path / "model.pt")
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(other.generate("rain", **SHORT), wanted) and other.parts.generation == model.generation


def test_a_codec_can_be_pickled_and_trained_on():
    torch.manual_seed(0)
    codec = Codec(Codec.preset("tiny"))
    again = pickle.loads(pickle.dumps(codec))
    audio = torch.randn(1, 1, 3200)
    assert torch.equal(codec.eval().encode(audio), again.eval().encode(audio))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {n for n, p in codec.named_parameters() if p.requires_grad}


# The command line

@pytest.fixture
def call(capsys):
    def call(*argv):
        capsys.readouterr()
        return main([str(a) for a in argv]), *capsys.readouterr()
    return call


def test_prompts_from_a_file(call, tiny, tiny_folder, tmp_path):
    (tmp_path / "p.jsonl").write_text('\ufeff{"text": "rain", "seed": 4, "out": "first.wav"}\n\n{"text": "wind", "temperature": 0.5}\n',
                                      encoding="utf-8")
    argv = ["generate", "--prompts", tmp_path / "p.jsonl", "--model", tiny_folder, "-o", tmp_path / "a.wav", "--seed", 3,
            "--duration", 0.2, "--quiet", "--batch-size", 1]
    code, out, err = call(*argv)
    assert code == 0 and [line.rsplit("/", 1)[1] for line in out.splitlines()] == ["first.wav", "a-2.wav"], err
    wanted = tiny.generate("wind", duration=0.2, temperature=0.5, seed=3)[0]
    assert (load_audio(tmp_path / "a-2.wav")[0] - wanted.clamp(-1, 1)).abs().max() < 1e-3
    assert call(*argv)[0] == 2                                  # they exist
    (tmp_path / "a-2.wav").unlink()
    assert call(*argv, "--skip-existing")[1].split()[0].endswith("a-2.wav")


@pytest.mark.parametrize("lines, says", [
    ('{"text": "rain", "sed": 1}', "line 1 of p.jsonl has no key 'sed': did you mean 'seed'?"), ('{"seed": 1}', 'has no "text"'),
    ('{"text": "rain"', "is not JSON"), ("", "holds no prompts"), ('{"text": "rain", "duration": 99}', "line 1 of p.jsonl: duration"),
    ("rain\n犬", "line 2 of p.jsonl: '犬'"), ('{"text": "rain", "out": "a.wav"}\n{"text": "dog", "out": "a.wav"}', "several sounds"),
    ('{"text": "rain", "out": "no/a.wav"}', "does not exist"), ('{"text": "rain", "seed": "x"}', "seed must be a whole number"),
    ('{"text": 3}', "text must be a text")])
def test_a_bad_prompt_is_found_before_the_first_sound(call, tiny_folder, tmp_path, lines, says):
    (tmp_path / "p.jsonl").write_text(lines, encoding="utf-8")
    code, out, err = call("generate", "--prompts", tmp_path / "p.jsonl", "--model", tiny_folder, "-o", tmp_path / "a.wav", "--quiet",
                          "--seed", 1)
    assert code == 2 and says in err and len(err.splitlines()) == 1 and not list(tmp_path.glob("*.wav"))


def test_a_wrong_encoding_of_prompts(call, tiny_folder, tmp_path):
    (tmp_path / "p.txt").write_bytes("Gewitter über dem Meer".encode("latin-1"))
    code, _, err = call("generate", "--prompts", tmp_path / "p.txt", "--model", tiny_folder, "-o", tmp_path / "a.wav")
    assert code == 2 and "p.txt is not text in UTF-8" in err


def test_a_full_disk_is_found_before_the_first_sound(call, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    code, _, err = call("generate", "rain", "--model", tiny_folder, "-o", tmp_path / "a.wav", "--seed", 1, "--quiet")
    assert code == 2 and "MB" in err and not list(tmp_path.iterdir())


def test_a_file_says_how_it_was_made(call, tiny_folder, tmp_path):
    for end in ("wav", "flac", "ogg"):
        assert call("generate", "rain", "--model", tiny_folder, "-o", tmp_path / f"a.{end}", "--seed", 3, "--duration", 0.2, "--quiet")[0] == 0
        tags = read_tags(tmp_path / f"a.{end}")
        assert tags["prompt"] == "rain" and tags["seed"] == 3 and tags["duration"] == 0.2 and tags["guidance_scale"] == 3.0
        assert tags["model"] == str(tiny_folder) and tags["library"].startswith("audiogen_nb ")
        code, out, _ = call("info", tmp_path / f"a.{end}")
        assert code == 0 and json.loads(out)["seed"] == 3
    assert call("info", tmp_path / "none.wav")[0] == 2


def test_a_sound_to_a_pipe(tiny, tiny_folder):
    done = subprocess.run([sys.executable, "-c", "import sys; from audiogen_nb.cli import main; sys.exit(main())",
                           "generate", "rain", "--model", str(tiny_folder), "--out", "-", "--seed", "1", "--duration", "0.2", "--quiet"],
                          capture_output=True, timeout=300)
    assert done.returncode == 0 and done.stderr == b"", done.stderr
    import soundfile
    audio, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    assert rate == 16_000 and (torch.from_numpy(audio) - tiny.generate("rain", **SHORT)[0, 0].clamp(-1, 1)).abs().max() < 1e-3


def test_a_fault_of_the_library_is_a_traceback(monkeypatch, tiny_folder, tmp_path):
    argv = ["generate", "rain", "--model", str(tiny_folder), "-o", str(tmp_path / "a.wav"), "--seed", "1", "--quiet"]
    for fault in (lambda *a, **k: int("x"), lambda *a, **k: len(3), lambda *a, **k: torch.zeros(2) + torch.zeros(3)):
        monkeypatch.setattr("audiogen_nb.pipeline._write", fault)
        with pytest.raises((ValueError, TypeError, RuntimeError)):
            main(argv)


def test_which_errors_are_refusals():
    def caught(call):
        try:
            call()
        except Exception as e:
            return e
    assert refused_on_purpose(caught(lambda: Generation(longest=0.1)))
    assert refused_on_purpose(caught(lambda: open("/nowhere/x", encoding="utf-8")))
    assert not refused_on_purpose(caught(lambda: int("x"))) and not refused_on_purpose(caught(lambda: Generation(lengthy=3)))


def test_debug_shows_where(call):
    code, _, err = call("generate", "rain", "--temperature", 0, "--debug")
    assert code == 2 and "Traceback" in err and "temperature must be above 0" in err.splitlines()[-1]


def test_names_that_the_terminal_cannot_show(tiny_folder, tmp_path):
    done = subprocess.run([sys.executable, "-c", "import sys; from audiogen_nb.cli import main; sys.exit(main())",
                           "generate", "rain", "wind", "--model", str(tiny_folder), "--out", "雨.wav", "--seed", "1", "--duration", "0.2", "--quiet"],
                          cwd=tmp_path, env={**os.environ, "PYTHONIOENCODING": "cp1252"}, capture_output=True, timeout=300)
    assert done.returncode == 0 and len(list(tmp_path.glob("雨*.wav"))) == 2, done.stderr


# Another device: "meta" stands in for a graphics card, and refuses a tensor that was left on the CPU

def test_losses_and_noise_are_made_where_their_input_is():
    from audiogen_nb.codec.adversarial import MSSTFTDiscriminator, discriminator_loss, feature_loss, generator_loss
    from audiogen_nb.codec.losses import MelLoss, mel_distance, si_sdr, time_loss
    from audiogen_nb.train.lm_step import blur_text
    x, y = torch.empty(2, 1, 16_000, device="meta"), torch.empty(2, 1, 16_000, device="meta")
    assert {v.device.type for v in (time_loss(x, y), si_sdr(x, y), MelLoss(16_000).to("meta")(x, y))} == {"meta"}
    with unittest.mock.patch("audiogen_nb.codec.losses.check_audio", lambda audio: audio):     # which looks at values
        assert mel_distance(x, y, 16_000).device.type == "meta"
    judge = MSSTFTDiscriminator(MSSTFTDiscriminator.preset("tiny")).to("meta")
    real, fake = judge(x), judge(y)
    assert {v.device.type for v in (discriminator_loss(real, fake), generator_loss(fake), feature_loss(real, fake))} == {"meta"}
    states, mask = torch.empty(2, 5, 8, device="meta"), torch.ones(2, 5, dtype=torch.bool, device="meta")
    assert {v.device.type for v in blur_text(states, mask, 0.5, 0.5, torch.Generator().manual_seed(0))} == {"meta"}


def test_a_model_is_whole_on_another_device(tiny):
    moved = copy.deepcopy(tiny).to("meta")
    assert {p.device.type for p in moved.parameters()} == {"meta"} and {b.device.type for b in moved.text_encoder.buffers()} <= {"meta"}
    assert moved.device.type == "meta"
    with torch.no_grad():
        logits = moved.lm(torch.zeros(1, moved.codec.n_q, 4, dtype=torch.int64, device="meta"),
                          torch.empty(1, 3, moved.text_encoder.width, device="meta"), torch.ones(1, 3, dtype=torch.bool, device="meta"))
        assert logits.device.type == "meta"
        assert moved.codec.decoder(torch.empty(1, moved.codec.config.dimension, 5, device="meta")).device.type == "meta"


def test_a_device_that_is_not_there(tiny_folder):
    for device in ("gpu", "vulkan", "cpu:x"):
        with pytest.raises(ValueError, match="cannot be used here"):
            AudioGen.from_pretrained(tiny_folder, device=device)


def test_prepared_weights_say_what_they_are_not_for(tiny_folder, tmp_path):
    prepared = AudioGen.from_pretrained(tiny_folder, dtype="bfloat16")
    with pytest.raises(ValueError, match="load the model again with device='meta'"):
        prepared.to("meta")
    assert prepared.to("cpu") is prepared


def test_every_seed_of_a_training_matters():
    from audiogen_nb.sampling.request import step_generator
    drawn = [torch.rand(1, generator=step_generator(seed, 3)).item() for seed in (5, 2 ** 32 + 5, 2 ** 33 + 5, 2 ** 63 - 1, -1)]
    assert len(set(drawn)) == 5
