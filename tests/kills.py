"""Kills processes at random moments: nothing that was finished is lost or half written, and the next call finishes.

python tests/kills.py --n 100        prints how many were killed in each place, and what went wrong
"""
import argparse
import collections
import json
import os
import random
import signal
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

TOY = {"recordings": False, "toy": 4, "toy_seconds": 0.6}
TEXTS = ("a dog barks", "heavy rain", "a bell", "thunder")


# What is done, in a process that is killed

def quiet():
    "No output of a process that will be killed"
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)


def generate(folder):
    "The command line writes four files"
    quiet()
    from audiogen_nb.cli import main
    code = main(["generate", *TEXTS, "--model", str(folder / "model"), "--out", str(folder / "sounds" / "out.wav"), "--seed", "0",
                 "--duration", "0.2", "--force", "--quiet"])
    assert code == 0


def save(folder):
    "A model is saved over and over, each under a name of its own, and one is replaced"
    quiet()
    from audiogen_nb import AudioGen
    from audiogen_nb.files import new_folder
    model = AudioGen.from_pretrained(folder / "model")
    for i in range(20):
        if not (folder / "saved" / f"m{i}").exists():
            model.save_pretrained(folder / "saved" / f"m{i}")
        with new_folder(folder / "saved" / "latest", replace=True) as new:
            model.save_pretrained(new / "model")
            (new / "number").write_text(str(i))


def train(folder):
    "A language model is trained from a configuration: tokens, checkpoints, log, and the model at the end"
    quiet()
    from audiogen_nb.train.lm import fit_lm_from_config
    fit_lm_from_config(folder / "lm.json", folder / "codec", folder / "run", False)


def cache(folder):
    "Captions are read and remembered"
    quiet()
    from audiogen_nb.hub import POCKET
    from audiogen_nb.text.captions import CaptionShards
    from audiogen_nb.text.hf import load_text_encoder
    encoder = CaptionShards(load_text_encoder(POCKET / "text"), folder / "captions" / str(time.time_ns()))
    encoder.fill([f"a dog barks {'very ' * (i % 40)}loud in {i} rains" for i in range(600)], shard_size=4, progress=False)


# What must hold at any moment, whatever was killed

def whole_generate(folder):
    import soundfile
    for path in (folder / "sounds").glob("*.wav"):
        assert len(soundfile.read(path)[0]) == 3200, path


def whole_save(folder):
    from audiogen_nb import AudioGen
    found = [p for p in (folder / "saved").glob("*") if not p.name.startswith(".")]
    for path in sorted(found)[-2:]:
        AudioGen.from_pretrained(path / "model" if path.name == "latest" else path)
    done = folder / "done"
    names = {p.name for p in found}
    before = set(json.loads(done.read_text())) if done.exists() else set()
    assert before <= names, f"{before - names} is lost"
    done.write_text(json.dumps(sorted(names)))


def whole_train(folder):
    import torch
    from audiogen_nb.engine.shardfiles import ShardFile
    from audiogen_nb.train.shards import TokenShards
    run = folder / "run"
    if (run / "checkpoint.pt").exists():
        step = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
        before = int((folder / "step").read_text()) if (folder / "step").exists() else 0
        assert step >= before, f"step {before} was kept, now {step}"
        (folder / "step").write_text(str(step))
    for name in ("train", "held_out"):
        for path in (run / name).glob("shard-*"):
            ShardFile(path).whole()
        if (run / name / "index.json").exists():
            list(TokenShards(run / name))
    if (run / "model").exists():
        from audiogen_nb import AudioGen
        AudioGen.from_pretrained(run / "model")


def whole_cache(folder):
    from audiogen_nb.engine.shardfiles import ShardFile
    for path in (folder / "captions").rglob("captions-*.safetensors"):
        assert ShardFile(path).whole()["states"].isfinite().all()


JOBS = {"generate": (generate, whole_generate), "save": (save, whole_save), "train": (train, whole_train), "cache": (cache, whole_cache)}


