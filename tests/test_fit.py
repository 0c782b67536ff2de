"What training promises: it survives kills, full disks and Ctrl-C, several processes equal one, bad input costs nothing."
import json
import math
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from audiogen_nb import Codec
from audiogen_nb.data.toy_kinds import ToyWorld
from audiogen_nb.train.loop import load_checkpoint, read_log, run_steps
from audiogen_nb.train.runs import read_config
from audiogen_nb.train.runs import read_settings
from audiogen_nb.train.codec_step import Adversary, codec_batch
from audiogen_nb.train.codec import CodecTrainer, CodecTraining, diagnose, fit_codec_from_config
from audiogen_nb.sound import save_audio

CONFIGS = Path(__file__).parent.parent / "audiogen_nb" / "configs"
TOY = {"recordings": False, "toy": 10, "toy_seconds": 0.6}
EVERYTHING = {"n_steps": 40, "batch_size": 2, "seconds": 0.2, "warmup": 3, "warmup_quantizer": 4, "average": 0.9,
              "discriminator": "tiny", "start_discriminator": 8, "balance": True, "quantizer_dropout": 0.5, "checkpoint_every": 2}
PROGRAM = [sys.executable, "-c", "import sys; from audiogen_nb.cli import main; sys.exit(main())"]


def write(folder, data=TOY, codec="tiny", **training):
    "A configuration file"
    path = folder / "config.json"
    path.write_text(json.dumps({"codec": codec, "data": data, "training": {**EVERYTHING, **training}}))
    return path


def state(folder):
    "Everything a run has saved"
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same(a, b, where="checkpoint", tolerance=None):
    "Equal to the bit, or within a tolerance"
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}", tolerance)
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f"{where}[{i}]", tolerance)
    elif tolerance is None or not isinstance(a, (float, torch.Tensor)):
        assert torch.equal(a, b) if torch.is_tensor(a) else a == b, where
    else:
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=tolerance, atol=tolerance, msg=lambda m: f"{where}: {m}")


def test_killed_ten_times_a_run_ends_in_the_same_bits(tmp_path):
    "SIGKILL at ten random moments, half of them while a checkpoint is being written; every checkpoint found is readable"
    config, folder, moments = write(tmp_path), tmp_path / "killed", random.Random(0)
    context = get_context("forkserver")              # one process imports everything and forks the runs: they start quickly
    context.set_forkserver_preload(["audiogen_nb.train.codec", "torch._dynamo"])
    start = lambda name: context.Process(target=fit_codec_from_config, args=(config, tmp_path / name, False))
    for i, steps in enumerate(sorted(moments.sample(range(2, EVERYTHING["n_steps"] - 3), 10))):
        run = start("killed")
        run.start()
        while run.is_alive() and len(read_log(folder)) < steps:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        while i % 2 and run.is_alive() and not list(folder.glob(".checkpoint.*")):
            time.sleep(0.0002)
        assert run.is_alive(), "the run was over before it could be killed"
        run.kill()
        run.join()
        if (folder / "checkpoint.pt").exists():
            assert 0 < state(folder)["step"] < EVERYTHING["n_steps"]
    for run in (start("whole"), start("killed")):
        run.start()
        run.join()
        assert run.exitcode == 0
    assert_same(state(tmp_path / "whole"), state(folder))
    assert read_log(tmp_path / "whole") == read_log(folder) and len(read_log(folder)) == EVERYTHING["n_steps"]
    assert not list(folder.glob(".*")), "what a killed process left is cleared away"


