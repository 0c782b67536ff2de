"""Training at every size: the paper's recipes with tiny shapes from end to end, by one process and by two, killed, resumed, extended."""
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audiogen_nb import AudioGen, AudioLM, Codec
from audiogen_nb.data.datasets import DATASETS
from audiogen_nb.data.toy_kinds import ToyWorld
from audiogen_nb.engine.processes import rank
from audiogen_nb.lm.transformer import LMConfig
from audiogen_nb.sampling.request import Generation
from audiogen_nb.sound import save_audio
from audiogen_nb.train.acceleration import Alone, Machine
from audiogen_nb.train.codec import CodecTrainer, CodecTraining, fit_codec
from audiogen_nb.train.lm import LMLoss, LMTrainer, LMTraining, fit_lm
from audiogen_nb.train.loop import read_log
from audiogen_nb.train.parts import open_codec, read_shape
from audiogen_nb.train.runs import read_recipe, read_settings
from audiogen_nb.train.tokens import TokenCache

CONFIGS = Path(__file__).parent.parent / "audiogen_nb" / "configs"
MAIN = "import sys; from audiogen_nb.cli import main; sys.exit(main())"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]


def command(folder, launcher, *args, **options):
    "`audiogen-nb ARGS`, by itself or in two processes"
    script = folder / "audiogen_nb_main.py"
    script.write_text(MAIN, encoding="utf-8")
    launched = [*launcher, str(script)] if launcher else [sys.executable, str(script)]
    return subprocess.Popen([*launched, *map(str, args)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            encoding="utf-8", start_new_session=True, **options)


def done(process, timeout=240):
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == 0, f"{out[-1500:]}\n{err[-4000:]}"
    return out, err


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "A folder with an ESC-50 in miniature, a T5 in miniature, and the configurations of a codec and a language model"
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    folder = tmp_path_factory.mktemp("scale")
    (folder / "esc50" / "meta").mkdir(parents=True), (folder / "esc50" / "audio").mkdir()
    with open(folder / "esc50" / "meta" / "esc50.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow("filename,fold,target,category,esc10,src_file,take".split(","))
        for i, clip in enumerate(ToyWorld(10, seed=0, duration=0.6)):
            name = f"{i % 5 + 1}-{1000 + i}-A-{i}.wav"
            save_audio(folder / "esc50" / "audio" / name, clip.audio, clip.sample_rate)
            table.writerow([name, i % 5 + 1, i, ("dog", "rain", "sea_waves")[i % 3], "True", 1000 + i, "A"])
    torch.manual_seed(0)
    words = {word: i for i, word in enumerate("<pad> </s> <unk> dog rain sea waves and".split())}
    tokenizer = Tokenizer(models.WordLevel(words, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    t5 = transformers.T5Config(vocab_size=len(words), d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4)
    transformers.T5EncoderModel(t5).save_pretrained(folder / "t5")
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder / "t5")
    data = {"sets": [{"name": "esc50", "root": str(folder / "esc50"), "split": "train/1", "held_out": "test/1"}]}
    codec = {"preset": "paper_x32", "n_filters": 2, "dimension": 8, "card": 32, "lstm_layers": 1}
    write(folder / "codec.json", {"codec": codec, "data": data, "training": {
        "n_steps": 6, "batch_size": 4, "seconds": 0.2, "warmup_quantizer": 1, "checkpoint_every": 2, "quantizer_dropout": 0.0}})
    write(folder / "lm.json", {
        "lm": {"preset": "paper_base", "dim": 32, "n_layers": 2, "n_heads": 2, "card": 32, "text_dim": 16, "max_frames": 250},
        "codec": str(folder / "codec"), "text": {"name": str(folder / "t5"), "normalise": False}, "data": data,
        "tokens": {"n_items": 16, "n_held_out": 4, "seconds": 0.3, "mix_probability": 0.5, "seed": 0},
        "training": {"n_steps": 12, "batch_size": 4, "warmup": 2, "schedule": "inverse_sqrt", "hide_words": 0.0, "text_noise": 0.0,
                     "checkpoint_every": 2, "sample_every": 6},
        "generation": {"duration": 0.3, "max_duration": 0.3, "top_k": 0, "top_p": 0.25}})
    return folder


@pytest.fixture(scope="module")
def codec_run(world):
    "The codec's run, by two processes under torchrun"
    done(command(world, TORCHRUN, "fit-codec", world / "codec.json", "--out", world / "codec", "--quiet"))
    return world / "codec"


@pytest.fixture(scope="module")
def one(world, codec_run):
    "The language model's run in one command, by one process: data set, codec, T5, tokens, training, model"
    done(command(world, None, "fit-lm", world / "lm.json", "--out", world / "one", "--quiet"))
    return world / "one"


def state(folder, name="checkpoint.pt"):
    return torch.load(folder / name, weights_only=True)


def apart(a, b):
    "Largest difference of the weights of two runs"
    return max((a["lm"][name] - b["lm"][name]).abs().max().item() for name in a["lm"])


def test_a_paper_shaped_model_in_one_command(one, tmp_path):
    model = AudioGen.from_pretrained(one / "model")
    assert (model.lm.config.pattern, model.codec.n_q, model.text_encoder.width) == ("parallel", 1, 16)
    assert len(read_log(one)) == 12 and [row["step"] for row in read_log(one) if "held_out" in row] == [5, 11]
    out, _ = done(command(tmp_path, None, "generate", "dog", "--model", one / "model", "--out", tmp_path / "dog.wav", "--seed", "0"))
    assert (tmp_path / "dog.wav").stat().st_size > 1000
    card = (one / "model" / "README.md").read_text(encoding="utf-8")
    assert "ESC-50" in card and "CC BY-NC 3.0" in card, "the card names the data set and its licence"


def test_two_codec_processes_wrote_one_run(codec_run):
    assert len(read_log(codec_run)) == 6 and state(codec_run)["step"] == 6 and not list(codec_run.glob(".*"))
    assert open_codec(codec_run).config.n_filters == 2


def test_tokens_by_two_training_by_two_killed_resumed(world, codec_run, one):
    "What one process made, made by two: one of them killed in the middle, the other ended by the launcher, and gone on with"
    run = world / "two"
    done(command(world, TORCHRUN, "tokens", world / "lm.json", "--out", run, "--shard-size", 4, "--quiet"))
    for name in ("train", "held_out"):
        index, alone = (json.loads((place / name / "index.json").read_text(encoding="utf-8")) for place in (run, one))
        assert index["made_from"] == alone["made_from"] and index["n_items"] == alone["n_items"]
    stamps = {path: path.stat().st_mtime_ns for path in run.glob("*/shard-*")}
    process = command(world, ACCELERATE, "fit-lm", world / "lm.json", "--out", run, "--quiet",
                      env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and len(read_log(run)) < 5:
        time.sleep(0.01)
    victim = children(process.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode, "a killed process ends the run"
    deadline = time.monotonic() + 20
    while running(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(process.pid), "no process is left"
    assert 2 <= state(run)["step"] < 12 and not (run / "model").exists()
    done(command(world, ACCELERATE, "fit-lm", world / "lm.json", "--out", run, "--quiet"))
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "tokens were not encoded again"
    assert [row["step"] for row in read_log(run)] == list(range(12)) and not list(run.glob(".*"))
    # Gradients are sums in another order. Adam divides each by its own size: near zero, rounding moves a weight by a part of a step
    # of 1e-3, twelve times; all of them together differ by far less.
    a, b = state(one), state(run)
    assert apart(a, b) < 2e-3
    assert torch.cat([(a["lm"][name] - b["lm"][name]).flatten() for name in a["lm"]]).square().mean().sqrt() < 2e-5
    for x, y in zip(read_log(one), read_log(run), strict=True):
        assert x.keys() == y.keys() and all(abs(x[k] - y[k]) <= 1e-3 * (1 + abs(x[k])) for k in x), (x, y)
    assert AudioGen.from_pretrained(run / "model").generate("rain", seed=0).shape == (1, 1, 4800)


def children(pid):
    "Processes that train: grandchildren of a launcher's session with the script's name"
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line, stat = (path / "cmdline").read_text(encoding="utf-8"), (path / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(stat[3]) == pid and "audiogen_nb_main.py" in line and "launch" not in line and "distributed.run" not in line:
            found.append(int(path.name))
    return sorted(found)


def running(session):
    return children(session)


def test_a_finished_run_goes_on_with_more_steps_and_refuses_other_parts(world, one, tmp_path):
    config = json.loads((world / "lm.json").read_text(encoding="utf-8"))
    longer = write(tmp_path / "longer.json", {**config, "training": {**config["training"], "n_steps": 14, "learning_rate": 1e-4}})
    other = {name: write(tmp_path / f"{name}.json", {**config, **change}) for name, change in {
        "lm": {"lm": {**config["lm"], "n_layers": 1}}, "text": {"text": {"name": str(world / "t5"), "normalise": False, "max_length": 99}}}.items()}
    for name, path in other.items():
        process = command(tmp_path, None, "fit-lm", path, "--out", one, "--quiet")
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2 and f"was begun with {name} = " in err.splitlines()[-1] and "Traceback" not in err, err
    shutil.copytree(world / "codec", tmp_path / "codec")
    changed = state(tmp_path / "codec")
    next(value for name, value in changed["codec"].items() if name.endswith("weight")).view(-1)[0] += 1
    torch.save(changed, tmp_path / "codec" / "checkpoint.pt")
    process = command(tmp_path, None, "fit-lm", world / "lm.json", "--codec-run", tmp_path / "codec", "--out", one, "--quiet")
    assert "was begun with codec_weights = " in process.communicate(timeout=120)[1] and process.returncode == 2
    before = state(one)["lm"]["heads.weight"]
    done(command(tmp_path, None, "fit-lm", longer, "--out", one, "--quiet"))
    assert len(read_log(one)) == 14 and state(one)["step"] == 14
    assert not torch.equal(state(one)["lm"]["heads.weight"], before)
    assert [stage["training"]["n_steps"] for stage in read_recipe(one)] == [12, 14]
    assert AudioGen.from_pretrained(one / "model")


def test_a_model_divided_over_two_processes(world, codec_run, one, tmp_path):
    "FSDP with recomputed activations and averaged weights, cut in two, is the whole model's training; its checkpoint fits the whole model"
    config = json.loads((world / "lm.json").read_text(encoding="utf-8"))
    config["training"].update(average=0.5)
    logs = {}
    for name, launcher, machine in (("whole", None, {}), ("divided", TORCHRUN, {"shard": True, "recompute": True})):
        for n_steps in (5, 8):                                    # stopped after five
            config["training"].update(n_steps=n_steps)
            path = write(tmp_path / f"{name}.json", {**config, "machine": machine})
            done(command(tmp_path, launcher, "fit-lm", path, "--out", tmp_path / name, "--quiet"))
        logs[name] = read_log(tmp_path / name)
    whole, divided = state(tmp_path / "whole"), state(tmp_path / "divided")
    assert apart(whole, divided) < 2e-3 and divided["step"] == 8
    assert {k: v.shape for k, v in whole["trained"].items()} == {k: v.shape for k, v in divided["trained"].items()}
    assert not torch.equal(divided["trained"]["heads.weight"], divided["lm"]["heads.weight"]), "the averaged weights are others"
    for x, y in zip(logs["whole"], logs["divided"], strict=True):
        assert all(abs(x[k] - y[k]) <= 1e-3 * (1 + abs(x[k])) for k in x if k != "skipped"), (x, y)
    assert AudioGen.from_pretrained(tmp_path / "divided" / "model").generate("rain", seed=0).shape == (1, 1, 4800)


def test_encoding_while_training(world, codec_run, tmp_path):
    "Two runs with fresh mixes, one reading ahead with two workers, are the same; no item comes twice"
    config = json.loads((world / "lm.json").read_text(encoding="utf-8"))
    config["tokens"] = {"online": True, "n_held_out": 2, "seconds": 0.3, "mix_probability": 0.5, "seed": 0}
    config["training"].update(n_steps=4, sample_every=2)
    logs = []
    for workers in (0, 2):
        path = write(tmp_path / "online.json", {**config, "machine": {"workers": workers}})
        done(command(tmp_path, None, "fit-lm", path, "--out", tmp_path / f"run{workers}", "--quiet"))
        logs.append(read_log(tmp_path / f"run{workers}"))
        assert not (tmp_path / f"run{workers}" / "train").exists(), "nothing is stored"
    assert logs[0] == logs[1] and len(logs[0]) == 4


def test_crops_become_the_codec_s_codes():
    from audiogen_nb.data.toy_kinds import toy_clip
    from audiogen_nb.engine.chunks import StreamingCodec
    from audiogen_nb.hub import POCKET
    from audiogen_nb.text.hf import load_text_encoder
    from audiogen_nb.train.lm import LMBatches, LMTraining
    from audiogen_nb.train.tokens import drawn_crops
    torch.manual_seed(0)
    codec = Codec(Codec.preset("tiny")).eval()
    codec.quantizer.start_from(codec.encoder(0.1 * torch.randn(1, 1, 48_000)).detach().transpose(1, 2).flatten(0, 1))
    crops = drawn_crops([(1.0, [toy_clip(kind, 0, 1.0) for kind in ("dog", "bell", "rain")])], 0.4, 0.5, 0, codec)
    batches = LMBatches(crops, load_text_encoder(POCKET / "text"), LMTraining(batch_size=4), torch.device("cpu"), codec=codec)
    for step in (0, 3):
        codes = batches.of(step)[0]
        audio = torch.stack([crops[i][0] for i in range(4 * step, 4 * step + 4)])
        assert codes.shape == (4, codec.n_q, crops.n_frames) and len(codes.unique()) > 3
        assert torch.equal(codes, StreamingCodec(codec).encode(audio)[..., :crops.n_frames])


@pytest.mark.parametrize("change, message", [
    ({"lm": {"preset": "paper_base"}}, r"lm.card is 2048, the codec has 32 codes; lm.text_dim is 768"),
    ({"codec": "nowhere"}, "no model 'nowhere'"),
    ({"text": "nowhere/at-all"}, "cannot load the text encoder"),
    ({"machine": {"device": "cuda:99"}}, "cuda:99"), ({"machine": {"acumulate": 2}}, "did you mean 'accumulate'"),
    ({"machine": {"accumulate": 3}}, "in 3 equal parts"), ({"machine": {"shard": True}}, "several processes, and there is one"),
    ({"data": {"sets": [{"name": "esc51", "root": ".", "split": "train/1"}]}}, "esc"),
    ({"data": {"sets": [{"name": "esc50", "root": ".", "splits": "train/1"}]}}, "did you mean 'split'"),
    ({"training": {"n_steps": 5, "result": "first"}}, "result 'last' or 'best'")])
def test_what_cannot_work_is_said_before_anything_is_begun(world, codec_run, tmp_path, monkeypatch, change, message):
    from audiogen_nb.cli import main
    import contextlib
    import io
    import re
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = {**json.loads((world / "lm.json").read_text(encoding="utf-8")), **change}
    with contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(["fit-lm", str(write(tmp_path / "c.json", config)), "--out", str(tmp_path / "run"), "--quiet"]) == 2
    assert re.search(message, err.getvalue().splitlines()[-1]) and "Traceback" not in err.getvalue(), err.getvalue()
    assert not (tmp_path / "run" / "checkpoint.pt").exists() and not (tmp_path / "run" / "train").exists()


# Without a launcher

def tokens_of(c, n=12, frames=9):
    g = torch.Generator().manual_seed(1)
    return TokenCache(torch.randint(c.card, (n, c.n_q, frames), generator=g).short(), [["a dog barks"], ["rain"], ["a bell rings"]] * (n // 3))


@pytest.fixture(scope="module")
def words():
    from audiogen_nb.train.parts import open_text_encoder
    return open_text_encoder()


def trained(folder, words, machine=Machine(), preset="tiny", **settings):
    torch.manual_seed(0)
    lm = AudioLM(AudioLM.preset(preset))
    usual = dict(n_steps=6, batch_size=4, warmup=2, learning_rate=1e-2, checkpoint_every=3, sample_every=3)
    log = fit_lm(lm, tokens_of(lm.config), words, LMTraining(**{**usual, **settings}), folder, tokens_of(lm.config, 6), progress=False,
                 machine=machine)
    return torch.cat([p.detach().flatten() for p in lm.parameters()]), log


@pytest.mark.parametrize("machine", [Machine(accumulate=2), Machine(accumulate=4, recompute=True), Machine(recompute=True),
                                     Machine(log_every=4), Machine(workers=2)], ids=repr)
def test_the_machine_changes_nothing_but_rounding(machine, words, tmp_path):
    usual, log = trained(tmp_path / "usual", words)
    other, other_log = trained(tmp_path / "other", words, machine)
    assert (usual - other).square().mean().sqrt() < 2e-4 and [r.keys() for r in log] == [r.keys() for r in other_log]
    for a, b in zip(log, other_log):
        assert abs(a["loss"] - b["loss"]) < 2e-3
    if machine.log_every > 1 or machine.workers:
        assert torch.equal(usual, other) and log == other_log


def test_bfloat16_trains_nearly_as_float32(words, tmp_path):
    _, exact = trained(tmp_path / "exact", words, n_steps=20)
    _, rough = trained(tmp_path / "rough", words, Machine(precision="bfloat16"), n_steps=20)
    assert exact != rough and abs(exact[-1]["loss"] - rough[-1]["loss"]) < 0.1 * exact[-1]["loss"]


@pytest.mark.parametrize("name, value", [("average", 0.5), ("schedule", "constant"), ("clip", 1e-3), ("weight_decay", 0.9), ("warmup", 5),
                                         ("drop_text", 1.0), ("hide_words", 0.9), ("text_noise", 5.0), ("seed", 1), ("batch_size", 2),
                                         ("learning_rate", 1e-3), ("n_steps", 5)])
def test_every_setting_matters(name, value, words, tmp_path):
    usual, _ = trained(tmp_path / "usual", words, average=0.0)
    other, _ = trained(tmp_path / "other", words, **{"average": 0.0, name: value})
    assert not torch.equal(usual, other)


def test_the_best_weights_and_older_ones_are_kept(words, tmp_path):
    _, log = trained(tmp_path / "run", words, n_steps=12, keep_checkpoints=2, learning_rate=3e-1, result="best")
    lows = [row["held_out"] for row in log if "held_out" in row]
    best = state(tmp_path / "run", "best.pt")
    assert best["step"] == 3 * (1 + lows.index(min(lows)))
    names = sorted(path.name for path in (tmp_path / "run").glob("checkpoint_*.pt"))
    assert names == ["checkpoint_0000009.pt", "checkpoint_0000012.pt"]


def test_a_nan_in_one_batch_is_left_out(words, tmp_path, monkeypatch):
    backward = LMTrainer._backward

    def spoiled(self, batch):
        result = backward(self, batch)
        if self.spoil.pop(0):
            self.trained[0].grad.fill_(float("nan"))
        return result

    monkeypatch.setattr(LMTrainer, "spoil", [False, False, True, False, False, False], raising=False)
    monkeypatch.setattr(LMTrainer, "_backward", spoiled)
    weights, log = trained(tmp_path / "run", words)
    assert [row["step"] for row in log if "skipped" in row] == [2] and weights.isfinite().all() and len(log) == 6


@pytest.mark.parametrize("preset", ["tiny", "paper_base"])
@pytest.mark.parametrize("pattern", ["parallel", "delay", "flatten"])
def test_the_loss_is_one_graph(preset, pattern):
    "No graph break, so that torch.compile sees the whole of it"
    c = replace(AudioLM.preset(preset), dim=32, n_layers=2, n_heads=2, card=32, text_dim=8, pattern=pattern, n_q=2)
    loss, batch = LMLoss(AudioLM(c)), (torch.randint(32, (2, 2, 7)), torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool))
    torch._dynamo.reset()
    found = torch._dynamo.explain(loss)(*batch)
    assert found.graph_break_count == 0 and found.graph_count == 1, found.break_reasons


def test_compiled_training_is_training(words, tmp_path, monkeypatch):
    usual, _ = trained(tmp_path / "usual", words)
    compiled, real = [], torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self) or real(self, backend="aot_eager"))
    other, _ = trained(tmp_path / "other", words, Machine(compile=True))
    assert [type(module).__name__ for module in compiled] == ["LMLoss"] and (usual - other).square().mean().sqrt() < 2e-4


def test_a_codec_in_bfloat16_quantises_in_float32(tmp_path):
    clips = list(ToyWorld(6, seed=0, duration=0.6))
    settings = CodecTraining(n_steps=6, batch_size=2, seconds=0.2, warmup_quantizer=1, discriminator="tiny", start_discriminator=2)
    torch.manual_seed(0)
    codec = Codec(Codec.preset("tiny"))
    log = fit_codec(codec, [clips], settings, tmp_path / "run", progress=False, machine=Machine(precision="bfloat16"))
    assert len(log) == 6 and codec.quantizer.codebooks[0].entries.dtype == torch.float32
    assert "forward" not in vars(codec.quantizer), "the quantiser is as it was"


def test_log_every_fetches_figures_seldom(tmp_path):
    "Codebooks are counted for the steps that are written alone; every step's losses are kept"
    clips = list(ToyWorld(6, seed=0, duration=0.6))
    torch.manual_seed(0)
    log = fit_codec(Codec(Codec.preset("tiny")), [clips], CodecTraining(n_steps=6, batch_size=2, seconds=0.2, warmup_quantizer=0),
                    tmp_path / "run", progress=False, machine=Machine(log_every=3))
    assert [row["step"] for row in log if "perplexity_0" in row] == [2, 5] and all("loss" in row for row in log)


def test_clips_on_disk_train_a_codec(world, tmp_path):
    from audiogen_nb.data.datasets import read_dataset
    clips = read_dataset("esc50", world / "esc50", "train/1")
    codec = Codec(Codec.preset("tiny"))
    log = fit_codec(codec, [clips], CodecTraining(n_steps=3, batch_size=2, seconds=0.2, warmup_quantizer=1), tmp_path / "run", progress=False)
    assert len(log) == 3


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_recipe_can_be_read(path):
    "Shapes, settings, data sets and their splits; what is large is not loaded"
    recipe = json.loads(path.read_text(encoding="utf-8"))
    if "lm" in recipe:
        c = read_shape(recipe["lm"], AudioLM, "lm")
        settings, generation = read_settings(LMTraining, recipe["training"], "training"), read_settings(Generation, recipe["generation"], "generation")
        assert isinstance(c, LMConfig) and recipe["tokens"]["seconds"] <= generation.max_duration <= recipe["tokens"]["seconds"]
        levelled = json.loads((CONFIGS / "pocket_codec_levels.json").read_text(encoding="utf-8"))["codec"]
        codec = {"runs/paper_codec_x32": "paper_x32", "facebook/audiogen-medium": "audiocraft_16khz"}.get(recipe.get("codec"), levelled)
        codec = read_shape(codec, Codec, "codec")
        assert (c.n_q, c.card) == (codec.n_q, codec.card) and c.max_frames >= recipe["tokens"]["seconds"] * codec.frame_rate
    else:
        settings = read_settings(CodecTraining, recipe["training"], "training")
        read_shape(recipe["codec"], Codec, "codec")
    machine = read_settings(Machine, recipe.get("machine", {}), "machine")
    assert settings.batch_size % (8 * machine.accumulate) == 0 or path.stem.startswith("pocket"), "eight devices share a batch"
    for some in recipe["data"].get("sets", []):
        facts = DATASETS[some["name"]]
        assert {some["split"], some.get("held_out", some["split"])} <= {*facts.splits, *facts.aliases}
    if "weights" in recipe.get("tokens", {}) and "sets" in recipe["data"]:
        assert len(recipe["tokens"]["weights"]) == len(recipe["data"]["sets"])


def test_alone_is_enough_for_a_step():
    assert rank() == 0 and Alone().num_processes == 1
    trainer = CodecTrainer(Codec(Codec.preset("tiny")), CodecTraining(warmup_quantizer=0))
    assert torch.isfinite(trainer.step(0, 0.1 * torch.randn(2, 1, 3200))["loss"])
