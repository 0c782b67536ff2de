"What training promises: it survives kills, full disks and Ctrl-C, several processes equal one, bad input costs nothing."
import copy
import json
import math
import random
import resource
import shutil
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
from audiogen_nb.data.clips import Clip
from audiogen_nb.data.toy_kinds import ToyWorld
from audiogen_nb.engine.chunks import lookahead
from audiogen_nb.train.acceleration import Machine
from audiogen_nb.train.loop import load_checkpoint, read_log, run_steps
from audiogen_nb.train.runs import read_config
from audiogen_nb.train.runs import read_settings
from audiogen_nb.train.codec_step import Adversary, codec_batch
from audiogen_nb.train.codec import CodecTrainer, CodecTraining, diagnose, fit_codec_from_config
from audiogen_nb.sound import save_audio
from audiogen_nb.train.shards import OnlineTokens, TokenShards
from audiogen_nb.train.tokens import TokenCache, cached_tokens, check_captions, drawn_crops, make_tokens

CONFIGS = Path(__file__).parent.parent / "audiogen_nb" / "configs"
TOY = {"recordings": False, "toy": 10, "toy_seconds": 0.6}
EVERYTHING = {"n_steps": 40, "batch_size": 2, "seconds": 0.2, "warmup": 3, "warmup_quantizer": 4, "average": 0.9,
              "discriminator": "tiny", "start_discriminator": 8, "balance": True, "quantizer_dropout": 0.5, "checkpoint_every": 2}
PROGRAM = [sys.executable, "-c", "import sys; from audiogen_nb.cli import main; sys.exit(main())"]


def write(folder, data=TOY, codec="tiny", **training):
    "A configuration file"
    path = folder / "config.json"
    path.write_text(json.dumps({"codec": codec, "data": data, "training": {**EVERYTHING, **training}}), encoding="utf-8")
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
                      "fit_codec_from_config(*sys.argv[1:3], False, start_from=sys.argv[3] if len(sys.argv) > 3 else None)", encoding="utf-8")
    more = []
    if settings:
        fit_codec_from_config(write(tmp_path, n_steps=6), tmp_path / "first", False)
        more = [str(tmp_path / "first")]
    config = write(tmp_path, batch_size=4, n_steps=8, quantizer_dropout=0.0, start_discriminator=5,
                   learning_rate_discriminator=1e-4, **settings)
    fit_codec_from_config(config, tmp_path / "one", False, *more)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, str(script), str(config), str(tmp_path / "two"), *more], capture_output=True, encoding="utf-8")
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
                      "with processes():\n    own_part(torch.zeros(3, 1))", encoding="utf-8")
    done = subprocess.run([*launch, str(script)], capture_output=True, encoding="utf-8")
    assert done.returncode and "a batch of 3 cannot be shared by 2 processes" in done.stderr


