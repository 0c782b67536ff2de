"""Damages files in thousands of ways and loads each: a result or one sentence, never a traceback, a hang or a gigabyte.

python tests/fuzz.py --n 2000        prints counts by kind and error, the slowest case and the most memory
"""
import argparse
import collections
import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from multiprocessing import get_context
from pathlib import Path

ALLOWED = (ValueError, TypeError, OSError, FloatingPointError)          # what the command line shows as one line
SECONDS, ROOM = 10, 10**9                           # a case may take so long, and so many bytes more
NUMBERS = (0, -1, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**63, 10**18, -(2**63), 1e308, -1e308, 0.5, float("nan"), float("inf"))
VALUES = (*NUMBERS, None, True, False, "", "x", "4", "../../x", "/etc/passwd", "x" * 10_000, [], [1], [[]], {}, {"a": 1}, [2, 2, 2, 2],
          [10**9] * 3, [2] * 40)


# Damage

def places(value, path=()):
    "The path of everything in nested JSON"
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def change_json(path, r):
    "Another value, a missing key, an unknown one, deep nesting, or broken text"
    text = path.read_text(encoding="utf-8")
    how = r.random()
    if how < 0.1:
        return change_bytes(path, r)
    if how < 0.14:
        depth = r.choice((10, 1_000, 200_000))
        return path.write_text('{"codec":' * depth + "1" + "}" * depth, encoding="utf-8")
    value = json.loads(text)
    for _ in range(r.choice((1, 1, 1, 2, 4))):
        found = [p for p in places(value) if p and "provenance" not in p[:-1]] or [()]
        *parents, last = r.choice(found) or (None,)
        node = value
        try:
            for key in parents:
                node = node[key]
            if last is None:
                value = r.choice(VALUES)
            elif r.random() < 0.15:
                del node[last]
            elif r.random() < 0.1 and isinstance(node, dict):
                node[r.choice(("extra", "name", "n_layers", "trust_remote_code"))] = r.choice(VALUES)
            elif type(node[last]) in (int, float) and r.random() < 0.5:
                node[last] = r.choice((node[last] * 2, node[last] * 1000, node[last] + 1, -node[last], str(node[last])))
            else:
                node[last] = r.choice(VALUES)
        except (KeyError, IndexError, TypeError):
            continue
    path.write_text(json.dumps(value), encoding="utf-8")


def change_bytes(path, r):
    "Flipped, cut, repeated or inserted bytes"
    data = bytearray(path.read_bytes())
    how = r.randrange(6)
    if how == 0:
        del data[r.randrange(len(data) + 1):]
    elif how == 1:
        data += r.randbytes(r.choice((1, 8, 1000)))
    elif how == 2:
        at = r.randrange(len(data) + 1)
        data[at:at] = r.randbytes(r.choice((1, 8, 100)))
    elif how == 3 and len(data) > 16:
        at = r.randrange(min(len(data), 256) - 8)
        data[at : at + 4] = struct.pack(r.choice("<>") + "I", r.choice((0, 1, 2**31 - 1, 2**32 - 1, 16_001, 192_000, 10**6)))
    else:
        for _ in range(r.choice((1, 2, 16))):
            if data:
                near = r.random() < 0.7
                data[r.randrange(min(len(data), 200) if near else len(data))] = r.choice((0, 255, r.randrange(256)))
    path.write_bytes(bytes(data))


