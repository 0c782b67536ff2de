"Tokens and captions in shards: shared work, kills, changes, damage, lazy reading."
import copy
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from audiogen_nb import Codec
from audiogen_nb.engine.shardfiles import ShardFile, take_turns, write_shard
from audiogen_nb.files import try_lock, unlock
from audiogen_nb.text.captions import CaptionShards
from audiogen_nb.text.encoders import TextEncoder
from audiogen_nb.train import shards
from audiogen_nb.train.shards import OnlineTokens, TokenShards, encode_items, stack_items, write_token_shards

FORK = get_context("fork") if sys.platform != "win32" else None
N, SIZE = 22, 4                                                      # items, and items in a shard: 6 shards
pytestmark = pytest.mark.skipif(FORK is None, reason="processes are forked")


class Tones(Dataset):
    "Item i is a tone of 0.1 s; notes in a file which items were asked for, and may take its time"
    def __init__(self, notes=None, seconds=0.0):
        self.notes, self.seconds = notes, seconds

    def __getitem__(self, i):
        time.sleep(self.seconds)
        if self.notes:
            with open(self.notes, "a", encoding="utf-8") as file:
                file.write(f"{i}\n")
        t = torch.arange(1600) / 16_000
        return 0.3 * torch.sin(2 * math.pi * (100 + 30 * i) * t)[None], [f"tone {i}", "a tone"][:1 + i % 2]

    def asked(self):
        return sorted(map(int, Path(self.notes).read_text(encoding="utf-8").split())) if Path(self.notes).exists() else []


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return Codec(Codec.preset("tiny")).eval()


@pytest.fixture(scope="module")
def one(codec, tmp_path_factory):
    "The folder of a set that one process has written"
    folder = tmp_path_factory.mktemp("one") / "tokens"
    write(folder, codec)
    return folder


@pytest.fixture
def own(one, tmp_path):
    "A copy of it"
    shutil.copytree(one, tmp_path / "tokens")
    return tmp_path / "tokens"


def write(folder, codec, dataset=None, n_items=N, made_from=None, **settings):
    settings = {"shard_size": SIZE, "progress": False, **settings}
    return write_token_shards(folder, codec, dataset or Tones(), n_items, made_from or {"data": "tones"}, **settings)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shard(folder, j):
    return folder / f"shard-{j:05}-of-00006.safetensors"


def with_one_thread(target, *args):
    torch.set_num_threads(1)                         # the parent's other threads did not come along, and would be waited for
    target(*args)


def forked(target, *args):
    process = FORK.Process(target=with_one_thread, args=(target, *args))
    process.start()
    return process