@pytest.mark.parametrize("settings", [{}, {"freeze_encoder": True, "warmup_quantizer": 0}])
def test_two_processes_equal_one(tmp_path, settings):
    "Losses and weights of the same global batches, by one process and by two"
    script = tmp_path / "train.py"
    script.write_text("import sys; from audiogen_nb.train.codec import fit_codec_from_config\n"
                      "fit_codec_from_config(*sys.argv[1:3], False, start_from=sys.argv[3] if len(sys.argv) > 3 else None)")
    more = []
    if settings:
        fit_codec_from_config(write(tmp_path, n_steps=6), tmp_path / "first", False)
        more = [str(tmp_path / "first")]
    config = write(tmp_path, batch_size=4, n_steps=8, quantizer_dropout=0.0, start_discriminator=5,
                   learning_rate_discriminator=1e-4, **settings)
    fit_codec_from_config(config, tmp_path / "one", False, *more)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script), str(config), str(tmp_path / "two"), *more], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = state(tmp_path / "one"), state(tmp_path / "two")
    codec = lambda part, sums: {name: v for name, v in part.items() if name.endswith((".total", ".count")) == sums}
    # Gradients are sums in another order: they differ by rounding, under a thousandth of their size (Adam keeps their means).
    for i, kept in one["optimizer"]["state"].items():
        assert (kept["exp_avg"] - two["optimizer"]["state"][i]["exp_avg"]).norm() <= 1e-2 * kept["exp_avg"].norm(), i
    # Adam divides each gradient by its own size. Where that is near zero, rounding becomes a visible part of a step of up to
    # 2e-3: a single weight may differ by a twentieth of a step, all of them together by a thousandth.
    for part in ("codec", "trained"):
        weights, others = codec(one[part], False), codec(two[part], False)
        assert_same(weights, others, part, tolerance=1e-4)
        apart = torch.cat([(weights[name] - others[name]).flatten().float() for name in weights])
        assert apart.square().mean().sqrt() < 2e-6, part
        assert_same(codec(one[part], True), codec(two[part], True), part, tolerance=1e-3)      # sums over some 50 latents
    assert_same(one["discriminator"], two["discriminator"], "discriminator", tolerance=1e-4)
    assert_same(read_log(tmp_path / "one"), read_log(tmp_path / "two"), "log", 1e-4)
    assert len(read_log(tmp_path / "two")) == 8, "only one process writes"