def change_header(path, r):
    "Another header of a safetensors file: names, types, shapes, places"
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    name = r.choice([k for k in header if k != "__metadata__"])
    how = r.randrange(8)
    part = header[name]
    if how == 0:
        part["shape"] = r.choice(([10**6, 10**6], [2**32, 2**32], [-1], [0], [], [1] * 70, part["shape"][::-1], part["shape"] + [1]))
    elif how == 1:
        part["dtype"] = r.choice(("F64", "F16", "I8", "I64", "BOOL", "F8_E4M3", "X", 7))
    elif how == 2:
        part["data_offsets"] = r.choice(([0, 10**15], [10, 0], [-1, 4], [0, 0], [2**63, 2**64 - 1], "x"))
    elif how == 3:
        header[r.choice(("x", name + ".scale", "../x", ""))] = header.pop(name)
    elif how == 4:
        del header[name]
    elif how == 5:
        header = {f"w{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(r.choice((10, 20_000)))}
    elif how == 6:
        other = r.choice(list(header))
        header[name], header[other] = header[other], header[name]
    text = json.dumps(header).encode()
    length = len(text) if how != 7 else r.choice((0, 2**20, 2**63, 10**8, len(text) - 1))
    path.write_bytes(length.to_bytes(8, "little") + text + data[8 + n:])


def change_files(folder, r):
    "A missing, emptied, exchanged or linked file; a folder or a pipe in its place"
    path = r.choice([p for p in sorted(folder.rglob("*")) if p.is_file()])
    path.unlink()
    how = r.randrange(6)
    if how == 1:
        path.touch()
    elif how == 2:
        path.mkdir()
    elif how == 3:
        path.symlink_to(r.choice(("/etc/passwd", "/dev/zero", "../nowhere", path.name, "../../outside.json")))
    elif how == 4 and hasattr(os, "mkfifo"):
        os.mkfifo(path)
    elif how == 5:
        path.write_bytes(r.randbytes(1000))


# Targets: what there is to damage, and what reads it

def change_folder(folder, r):
    "Damage one file of a folder in the way of its kind"
    if r.random() < 0.12:
        return change_files(folder, r)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".md"]
    settings = [p for p in files if p.name in ("config.json", "adapter_config.json")]
    path = r.choice(settings if r.random() < 0.5 else files)
    kinds = {".json": change_json, ".safetensors": change_header if r.random() < 0.6 else change_bytes}
    kinds.get(path.suffix, change_bytes)(path, r)


def load_model(folder):
    from audiogen_nb import AudioGen
    AudioGen.from_pretrained(folder).generate("a dog barks", duration=0.05, seed=0, top_k=5)


def load_audiocraft(folder):
    from audiogen_nb.pipeline import load_audiocraft
    load_audiocraft(folder, text_encoder=BASE.get("t5")).generate("a dog barks", duration=0.05, seed=0, top_k=5)


def load_adapter(folder):
    from audiogen_nb.train.lora import merge_lora
    merge_lora(BASE["tiny"], folder)


def load_sound(folder):
    from audiogen_nb.sound import load_audio
    for path in folder.iterdir():
        load_audio(path, 16_000)


def load_clips(folder):
    from audiogen_nb.data.clips import SoundFolder
    clips = SoundFolder(folder)
    len(clips), clips[0], clips[-1]


def change_manifest(folder, r):
    path = r.choice([p for p in sorted(folder.iterdir()) if p.suffix in (".csv", ".jsonl")])
    if r.random() < 0.4:
        return change_bytes(path, r)
    lines = path.read_text(encoding="utf-8").splitlines()
    odd = ("", ",,,", "../../etc/passwd,x,y", "/dev/zero,x,y", '"', "a.wav", "\ufeff" + lines[0], "a.wav," + "x" * 200_000 + ",y",
           '{"file": 7, "caption": "x"}', '{"file": "a.wav", "caption": [[[]]]}', "[" * 100_000, "null", "[1]", "7", '{"file": ["a.wav"], "caption": 1}')
    for _ in range(r.choice((1, 2))):
        lines[r.randrange(len(lines))] = r.choice(odd)
    path.write_text("\n".join(lines) + "\n", encoding=r.choice(("utf-8", "utf-8", "utf-16", "utf-8-sig")))


def change_any(folder, r):
    path = r.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    (change_json if path.suffix == ".json" and r.random() < 0.8 else change_bytes)(path, r)