def until(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "nothing has happened"
        time.sleep(0.01)


# Many processes

def test_processes_at_once_write_what_one_writes_and_encode_each_item_once(codec, one, tmp_path):
    data = Tones(tmp_path / "asked", 0.01)
    started = [forked(write, tmp_path / "t", codec, data) for _ in range(3)]
    for process in started:
        process.join()
        assert process.exitcode == 0
    assert data.asked() == list(range(N)), "each item once, whoever did it"
    assert files(tmp_path / "t") == files(one), "byte for byte, index.json too"


def test_processes_of_the_command_line_share_the_work_and_fit_lm_finds_it(tmp_path, monkeypatch):
    from audiogen_nb.train.codec import fit_codec_from_config
    from audiogen_nb.train.lm import fit_lm_from_config
    data = {"recordings": False, "toy": 4, "toy_seconds": 0.5}
    for name, config in {"codec": {"codec": "tiny", "data": data, "training": {"n_steps": 1, "batch_size": 2, "seconds": 0.2, "warmup": 1,
                                                                              "warmup_quantizer": 0}},
                         "lm": {"lm": "tiny", "data": data, "generation": {"duration": 0.2, "max_duration": 0.2},
                                "tokens": {"weights": [1.0], "n_items": 11, "n_held_out": 2, "seconds": 0.2, "mix_probability": 0.2, "seed": 0},
                                "training": {"n_steps": 2, "batch_size": 2}}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config), encoding="utf-8")
    fit_codec_from_config(tmp_path / "codec.json", tmp_path / "codec", False)
    command = [sys.executable, "-c", "import sys; from audiogen_nb.cli import main; sys.exit(main())", "tokens", tmp_path / "lm.json", "--codec-run",
               tmp_path / "codec", "--out", tmp_path / "run", "--shard-size", "2", "--quiet"]
    started = [subprocess.Popen([*map(str, command)], env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for rank in range(2)]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0 and "train: 11 items in 6 shards" in out and not err, err
    monkeypatch.setattr(shards, "encode_items", None)                  # nothing is left to encode
    fit_lm_from_config(tmp_path / "lm.json", tmp_path / "codec", tmp_path / "run", False)
    assert (tmp_path / "run" / "model").is_dir() and len(TokenShards(tmp_path / "run" / "train").stamps) == 6


def test_a_killed_process_costs_one_shard(codec, one, tmp_path):
    folder, data = tmp_path / "t", Tones(tmp_path / "asked", 0.03)
    process = forked(write, folder, codec, Tones(seconds=0.03))
    until(lambda: shard(folder, 2).exists())
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*")}
    assert 3 <= len(finished) < 6
    with pytest.raises(FileNotFoundError, match=f"{len(finished)} of 6 shards are there"):
        TokenShards(folder)
    write(folder, codec, data)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished, "what was finished is kept"
    assert data.asked() == list(range(SIZE * len(finished), N)) and files(folder) == files(one)


def test_the_work_of_a_process_that_dies_is_taken_over(codec, one, tmp_path):
    folder = tmp_path / "t"
    process = forked(write, folder, codec, Tones(seconds=10.0))         # holds the first shard for 40 s
    until(lambda: list(folder.glob(".shard-00000*.lock")))
    timer = threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL))
    timer.start()
    write(folder, codec)                                                # all others, then waits for that one
    process.join()
    assert process.exitcode == -signal.SIGKILL and files(folder) == files(one)


def test_a_file_system_without_locks_costs_work_but_no_correctness(codec, one, tmp_path, monkeypatch):
    from audiogen_nb import files as module
    monkeypatch.setattr(module, "_lock", lambda handle: (_ for _ in ()).throw(OSError("no locks here")))
    started = [forked(write, tmp_path / "t", codec) for _ in range(2)]
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0] and files(tmp_path / "t") == files(one)


def test_processes_that_were_started_together_begin_at_different_places(tmp_path, monkeypatch):
    for rank, first in ((0, "a"), (1, "c"), (2, "e")):
        order = []
        monkeypatch.setenv("WORLD_SIZE", "3"), monkeypatch.setenv("RANK", str(rank))
        take_turns(tmp_path, "abcdef", order.__contains__, order.append)
        assert order[0] == first and sorted(order) == list("abcdef")


def test_an_error_in_an_item_frees_its_shard(codec, one, tmp_path):
    class Broken(Tones):
        def __getitem__(self, i):
            return super().__getitem__(i) if i != 9 else (torch.zeros(1, 99), ["short"])
    with pytest.raises(ValueError, match="one shape"):
        write(tmp_path / "t", codec, Broken())
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [shard(one, 0).name, shard(one, 1).name]
    write(tmp_path / "t", codec)
    assert files(tmp_path / "t") == files(one)


def test_items_of_two_lengths_are_refused_though_each_shard_has_one(codec, tmp_path):
    data = [(torch.zeros(1, 1600 if i < 8 else 800), ["silence"]) for i in range(N)]
    with pytest.raises(ValueError, match=r"one shape \(K, F\), got \[\(2, 5\), \(2, 10\)\]"):
        write(tmp_path, codec, data)


# Another making

def test_tokens_of_another_making_are_refused_or_replaced_with_one_line(codec, one, own, capsys):
    other = copy.deepcopy(codec)
    next(other.parameters()).data.view(-1)[0] += 1
    for changes, name in ((dict(made_from={"data": "noise"}), "data"), (dict(codec=other), "codec"), (dict(n_items=21), "n_items"),
                          (dict(shard_size=5), "shard_size"), (dict(made_from={"data": "tones", "seed": 1}), "seed")):
        settings = {"codec": codec, **changes}
        with pytest.raises(ValueError, match=rf"\({name} changed\); choose another folder"):
            write(own, **settings)
        assert files(own) == files(one), "untouched"
        replaced = write(own, **settings, replace=True)
        assert capsys.readouterr().err == f"{own}: {name} changed: encoding again\n"
        assert len(replaced) == changes.get("n_items", N)
        shutil.rmtree(own), shutil.copytree(one, own)
    assert len(write(own, codec, shard_size=None).stamps) == 6 and files(own) == files(one)       # as in the folder