def train(tmp_path, config, limit=None, **options):
    "The command in a process of its own, with a limit on the size of any file"
    def prepare():
        signal.signal(signal.SIGINT, signal.default_int_handler)             # a shell's background jobs ignore Ctrl-C
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return subprocess.Popen([*PROGRAM, "fit-codec", str(config), "--out", str(tmp_path / "run"), "--quiet"], preexec_fn=prepare,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", **options)


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


def test_a_ruined_gradient_of_the_discriminators_is_left_out(tmp_path, monkeypatch):
    "Their gradient becomes NaN in step 2, while every loss is still a number: no step is taken, the log says so, the run goes on"
    calls, judge = [], Adversary.judge

    def poisoned(self, *pair):
        verdict = judge(self, *pair)
        calls.append(1)
        if len(calls) == 3:
            next(self.model.parameters()).grad.fill_(math.nan)
        return verdict

    monkeypatch.setattr(Adversary, "judge", poisoned)
    fit_codec_from_config(write(tmp_path, n_steps=9, start_discriminator=0, checkpoint_every=1), tmp_path / "run", False)
    log = read_log(tmp_path / "run")
    assert [row["step"] for row in log if "skipped" in row] == [2] and len(log) == 9
    assert "gradient_discriminator" not in log[2] and all(math.isfinite(v) for row in log for v in row.values())
    assert all(v.isfinite().all() for v in state(tmp_path / "run")["discriminator"].values())


def test_too_many_ruined_gradients_end_the_run_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    calls, judge = [], Adversary.judge

    def poisoned(self, *pair):
        verdict = judge(self, *pair)
        calls.append(1)
        if len(calls) > 2:
            next(self.model.parameters()).grad.fill_(math.nan)
        return verdict

    monkeypatch.setattr(Adversary, "judge", poisoned)
    config = write(tmp_path, n_steps=30, start_discriminator=0, checkpoint_every=1)
    with pytest.raises(FloatingPointError, match="in 10 steps in a row, up to step 11; .* the checkpoint of step 2 is kept"):
        fit_codec_from_config(config, tmp_path / "run", False)
    monkeypatch.setattr(Adversary, "judge", judge)
    assert fit_codec_from_config(config, tmp_path / "run", False) and len(read_log(tmp_path / "run")) == 30     # calmer, it goes on


CHANGES = {"learning_rate": 1e-4, "schedule": "constant", "warmup": 0, "warmup_quantizer": 0, "quantizer_dropout": 1.0,
           "clip": 1e-3, "average": 0.1, "weight_time": 1.0, "weight_mel": 3.0, "weight_commitment": 5.0, "discriminator": "",
           "start_discriminator": 100, "learning_rate_discriminator": 1e-2, "weight_adversarial": 1.0, "weight_features": 1.0,
           "mel": "paper", "one_level": False, "start_codec": 3, "schedule_discriminator": "constant", "balance": False, "batch_size": 3, "seconds": 0.25, "seed": 1, "n_steps": 5}


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
    others = {"freeze_encoder", "only_levels", "checkpoint_every", "keep_checkpoints", "sample_every", "adversarial_form"}
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
        fit_codec_from_config(write(tmp_path, n_steps=n_steps), tmp_path / "run", False, machine={"log_with": "tensorboard"})
    events = EventAccumulator(str(tmp_path / "run" / "audiogen_nb"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(6))
    assert math.isclose(events.Scalars("loss")[-1].value, read_log(tmp_path / "run")[-1]["loss"], rel_tol=1e-5)


def test_a_checkpoint_of_another_geometry_is_refused(tmp_path):
    fit_codec_from_config(write(tmp_path, n_steps=2), tmp_path / "run", False)
    with pytest.raises(ValueError, match="another geometry"):
        load_checkpoint(tmp_path / "run" / "checkpoint.pt", {"codec": Codec(replace(Codec.preset("tiny"), card=64))})


def test_the_committed_configurations_are_valid():
    from audiogen_nb.train.lm import LMTraining
    first, second = (read_config(CONFIGS / name, {"codec", "data", "training"}) for name in ("pocket_codec.json", "pocket_codec_adversarial.json"))
    assert first["codec"] == second["codec"] and first["data"] == second["data"]
    a, b = (read_settings(CodecTraining, c["training"], "training") for c in (first, second))
    assert b.freeze_encoder and b.discriminator and not a.freeze_encoder
    levels = read_config(CONFIGS / "pocket_codec_levels.json", {"codec", "data", "training"})
    assert read_settings(CodecTraining, levels["training"], "training").only_levels and levels["codec"]["n_q"] == 8
    lm = read_config(CONFIGS / "pocket_lm.json", {"lm", "data", "tokens", "training", "generation"}, {"machine"})
    assert read_settings(LMTraining, lm["training"], "training").n_steps == 11000 and lm["lm"]["n_q"] == levels["codec"]["n_q"]
    further = read_config(CONFIGS / "pocket_lm_listening.json", {"lm", "data", "tokens", "training", "generation"}, {"machine"})
    weights = read_settings(LMTraining, further["training"], "training").stream_weights
    assert further["lm"] == lm["lm"] and len(weights) == lm["lm"]["n_q"] and max(weights) == weights[0]
    assert read_settings(Machine, further["machine"], "machine").compile
    torch.manual_seed(0)
    assert torch.isfinite(torch.as_tensor(CodecTrainer(Codec(Codec.preset("tiny")), replace(b, discriminator="tiny")).step(
        0, codec_batch([list(ToyWorld(2, seed=0, duration=0.6))], 2, 8000, torch.Generator().manual_seed(0)))["loss"]))


def test_a_run_that_is_done_is_not_done_again(tmp_path):
    steps = []
    for _ in range(2):
        run_steps(lambda n: steps.append(n) or {"loss": 1.0}, {}, 3, tmp_path / "run", progress=False)
    assert steps == [0, 1, 2]


# Tokens, captions, recipes

@pytest.fixture(scope="module")
def tiny_codec():
    torch.manual_seed(0)
    return Codec(Codec.preset("tiny")).eval()


@pytest.fixture(scope="module")
def few():
    return list(ToyWorld(4, seed=0, duration=0.3))


USUAL = dict(n_items=4, seconds=0.2, mix_probability=0.5, seed=0, progress=False)


def other_codec(codec):
    "The same but for one weight"
    changed = copy.deepcopy(codec)
    next(changed.parameters()).data.view(-1)[0] += 1.0
    return changed


CAUSES = {
    "captions": lambda codec, clips: (codec, [(1.0, [replace(clips[0], captions=("new words",)), *clips[1:]])], {}),
    "sounds": lambda codec, clips: (codec, [(1.0, [replace(clips[0], audio=clips[0].audio * 0.5), *clips[1:]])], {}),
    "clips": lambda codec, clips: (codec, [(1.0, clips[:3])], {}), "weights": lambda codec, clips: (codec, [(2.0, clips)], {}),
    "codec": lambda codec, clips: (other_codec(codec), [(1.0, clips)], {}), "seed": lambda codec, clips: (codec, [(1.0, clips)], {"seed": 1}),
    "seconds": lambda codec, clips: (codec, [(1.0, clips)], {"seconds": 0.3}), "n_items": lambda codec, clips: (codec, [(1.0, clips)], {"n_items": 5}),
    "mix_probability": lambda codec, clips: (codec, [(1.0, clips)], {"mix_probability": 0.0}),
}


def same_items(a, b):
    "Do two sets of tokens hold the same?"
    return len(a) == len(b) and all(torch.equal(a[i][0], b[i][0]) and a[i][1] == b[i][1] == b.captions_of(i) for i in range(len(a)))


@pytest.mark.parametrize("cause", CAUSES)
def test_tokens_are_made_again_when_their_inputs_change(tiny_codec, few, tmp_path, capsys, monkeypatch, cause):
    cached_tokens(tmp_path / "t", tiny_codec, [(1.0, few)], **USUAL)
    codec, groups, settings = CAUSES[cause](tiny_codec, few)
    again, fresh = cached_tokens(tmp_path / "t", codec, groups, **USUAL | settings), make_tokens(codec, groups, **USUAL | settings)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and f"{cause}" in said and "changed: encoding again" in said
    assert same_items(again, fresh)
    monkeypatch.setattr("audiogen_nb.train.shards.encode_items", None)                     # unchanged: not called
    kept = cached_tokens(tmp_path / "t", codec, groups, **USUAL | settings)
    assert same_items(kept, fresh) and not capsys.readouterr().err
    with pytest.raises(ValueError, match=f"{cause}.* changed.*another folder"):
        cached_tokens(tmp_path / "t", tiny_codec, [(1.0, few)], **USUAL, replace=False)
    assert same_items(TokenShards(tmp_path / "t"), fresh)


SHARD = "shard-00000-of-00001.safetensors"


def edit_captions(folder):
    "Captions changed in the file, with its length kept"
    data = (folder / SHARD).read_bytes()
    assert data.count(b'["') >= 4
    (folder / SHARD).write_bytes(data.replace(b'["a', b'["b').replace(b'["t', b'["s'))


DAMAGE = {
    "codes cut": lambda folder: (folder / SHARD).write_bytes((folder / SHARD).read_bytes()[:-7]),
    "no shard": lambda folder: (folder / SHARD).unlink(), "empty": lambda folder: (folder / SHARD).write_bytes(b""),
    "captions edited": edit_captions,
    "one bit": lambda folder: (folder / SHARD).write_bytes((b := (folder / SHARD).read_bytes())[:-1] + bytes([b[-1] ^ 1])),
    "index cut": lambda folder: (folder / "index.json").write_text("{", encoding="utf-8"),
    "index of another kind": lambda folder: (folder / "index.json").write_text('{"made_from": []}', encoding="utf-8"),
    "no index": lambda folder: (folder / "index.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tokens_are_made_again(tiny_codec, few, tmp_path, damage):
    cached_tokens(tmp_path / "t", tiny_codec, [(1.0, few)], **USUAL)
    first = make_tokens(tiny_codec, [(1.0, few)], **USUAL)
    DAMAGE[damage](tmp_path / "t")
    with pytest.raises((ValueError, FileNotFoundError), match="again"):
        TokenShards(tmp_path / "t")[0]
    again = cached_tokens(tmp_path / "t", tiny_codec, [(1.0, few)], **USUAL)
    assert same_items(again, first) and same_items(again, make_tokens(tiny_codec, [(1.0, few)], **USUAL))
    assert same_items(TokenShards(tmp_path / "t"), first)


@pytest.mark.parametrize("settings, message", [
    (dict(n_items=0), "n_items"), (dict(seconds=math.nan), "seconds"), (dict(seconds=0), "seconds"), (dict(mix_probability=2.0), "mix_probability")])
def test_drawing_is_checked(tiny_codec, few, settings, message):
    with pytest.raises(ValueError, match=message):
        make_tokens(tiny_codec, [(1.0, few)], **USUAL | settings)
    for groups in ([], [(0.0, few)], [(1.0, [])]):
        with pytest.raises(ValueError, match="nothing to draw"):
            make_tokens(tiny_codec, groups, **USUAL)


@pytest.mark.parametrize("captions, fault", [
    (("a dog", "犬"), "'犬' holds no word"), (("",), "empty"), ((), "no caption"), (("dog " * 99,), "at most 64"), ("dog", "list of str"),
    (("\ud800 dog",), "surrogates"), ((3,), "list of str"), ((["a"],), "list of str")])
def test_captions_are_checked_by_name(tiny, few, captions, fault):
    clips = [few[0], replace(few[1], captions=captions, name="b.wav"), replace(few[2], captions=captions, name="c.wav")]
    with pytest.raises(ValueError, match=f"2 captions cannot be read .*b.wav: .*{fault}.*; c.wav: "):
        check_captions(clips, tiny.text_encoder)
    check_captions(few, tiny.text_encoder)
    tokens = TokenCache(torch.zeros(2, 2, 5, dtype=torch.int16), [["rain"], captions])
    with pytest.raises(ValueError, match=f"item 1: .*{fault}"):
        check_captions(tokens, tiny.text_encoder)


def sounds_with_texts(folder, text="a dog barks"):
    folder.mkdir()
    for i, clip in enumerate(ToyWorld(3, seed=0, duration=0.3)):
        save_audio(folder / f"{i}.wav", clip.audio, 16_000)
        (folder / f"{i}.txt").write_text(text, encoding="utf-8")
    return folder


def write_lm(folder, sounds, n_steps, **tokens):
    config = {"lm": "tiny", "data": {"folder": str(sounds)}, "generation": {"duration": 0.2, "max_duration": 0.2},
              "tokens": {"weights": [1.0], "n_items": 4, "n_held_out": 2, "seconds": 0.2, "mix_probability": 0.0, "seed": 0, **tokens},
              "training": {"n_steps": n_steps, "batch_size": 2, "checkpoint_every": 1}}
    (folder / "lm.json").write_text("\ufeff" + json.dumps(config), encoding="utf-8")       # a byte-order mark is no fault
    return folder / "lm.json"


def test_a_run_goes_on_with_mended_captions_and_its_recipe_notes_both(tmp_path, capsys):
    from audiogen_nb.train.lm import fit_lm_from_config
    from audiogen_nb.train.runs import read_recipe
    sounds = sounds_with_texts(tmp_path / "sounds")
    fit_codec_from_config(write(tmp_path, {"folder": str(sounds)}, n_steps=2, start_discriminator=9), tmp_path / "codec", False)
    (sounds / "1.txt").write_text("犬", encoding="utf-8")
    with pytest.raises(ValueError, match="1.wav: '犬' holds no word"):
        fit_lm_from_config(write_lm(tmp_path, sounds, 1), tmp_path / "codec", tmp_path / "run", False)
    assert not (tmp_path / "run").exists(), "nothing is begun"
    (sounds / "1.txt").write_text("a cat", encoding="utf-8")
    fit_lm_from_config(write_lm(tmp_path, sounds, 1), tmp_path / "codec", tmp_path / "run", False)
    shutil.rmtree(tmp_path / "run" / "model")
    (sounds / "1.txt").write_text("a bird", encoding="utf-8")
    capsys.readouterr()
    model = fit_lm_from_config(write_lm(tmp_path, sounds, 2), tmp_path / "codec", tmp_path / "run", False)
    assert capsys.readouterr().err.count("captions changed: encoding again") == 2
    first, second = read_recipe(tmp_path / "run")
    for part in ("train", "held_out"):
        a, b = first["made_from"][part], second["made_from"][part]
        assert a["sounds"] == b["sounds"] and a["codec"] == b["codec"] and a["captions"] != b["captions"]
    made = [stage["made_from"] for stage in model.provenance["language_model"]]
    assert len(read_log(tmp_path / "run")) == 2 and made == [first["made_from"], second["made_from"]]
    tokens = TokenShards(tmp_path / "run" / "train")
    assert not any("a cat" in tokens.captions_of(i) for i in range(len(tokens)))
    for changes, message in (({"seed": 1, "sed": 2}, "did you mean 'seed'"), ({"weights": [1.0, 2.0]}, "one weight for each")):
        with pytest.raises(ValueError, match=message):
            fit_lm_from_config(write_lm(tmp_path, sounds, 2, **changes), tmp_path / "codec", tmp_path / "other", False)
    save_audio(sounds / "0.wav", ToyWorld(9, seed=5, duration=0.3)[8].audio, 16_000, overwrite=True)
    fit_codec_from_config(write(tmp_path, {"folder": str(sounds)}, n_steps=2, start_discriminator=9), tmp_path / "codec", False)
    first, second = read_recipe(tmp_path / "codec")
    assert first["made_from"]["sounds"] != second["made_from"]["sounds"] and first["training"] == second["training"]


def test_settings_of_any_library_are_numbers(tmp_path):
    import numpy as np
    from audiogen_nb.train.lm import LMTraining
    settings = LMTraining(n_steps=np.int64(3), learning_rate=np.float32(0.5), seed=torch.tensor(4))
    assert json.loads(json.dumps([settings.n_steps, settings.learning_rate, settings.seed])) == [3, 0.5, 4]
    for wrong in (dict(n_steps=2.5), dict(learning_rate="1")):
        with pytest.raises(TypeError):
            LMTraining(**wrong)
    with pytest.raises(ValueError, match="finite"):
        read_settings(LMTraining, {"learning_rate": math.nan}, "training")


def test_the_kept_listener_knows_its_sounds(few, tmp_path, monkeypatch):
    from audiogen_nb.judge.listener import ListenerTraining, trained_listener
    monkeypatch.setenv("AUDIOGEN_NB_CACHE", str(tmp_path))
    kinds, quick = [few[0].kind], ListenerTraining(n_steps=1, batch_size=2, n_each=2, seconds=0.4, width=4)
    train_it = lambda clips: trained_listener([(1.0, clips)], kinds, quick, progress=False).state_dict()
    first = train_it(few[:1])
    assert_same(train_it(few[:1]), first)
    folder, = tmp_path.glob("listener-*")
    (folder / "listener.safetensors").write_bytes(b"cut")
    assert_same(train_it(few[:1]), first)                                     # damaged: trained again, the same
    train_it([replace(few[0], audio=few[0].audio.flip(-1))])                  # another sound under the same name
    assert len(list(tmp_path.glob("listener-*"))) == 2


def test_kept_states_know_the_tokenizer_and_the_layers(tiny, tmp_path):
    from types import SimpleNamespace
    from tokenizers import normalizers
    from audiogen_nb.text.captions import CaptionShards
    from audiogen_nb.text.encoders import word_pieces
    names = {CaptionShards(tiny.text_encoder, tmp_path).fingerprint()}
    def other(lowercase=True, heads=4):
        encoder = copy.copy(tiny.text_encoder)
        encoder.tokenizer = word_pieces(encoder.vocab)
        encoder.tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        encoder.__dict__["model"] = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: {"heads": heads, "_name_or_path": str(heads)}))
        return encoder.fingerprint()
    names |= {other(), other(False), other(heads=2)}
    assert len(names) == 4 and other() == other()


@pytest.mark.parametrize("levels", [0, 24])
def test_the_codes_of_a_crop_know_that_the_sound_goes_on(levels):
    "The last codes are those of the uncut sound, in memory and on the fly"
    torch.manual_seed(0)
    config = replace(Codec.preset("tiny"), level_bands=levels, level_streams=int(levels > 0), n_q=3)
    codec = Codec(config).eval()
    after = lookahead(codec.encoder, codec.hop_length)
    rate, n = codec.sample_rate, codec.sample_rate // 2
    sound = 0.1 * torch.randn(1, n + after, generator=torch.Generator().manual_seed(1))
    clips = [Clip(sound, rate, ("a hiss",), "hiss", name="hiss")]
    tokens = make_tokens(codec, [(1.0, clips)], 2, 0.5, 0.0, progress=False)
    crops = drawn_crops([(1.0, clips)], 0.5, 0.0, 0, codec)
    n_frames = -(-n // codec.hop_length)
    assert tokens.codes.shape[-1] == n_frames == crops.n_frames and after >= codec.hop_length
    item = crops[0][0][None]                                       # faded in at its beginning
    longer = torch.cat([item, 0.1 * torch.randn(1, 1, n)], -1)
    assert torch.equal(tokens.codes[:1].long(), codec.encode(longer)[..., :n_frames])
    assert not torch.equal(tokens.codes[:1].long(), codec.encode(item[..., :n]))
    assert torch.equal(OnlineTokens(codec, (), crops.n_frames).encode(item), tokens.codes[:1].long())


def test_tokens_know_how_they_were_balanced(tmp_path):
    torch.manual_seed(0)
    codec, world = Codec(Codec.preset("tiny")).eval(), list(ToyWorld(6, seed=0, duration=0.3))
    plain, even = (cached_tokens(tmp_path / str(b), codec, [(1.0, world)], 4, 0.2, balance=b, progress=False) for b in (0.0, 1.0))
    assert plain.made_from["balance"] == 0.0 and even.made_from["balance"] == 1.0
    with pytest.raises(ValueError, match="balance changed"):
        cached_tokens(tmp_path / "0.0", codec, [(1.0, world)], 4, 0.2, balance=1.0, progress=False, replace=False)