def load_config(folder):
    from audiogen_nb.train.codec import CodecTraining
    from audiogen_nb.train.lm import LMTraining
    from audiogen_nb.train.runs import read_config, read_recipe, read_settings
    from audiogen_nb.sampling.request import Generation
    codec = read_config(folder / "codec.json", {"codec", "data", "training"})
    read_settings(CodecTraining, codec["training"], "training")
    lm = read_config(folder / "lm.json", {"lm", "data", "tokens", "training", "generation"})
    read_settings(LMTraining, lm["training"], "training"), read_settings(Generation, lm["generation"], "generation")
    read_recipe(folder)


def load_run(folder):
    from audiogen_nb import Codec
    from audiogen_nb.train.loop import load_checkpoint, read_log
    load_checkpoint(folder / "checkpoint.pt", {"codec": Codec(Codec.preset("tiny"))})
    read_log(folder)


def load_tokens(folder):
    from audiogen_nb.train.shards import TokenShards
    list(TokenShards(folder))


def change_tokens(folder, r):
    path = folder / r.choice(("shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors", "index.json"))
    change = change_json if path.suffix == ".json" else change_header
    (change if r.random() < 0.6 else change_bytes)(path, r)


# name: (damage, load, share of the cases, the modules to blame are the others')
TARGETS = {"model": (change_folder, load_model, 6), "t5": (change_folder, load_model, 3), "musicgen": (change_folder, load_model, 3),
           "audiocraft": (change_any, load_audiocraft, 4), "audiocraft_yaml": (None, load_audiocraft, 3), "adapter": (change_folder, load_adapter, 2),
           "wav": (change_any, load_sound, 2), "flac": (change_any, load_sound, 1), "ogg": (change_any, load_sound, 1),
           "aiff": (change_any, load_sound, 1), "manifest": (change_manifest, load_clips, 2), "config": (change_any, load_config, 2),
           "run": (change_any, load_run, 2), "tokens": (change_tokens, load_tokens, 1)}
BASE = {}