def test_processes_at_once_replace_what_is_of_another_making(codec, own, tmp_path):
    data, settings = Tones(tmp_path / "asked", 0.01), dict(made_from={"data": "other tones"}, shard_size=3)
    fresh = write(tmp_path / "fresh", codec, **settings)
    started = [forked(lambda: write(own, codec, data, **settings, replace=True)) for _ in range(3)]
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0, 0] and data.asked() == list(range(N))
    assert files(own) == files(fresh.folder), "shards of the other number of files are gone, too"


def test_two_kinds_of_tokens_in_one_folder_are_noticed(codec, one, own, tmp_path):
    write(tmp_path / "other", codec, made_from={"data": "noise"})
    wanted = {name: TokenShards(own).index[name] for name in ("version", "made_from", "n_items", "shard_size")}
    shutil.copy(shard(tmp_path / "other", 2), own)
    with pytest.raises(ValueError, match="another process is writing other tokens into this folder .data."):
        shards._write_index(own, wanted, shards._notes(wanted), codec)


def test_a_codec_that_was_saved_and_loaded_makes_the_same_tokens(tmp_path):
    from audiogen_nb import AudioGen
    from audiogen_nb.train.shards import weights_fingerprint
    names = set()
    for seed in range(2):                                               # what is not saved is drawn
        torch.manual_seed(seed)
        codec = AudioGen.from_pretrained("pocket").codec
        names.add(weights_fingerprint(codec))
    codec.quantizer.codebooks[0].entries[0] += 1
    assert len(names) == 1 and weights_fingerprint(codec) not in names


# Damage

def flipped(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def edit_index(folder, **changes):
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    (folder / "index.json").write_text(json.dumps({**index, **changes}), encoding="utf-8")


def rows(folder, **changes):
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))["shards"]
    index[3].update(changes)
    return index