def test_a_batch_that_processes_cannot_share(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "part.py"
    script.write_text("import torch; from audiogen_nb.engine.processes import own_part, processes\n"
                      "with processes():\n    own_part(torch.zeros(3, 1))")
    done = subprocess.run([*launch, str(script)], capture_output=True, text=True)
    assert done.returncode and "a batch of 3 cannot be shared by 2 processes" in done.stderr


def train(tmp_path, config, limit=None, **options):
    "The command in a process of its own, with a limit on the size of any file"
    def prepare():
        signal.signal(signal.SIGINT, signal.default_int_handler)             # a shell's background jobs ignore Ctrl-C
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.Popen([*PROGRAM, "fit-codec", str(config), "--out", str(tmp_path / "run"), "--quiet"], preexec_fn=prepare,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so_once(tmp_path):
    "The file system refuses the second checkpoint: too large for the space there is"
    fit_codec_from_config(write(tmp_path, n_steps=4), tmp_path / "run", False)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    process = train(tmp_path, write(tmp_path, n_steps=8), limit=len(before) // 2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2 and len(err.splitlines()) == 1, err
    assert "could not write" in err and "the checkpoint of step 4 is kept" in err
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before and not list((tmp_path / "run").glob(".*"))
    fit_codec_from_config(write(tmp_path, n_steps=8), tmp_path / "run", False)              # space again
    assert state(tmp_path / "run")["step"] == 8


def test_a_disk_too_full_for_the_log_says_what_is_kept(tmp_path):
    fit_codec_from_config(write(tmp_path, n_steps=4), tmp_path / "run", False)
    process = train(tmp_path, write(tmp_path, n_steps=60, checkpoint_every=1000), limit=4096)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and len(err.splitlines()) == 1 and "the checkpoint of step 4 is kept" in err, err
    assert state(tmp_path / "run")["step"] == 4


def test_ctrl_c_says_how_to_go_on(tmp_path):
    process = train(tmp_path, write(tmp_path, n_steps=10_000))
    while not (tmp_path / "run" / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "stopped in step" in err and "call again to go on from there" in err
    assert state(tmp_path / "run")["step"] >= 2


def test_a_nan_stops_with_the_last_good_checkpoint(tmp_path):
    fit_codec_from_config(write(tmp_path, n_steps=2), tmp_path / "run", False)
    process = train(tmp_path, write(tmp_path, n_steps=40, learning_rate=1e8, clip=1e30))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "became NaN or infinite" in err and "is kept" in err and "Traceback" not in err, err
    assert all(v.isfinite().all() for v in state(tmp_path / "run")["codec"].values() if torch.is_tensor(v))
    assert [f.name for f in diagnose(read_log(tmp_path / "run"), card=32)] == ["not a number"]


def test_ruined_discriminators_never_reach_the_checkpoint(tmp_path, monkeypatch):
    "Their gradient becomes NaN in step 2, while every loss is still a number"
    calls, judge = [], Adversary.judge

    def poisoned(self, *pair):
        verdict = judge(self, *pair)
        calls.append(1)
        if len(calls) == 3:
            next(self.model.parameters()).grad.fill_(math.nan)
        return verdict

    monkeypatch.setattr(Adversary, "judge", poisoned)
    config = write(tmp_path, n_steps=9, start_discriminator=0, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match="gradient_discriminator became NaN .* the checkpoint of step 2 is kept"):
        fit_codec_from_config(config, tmp_path / "run", False)
    assert all(v.isfinite().all() for v in state(tmp_path / "run")["discriminator"].values())
    assert fit_codec_from_config(config, tmp_path / "run", False) and len(read_log(tmp_path / "run")) == 9     # calmer, it goes on


CHANGES = {"learning_rate": 1e-4, "schedule": "constant", "warmup": 0, "warmup_quantizer": 0, "quantizer_dropout": 1.0,
           "clip": 1e-3, "average": 0.1, "weight_time": 1.0, "weight_mel": 3.0, "weight_commitment": 5.0, "discriminator": "",
           "start_discriminator": 100, "learning_rate_discriminator": 1e-2, "weight_adversarial": 1.0, "weight_features": 1.0,
           "mel": "paper", "one_level": False, "balance": False, "batch_size": 3, "seconds": 0.25, "seed": 1, "n_steps": 5}


@pytest.fixture(scope="module")
def outcome():
    "The averaged weights after four steps with some settings"
    clips, base = list(ToyWorld(6, seed=0, duration=0.6)), {**EVERYTHING, "n_steps": 4, "warmup": 1, "warmup_quantizer": 1, "start_discriminator": 1}

    def outcome(folder, **changes):
        from audiogen_nb.train.codec import fit_codec
        torch.manual_seed(0)
        codec, settings = Codec(Codec.preset("tiny")), CodecTraining(**{**base, **changes})
        fit_codec(codec, [clips], settings, folder, progress=False)
        return torch.cat([p.flatten() for p in codec.parameters()])
    return outcome


@pytest.fixture(scope="module")
def usual(outcome, tmp_path_factory):
    return outcome(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_matters(outcome, usual, name, tmp_path):
    assert not torch.equal(usual, outcome(tmp_path, **{name: CHANGES[name]}))


def test_every_setting_is_tested():
    others = {"freeze_encoder", "checkpoint_every", "sample_every", "adversarial_form"}
    assert {f.name for f in fields(CodecTraining)} - set(CHANGES) == others


@pytest.mark.parametrize(("form", "loss"), [("audiocraft", -5.0), ("paper", 0.0)])
def test_the_form_of_the_adversarial_loss_reaches_the_adversary(form, loss):
    "With verdicts of 5 the two forms differ; near 0, as in a short training, their gradients are the same"
    adversary = CodecTrainer(Codec(Codec.preset("tiny")), CodecTraining(discriminator="tiny", adversarial_form=form)).adversary
    for disc in adversary.model.discriminators:
        torch.nn.utils.parametrize.remove_parametrizations(disc.last, "weight")
        torch.nn.init.zeros_(disc.last.weight), torch.nn.init.constant_(disc.last.bias, 5.0)
    audio = 0.1 * torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(0))
    assert adversary.judge(audio, audio.clone().requires_grad_())[0]["adversarial"].item() == pytest.approx(loss)


def test_samples_are_written_of_held_out_sounds(tmp_path):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for i, clip in enumerate(list(ToyWorld(8, seed=0, duration=0.5))):
        save_audio(sounds / f"{i}.wav", clip.audio, 16_000)
    fit_codec_from_config(write(tmp_path, {"folder": str(sounds)}, n_steps=4, sample_every=2), tmp_path / "run", False)
    assert sorted(p.name for p in (tmp_path / "run").glob("*.wav")) == [
        "codes_step000002.wav", "codes_step000004.wav", "sample_0_step000002.wav", "sample_0_step000004.wav"]


def test_a_folder_of_one_file_is_enough(tmp_path):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    save_audio(sounds / "only.wav", ToyWorld(1, seed=0, duration=0.5)[0].audio, 16_000)
    fit_codec_from_config(write(tmp_path, {"folder": str(sounds)}, n_steps=2, sample_every=1), tmp_path / "run", False)
    assert len(read_log(tmp_path / "run")) == 2


def test_a_folder_with_nothing_to_train_on_names_every_file(tmp_path):
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    save_audio(sounds / "silent.wav", torch.zeros(1, 8000), 16_000)
    (sounds / "broken.wav").write_bytes(b"RIFF1234")
    process = train(tmp_path, write(tmp_path, {"folder": str(sounds)}))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and len(err.splitlines()) == 1
    assert "silent.wav (silent)" in err and "broken.wav (unreadable)" in err
    assert not (tmp_path / "run").exists()


def test_tensorboard_files_of_a_resumed_run_have_every_step_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for n_steps in (3, 6):
        fit_codec_from_config(write(tmp_path, n_steps=n_steps), tmp_path / "run", False, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(6))
    assert math.isclose(events.Scalars("loss")[-1].value, read_log(tmp_path / "run")[-1]["loss"], rel_tol=1e-5)


def test_a_checkpoint_of_another_geometry_is_refused(tmp_path):
    fit_codec_from_config(write(tmp_path, n_steps=2), tmp_path / "run", False)
    with pytest.raises(ValueError, match="another geometry"):
        load_checkpoint(tmp_path / "run" / "checkpoint.pt", {"codec": Codec(replace(Codec.preset("tiny"), card=64))})


def test_the_committed_configurations_are_valid():
    first, second = (read_config(CONFIGS / name, {"codec", "data", "training"}) for name in ("pocket_codec.json", "pocket_codec_adversarial.json"))
    assert first["codec"] == second["codec"] and first["data"] == second["data"]
    a, b = (read_settings(CodecTraining, c["training"], "training") for c in (first, second))
    assert b.freeze_encoder and b.discriminator and not a.freeze_encoder
    torch.manual_seed(0)
    assert torch.isfinite(torch.tensor(CodecTrainer(Codec(Codec.preset("tiny")), replace(b, discriminator="tiny")).step(
        0, codec_batch([list(ToyWorld(2, seed=0, duration=0.6))], 2, 8000, torch.Generator().manual_seed(0)))["loss"]))


def test_a_run_that_is_done_is_not_done_again(tmp_path):
    steps = []
    for _ in range(2):
        run_steps(lambda n: steps.append(n) or {"loss": 1.0}, {}, 3, tmp_path / "run", progress=False)
    assert steps == [0, 1, 2]