def prepare(place):
    "One healthy folder of each kind"
    import soundfile
    import torch
    from audiogen_nb import AudioGen, AudioLM, Codec
    from audiogen_nb.hub import POCKET
    from audiogen_nb.sampling.request import Generation
    from audiogen_nb.text.hf import load_text_encoder
    from audiogen_nb.train.loop import save_checkpoint
    from audiogen_nb.train.shards import write_token_shards
    torch.manual_seed(0)
    tiny = AudioGen(Codec(Codec.preset("tiny")), AudioLM(AudioLM.preset("tiny")), load_text_encoder(POCKET / "text"),
                    Generation(duration=0.1, max_duration=0.5))
    tiny.save_pretrained(place / "model", "int8")
    BASE["tiny"] = tiny
    with contextlib.suppress(ImportError):
        prepare_transformers(place, tiny)
    with contextlib.suppress(ImportError):
        prepare_adapter(place)
    sound = 0.3 * torch.randn(4000).numpy()
    for kind in ("wav", "flac", "ogg", "aiff"):
        (place / kind).mkdir()
        soundfile.write(place / kind / f"a.{kind}", sound, 16_000)
    (place / "manifest").mkdir()
    for i in range(3):
        soundfile.write(place / "manifest" / f"{i}.wav", sound, 16_000)
    rows = [("file", "caption", "kind"), *((f"{i}.wav", f"a sound, number {i}".replace(",", ""), "x") for i in range(3))]
    (place / "manifest" / "manifest.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    (place / "config").mkdir(), (place / "run").mkdir()
    (place / "config" / "codec.json").write_text(json.dumps({"codec": "tiny", "data": {"toy": 2}, "training": {"n_steps": 2, "mel": "log"}}))
    (place / "config" / "lm.json").write_text(json.dumps({"lm": "tiny", "data": {"toy": 2}, "tokens": {"seconds": 1}, "training": {"n_steps": 2},
                                                          "generation": {"duration": 1.0}}))
    (place / "config" / "recipe.json").write_text(json.dumps([{"codec": "tiny", "training": {"n_steps": 2}}]))
    save_checkpoint(place / "run" / "checkpoint.pt", 3, {"codec": tiny.codec})
    (place / "run" / "log.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5}\n')
    items = [(0.1 * torch.randn(1, 800), texts) for texts in (["a"], ["b"], ["c", "d"])]
    write_token_shards(place / "tokens", tiny.codec, items, 3, {}, shard_size=2, progress=False)
    return place


def prepare_transformers(place, tiny):
    "A model with a T5 inside, and its conversions"
    import torch
    import transformers
    from audiogen_nb import AudioGen, AudioLM, Codec
    from audiogen_nb.codec.seanet import CodecConfig
    from audiogen_nb.lm.transformer import LMConfig
    from audiogen_nb.peers.audiocraft import save_audiocraft
    from audiogen_nb.peers.musicgen import save_musicgen
    from audiogen_nb.text.encoders import word_pieces
    from audiogen_nb.text.hf import HFTextEncoder
    words = "[PAD] [UNK] [CLS] [SEP] a dog barks the rain".split()
    names = dict(unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_pieces(words), model_input_names=["input_ids", "attention_mask"], **names)
    t5 = transformers.T5Config(d_model=24, d_kv=6, d_ff=48, num_layers=1, num_heads=4, vocab_size=len(words))
    text = HFTextEncoder(transformers.T5EncoderModel(t5), tokenizer, max_length=16)
    codec = Codec(CodecConfig(n_filters=2, strides=(4, 5, 8), dimension=8, n_q=2, card=16, lstm_layers=1, norm="weight"))
    lm = AudioLM(LMConfig(n_q=2, card=16, dim=16, n_layers=1, n_heads=2, text_dim=24, pattern="delay", average_streams=False, max_frames=100))
    model = AudioGen(codec, lm, text, tiny.generation)
    model.save_pretrained(place / "t5")
    save_musicgen(model, place / "musicgen")
    BASE["t5"] = text
    text.name = "t5-base"                                # what the checkpoint names; it is not asked for here
    save_audiocraft(model, place / "audiocraft")
    text.name = None
    shutil.copytree(place / "audiocraft", place / "audiocraft_yaml")
    torch.save(torch.load(place / "audiocraft" / "state_dict.bin", weights_only=True), place / "audiocraft_yaml" / "state_dict.bin")


def prepare_adapter(place):
    from audiogen_nb.train.lora import LoRATraining, adapters
    with adapters(BASE["tiny"], LoRATraining(rank=2)) as adapted:
        adapted.save_pretrained(place / "adapter")


def change_yaml(folder, r):
    "Other settings inside AudioCraft's pickles"
    import torch
    path = folder / r.choice(("state_dict.bin", "compression_state_dict.bin"))
    package = torch.load(path, weights_only=True)
    how = r.random()
    if how < 0.7:
        file = folder / "x.json"
        file.write_text(package["xp.cfg"])
        change_json(file, r)
        package["xp.cfg"] = file.read_text(errors="replace")
        file.unlink()
    elif how < 0.9:
        name = r.choice(list(package["best_state"]))
        value = package["best_state"][name]
        package["best_state"][name] = r.choice((value[:0], value.double(), value[..., None], torch.zeros(1).expand(10**5, 10**6), value.bool(),
                                                torch.tensor(float("nan")), torch.zeros(3, dtype=torch.complex64), 7))
    else:
        package = r.choice(([], {}, {"best_state": {}}, {"pretrained": "x"}, {"best_state": {1: torch.ones(1)}, "xp.cfg": "a: 1"}))
    torch.save(package, path, _use_new_zipfile_serialization=r.random() < 0.7)


TARGETS["audiocraft_yaml"] = (change_yaml, *TARGETS["audiocraft_yaml"][1:])


# Running

class Late(BaseException):
    "A case took too long"


def used():
    "Bytes of address space"
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def one(place, healthy, number, seed):
    "One case: (kind, outcome, seconds, detail)"
    r = random.Random(f"{seed} {number}")
    kinds = [k for k in TARGETS if (healthy / k).is_dir()]
    kind = r.choices(kinds, [TARGETS[k][2] for k in kinds])[0]
    damage, load, _ = TARGETS[kind]
    folder = place / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(healthy / kind, folder)
    damage(folder, r)
    start, outcome, detail = time.monotonic(), "result", ""
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            load(folder)
    except ALLOWED as e:
        outcome, detail = type(e).__name__, str(e)
        nameless = type(e) in (UnicodeDecodeError, json.JSONDecodeError)            # says neither which file nor what to do
        if len(detail) > 2000 or "\n\n" in detail or nameless:
            outcome, detail = "no sentence", f"{type(e).__name__}: {detail[:300]}"
    except Late:
        outcome = "hang"
    except BaseException as e:
        last = traceback.extract_tb(e.__traceback__)
        own = [f"{Path(f.filename).name}:{f.lineno}" for f in last if "audiogen_nb" in f.filename]
        outcome, detail = f"! {type(e).__name__}", f"{str(e)[:200]!r} at {' '.join(own[-3:])}"
    finally:
        signal.alarm(0)
    return kind, outcome, time.monotonic() - start, detail


def work(numbers, healthy, seed, pipe):
    "Many cases in a process of bounded memory"
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch
    torch.set_num_threads(1)

    def late(*_): raise Late
    signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (used() + ROOM, resource.RLIM_INFINITY))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as place:
        for number in numbers:
            pipe.send((number, None))
            pipe.send((number, one(Path(place), healthy, number, seed)))
            pipe.send((-1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start))


def run(n, seed=0, chunk=100, show=lambda text: None):
    "Run n cases: {number: (kind, outcome, seconds, detail)} and the most memory (bytes) beyond the start of a process"
    found, most = {}, 0
    with tempfile.TemporaryDirectory() as place:
        healthy = Path(place) / "healthy"
        healthy.mkdir()
        prepare(healthy)
        for kind in sorted(p.name for p in healthy.iterdir()):      # what is healthy loads, and what loads is imported
            with contextlib.redirect_stderr(io.StringIO()):
                TARGETS[kind][1](healthy / kind)
        waiting, context = list(range(n)), get_context("fork")
        while waiting:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(waiting[:chunk], healthy, seed, theirs))
            process.start()
            theirs.close()
            current = None
            try:
                while True:
                    if not ours.poll(SECONDS + 20):                 # stuck where no signal is heard
                        process.kill()
                    number, result = ours.recv()
                    if number < 0:
                        most = max(most, result * 1024)                 # kilobytes, on Linux
                    elif result is None:
                        current = number
                    else:
                        found[number], current = result, None
            except EOFError:
                process.join()
            if current is not None:
                found[current] = ("?", f"! process died ({process.exitcode})", 0.0, "")
            waiting = [i for i in waiting if i not in found]
            show(f"{n - len(waiting)} of {n}")
    return found, most


def faults(found):
    "The cases that did not end as they should"
    return {i: case for i, case in found.items() if case[1].startswith("!") or case[1] in ("hang", "no sentence")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run this case alone, with its traceback")
    options = parser.parse_args()
    if options.case is not None:
        with tempfile.TemporaryDirectory() as place:
            healthy = Path(place) / "healthy"
            healthy.mkdir()
            prepare(healthy)
            print(one(Path(place), healthy, options.case, options.seed))
        return 0
    found, most = run(options.n, options.seed, show=lambda text: print(text, file=sys.stderr))
    for kind in sorted({case[0] for case in found.values()}):
        counts = collections.Counter(case[1] for case in found.values() if case[0] == kind)
        print(f"{kind:16}", sum(counts.values()), dict(counts))
    slow = max(found, key=lambda i: found[i][2])
    print(f"{len(found)} cases, the slowest {found[slow][2]:.1f} s ({found[slow][0]}, case {slow}), at most {most / 1e6:.0f} MB more")
    bad = faults(found)
    for i, case in sorted(bad.items()):
        print(f"case {i}: {case}")
    return bool(bad)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