DAMAGE = {
    "bit": (lambda f: flipped(shard(f, 3)), r"shard-00003\S+ is damaged"),
    "cut": (lambda f: shard(f, 3).write_bytes(shard(f, 3).read_bytes()[:-1]), "shard-00003.* bytes, not"),
    "empty": (lambda f: shard(f, 3).write_bytes(b""), "shard-00003.* 0 bytes, not"),
    "missing": (lambda f: (shard(f, 3).unlink(), shard(f, 5).unlink()), "shard-00003.* is missing; shard-00005.* is missing"),
    "another one's place": (lambda f: shutil.copy(shard(f, 2), shard(f, 3)), "shard-00003"),
    "another set's": (lambda f: write_shard(shard(f, 3), ShardFile(shard(f, 3)).whole(), {"first": 12}), "shard-00003"),
    "header": (lambda f: flipped(shard(f, 3), 3), r"shard-00003\S+ is damaged"),
    "a way out": (lambda f: edit_index(f, shards=rows(f, file="../x")), "index.json is damaged"),
    "fewer": (lambda f: edit_index(f, n_items=12), "index.json is damaged"), "none": (lambda f: edit_index(f, shard_size=0), "shard_size must be"),
    "text": (lambda f: edit_index(f, n_items="22"), "whole number"), "more": (lambda f: edit_index(f, n_items=10 ** 14), "index.json is damaged"),
    "streams": (lambda f: edit_index(f, n_q=3), "is damaged"), "card": (lambda f: edit_index(f, card=2), "must lie in 0..1"),
    "another hash": (lambda f: edit_index(f, shards=rows(f, sha256="0" * 64)), "shard-00003"),
    "another making": (lambda f: edit_index(f, made_from={}), "not of the set"), "rows": (lambda f: edit_index(f, shards={"a": 1}), "index.json is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_by_name_and_mended(codec, one, own, damage, capsys):
    do, message = DAMAGE[damage]
    do(own)
    with pytest.raises(ValueError, match=message):
        list(TokenShards(own))
    assert TokenShards(one)[0][1]
    data = Tones(own.parent / "asked")
    write(own, codec, data, replace=True)
    assert files(own) == files(one) and len(data.asked()) <= 2 * SIZE, "only what is damaged is made again"


def test_a_link_that_leads_out_is_not_followed(own, tmp_path):
    shard(own, 3).rename(tmp_path / "elsewhere")
    shard(own, 3).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="leads out of its folder"):
        TokenShards(own)


def test_codes_out_of_range_are_refused_though_their_hash_is_right(own):
    found, index = ShardFile(shard(own, 3)), json.loads((own / "index.json").read_text(encoding="utf-8"))
    for name, at, value in (("codes", 0, 32), ("codes", 5, -1), ("caption_ends", 1, 10 ** 9), ("caption_ends", 3, 3)):
        tensors = found.whole()
        tensors[name].view(-1)[at] = value
        write_shard(shard(own, 3), tensors, found.about)
        edit_index(own, shards=[{**row, "sha256": ShardFile(shard(own, j)).digest} for j, row in enumerate(index["shards"])])
        with pytest.raises(ValueError, match="shard-00003.*(0..31|follow each other)"):
            TokenShards(own)[12]
        assert TokenShards(own)[0]


# Reading

def test_items_are_what_was_encoded(codec, one):
    tokens, (codes, captions) = TokenShards(one), encode_items(codec, Tones(), range(N))
    assert tokens.shape == (N, codec.n_q, 10) == tuple(codes.shape) and len(tokens) == N and tokens.card == codec.card == 32
    for i in (*range(N), -1, -N):
        assert torch.equal(tokens[i][0], codes[i].long()) and tokens[i][0].dtype == torch.int64
        assert tokens[i][1] == tokens.captions_of(i) == captions[i] == Tones()[i % N][1]
    for i in (N, -N - 1):
        with pytest.raises(IndexError):
            tokens[i]
    assert torch.equal(torch.cat([tokens.shard(j)[0] for j in range(6)]), codes)
    assert tokens.made_from["data"] == "tones" and tokens.index["sample_rate"] == 16_000


def test_stored_and_online_batches_are_equal_and_random_numbers_are_left_alone(codec, one):
    state = torch.get_rng_state()
    online = OnlineTokens(codec, DataLoader(Tones(), sampler=range(N), batch_size=SIZE, collate_fn=stack_items, generator=torch.Generator()))
    for (codes, said), (stored, kept) in zip(online, DataLoader(TokenShards(one), SIZE, collate_fn=stack_items, generator=torch.Generator())):
        assert torch.equal(codes, stored) and said == kept and codes.dtype == torch.int64 and not codes.requires_grad
    assert len(online) == 6 and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read(one, start):
    tokens = TokenShards(one)
    tokens[0]                                                           # a file is open
    loader = DataLoader(tokens, batch_size=5, num_workers=1, multiprocessing_context=start, collate_fn=stack_items)
    items = [(codes, said) for batch, captions in loader for codes, said in zip(batch, captions)]
    assert len(items) == N and all(torch.equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(items, tokens))
    assert len(pickle.dumps(tokens)) < 10_000


def test_workers_load_for_the_encoder(codec, one, tmp_path):
    write(tmp_path / "t", codec, n_workers=1)
    assert files(tmp_path / "t") == files(one)


class Any(nn.Module):
    "Stands for a codec with as many entries as one likes"
    n_q, sample_rate, frame_rate = 1, 16_000, 100

    def __init__(self, card):
        super().__init__()
        self.card, self.weight = card, nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize("card, kind", [(2 ** 15, "I16"), (2 ** 15 + 1, "I32"), (2 ** 20, "I32")])
def test_large_codebooks_fit(tmp_path, monkeypatch, card, kind):
    monkeypatch.setattr(OnlineTokens, "encode", lambda self, audio: torch.tensor([0, card - 1, 1]).expand(len(audio), 1, 3))
    tokens = write(tmp_path, Any(card))
    assert tokens[N - 1][0].tolist() == [[0, card - 1, 1]] and ShardFile(shard(tmp_path, 0)).layout()["codes"][0] == kind


READER = """
import random, re, sys
from pathlib import Path
from audiogen_nb.train.shards import TokenShards
def memory(name): return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
for folder in sys.argv[1:]:
    tokens = TokenShards(folder)
    tokens[0]
    before, most = memory("RssAnon"), 0
    for i in random.Random(0).choices(range(len(tokens)), k=1500):
        tokens[i]
        most = max(most, memory("RssAnon") - before) if i % 20 == 0 else most
    print(most, memory("VmHWM"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_takes_no_more_memory_for_a_larger_set(tmp_path, monkeypatch):
    monkeypatch.setattr(OnlineTokens, "encode", lambda self, audio: torch.randint(1024, (len(audio), 4, 500)))
    for name, n in (("small", 2_500), ("large", 50_000)):               # 10 and 200 MB of codes
        write(tmp_path / name, Any(1024), [(torch.zeros(1, 1), ["a sound"])] * n, n, shard_size=1000, batch_size=1000)
    assert sum(path.stat().st_size for path in (tmp_path / "large").iterdir()) > 200e6
    done = subprocess.run([sys.executable, "-c", READER, tmp_path / "small", tmp_path / "large"], capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    (small, first), (large, second) = [map(float, line.split()) for line in done.stdout.splitlines()]
    assert small < 25 and large < 25, f"{done.stdout}: a shard of 4 MB is looked at once, nothing else stays"
    assert second - first < 100, f"{done.stdout}: at most 16 shards of 4 MB are mapped"


# Captions

class Slow(TextEncoder):
    "Notes in a file what it reads"
    width, max_length = 3, 100

    def __init__(self, notes):
        super().__init__()
        self.notes = notes

    def encode(self, texts):
        with open(self.notes, "a", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in texts)
        return [torch.tensor([[ord(c) / 7, 1.0, i] for i, c in enumerate(text)]) for text in texts]


def test_processes_share_the_captions(tmp_path):
    texts = [f"a sound, number {i}" for i in range(100)]
    fill = lambda folder, notes, texts: CaptionShards(Slow(notes), folder).fill(texts, shard_size=8, progress=False)
    started = [forked(fill, tmp_path / "three", tmp_path / "asked", some) for some in (texts, texts[::-1], texts * 2)]
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0, 0, 0]
    assert sorted((tmp_path / "asked").read_text(encoding="utf-8").splitlines()) == sorted(texts), "each caption once"
    fill(tmp_path / "one", tmp_path / "again", texts)
    three, alone = (files(next((tmp_path / name).iterdir())) for name in ("three", "one"))
    assert three == alone and len(alone) == 13
    cached, exact = CaptionShards(Slow(tmp_path / "no"), tmp_path / "three"), Slow(tmp_path / "exact")
    for text in texts:
        (states, mask), (mine, kept) = exact([text]), cached([text])
        assert torch.equal(mask, kept) and torch.equal(mine, states.half().float())
    assert not (tmp_path / "no").exists()


def test_a_killed_process_loses_no_captions(tmp_path):
    texts, notes = [f"a sound, number {i}" for i in range(100)], tmp_path / "asked"

    class Slower(Slow):
        def encode(self, some):
            time.sleep(0.05)
            return super().encode(some)

    def fill():
        Slower.__name__ = "Slow"
        CaptionShards(Slower(notes), tmp_path / "c").fill(texts, shard_size=8, progress=False)
    process = forked(fill)
    until(lambda: len(list((tmp_path / "c").glob("*/captions-*"))) >= 3)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    done = len(list((tmp_path / "c").glob("*/captions-*")))
    notes.unlink()
    rest = CaptionShards(Slow(notes), tmp_path / "c").fill(texts, shard_size=8, progress=False)
    assert rest == len(notes.read_text(encoding="utf-8").splitlines()) == 100 - 8 * done and 3 <= done < 13


# Locks

def test_a_lock_is_gone_with_its_process(tmp_path):
    path = tmp_path / ".lock"
    process = forked(lambda: (try_lock(path), time.sleep(60)))
    until(lambda: path.exists() and path.read_text() == str(process.pid))
    assert try_lock(path) is None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    handle = try_lock(path)
    assert handle is not None and path.read_text() == str(os.getpid())
    unlock(path, handle)
    assert not path.exists()