def prepare(folder):
    "What the jobs need: a tiny model, a tiny codec's run, a configuration"
    import torch
    from audiogen_nb import AudioGen, AudioLM, Codec
    from audiogen_nb.hub import POCKET
    from audiogen_nb.sampling.request import Generation
    from audiogen_nb.text.hf import load_text_encoder
    from audiogen_nb.train.codec import fit_codec_from_config
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = AudioGen(Codec(Codec.preset("tiny")), AudioLM(AudioLM.preset("tiny")), load_text_encoder(POCKET / "text"),
                     Generation(duration=0.2, max_duration=0.6))
    model.save_pretrained(folder / "model")
    for name in ("sounds", "saved"):
        (folder / name).mkdir()
    training = {"n_steps": 1, "batch_size": 2, "seconds": 0.2, "warmup": 1, "warmup_quantizer": 0}
    (folder / "codec.json").write_text(json.dumps({"codec": "tiny", "data": TOY, "training": training}))
    fit_codec_from_config(folder / "codec.json", folder / "codec", False)
    training = {"n_steps": 80, "batch_size": 2, "warmup": 1, "checkpoint_every": 2, "sample_every": 1000}
    tokens = {"weights": [1.0], "n_items": 40, "n_held_out": 4, "seconds": 0.4, "mix_probability": 0.2, "seed": 0}
    (folder / "lm.json").write_text(json.dumps({"lm": "tiny", "data": TOY, "tokens": tokens, "training": training,
                                                "generation": {"duration": 0.2, "max_duration": 0.4}}))


def run(n, seed=0, jobs=tuple(JOBS), show=lambda text: None):
    "Kill n processes, then let each job finish: {job: kills}; an assertion fails where something was lost"
    moments, counts, lasts = random.Random(seed), collections.Counter(), {}
    context = get_context("forkserver")                  # one process imports everything and forks the jobs: they start quickly
    context.set_forkserver_preload(["audiogen_nb.train.lm", "audiogen_nb.cli", "torch._dynamo", "audiogen_nb.text.captions"])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        for job in jobs:                                 # how long does it take undisturbed?
            lasts[job] = _finish(context, job, folder)
            show(f"{job} takes {lasts[job]:.1f} s")
        for i in range(10 * n):
            job = jobs[sum(counts.values()) % len(jobs)]
            _forget(job, folder, counts[job])
            process = context.Process(target=JOBS[job][0], args=(folder,))
            process.start()
            start = time.monotonic()
            process.join(moments.uniform(0.02, 0.95) * lasts[job])
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
                counts[job] += 1
            else:
                lasts[job] = min(lasts[job], time.monotonic() - start)      # quicker than it was before
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL), f"{job} failed after a kill"
            JOBS[job][1](folder)
            show(f"{sum(counts.values())} of {n}")
            if sum(counts.values()) == n:
                break
        assert sum(counts.values()) == n, "too few were killed"
        for job in jobs:
            _forget(job, folder, 1)
            _finish(context, job, folder)
            JOBS[job][1](folder)
        _sweeping(folder)
    return dict(counts)


def _finish(context, job, folder):
    "Seconds that a job takes when nobody kills it"
    start, process = time.monotonic(), context.Process(target=JOBS[job][0], args=(folder,))
    process.start()
    process.join(300)
    assert process.exitcode == 0, f"{job} does not finish"
    return time.monotonic() - start


def _forget(job, folder, count):
    "Now and then a job begins from nothing"
    import shutil
    if job == "train" and (count % 5 == 0 or (folder / "run" / "model").exists()):         # a finished run is not done again
        shutil.rmtree(folder / "run", ignore_errors=True), (folder / "step").unlink(missing_ok=True)
    if job == "save" and (count % 5 == 0 or (folder / "saved" / "m19").exists()):
        (folder / "done").unlink(missing_ok=True)
        shutil.rmtree(folder / "saved"), (folder / "saved").mkdir()


def _sweeping(folder):
    "A run leaves nothing behind; elsewhere what is old goes at the next call"
    assert not list((folder / "run").rglob(".*")), "left in the run's folder"
    from audiogen_nb.files import sweep_stale
    for place in (folder / "sounds", folder / "saved", *(folder / "captions").glob("*/*")):
        sweep_stale(place, 0)
        assert not [path for path in place.glob(".*") if not path.name.endswith(".lock")], f"left in {place}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(run(options.n, options.seed, show=lambda text: print(text, file=sys.stderr)), "killed; nothing was lost")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
