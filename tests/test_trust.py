"A folder of a stranger: nothing is read, run or given memory before it has been checked."
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiogen_nb import AudioGen
from audiogen_nb.codec.seanet import CODEC_PRESETS, CodecConfig
from audiogen_nb.files import sweep_stale
from audiogen_nb.hub import layout_of
from audiogen_nb.lm.transformer import LM_PRESETS, LMConfig
from audiogen_nb.sampling.request import Generation
from audiogen_nb.text.hf import load_text_encoder

WRONG = [None, True, "4", 1.5, [1], {}, -1, 0, 10**18, float("nan")]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    "A copy of the tiny model, to be damaged"
    return shutil.copytree(tiny_folder, tmp_path / "model")


def edit(path, **sections):
    "Other values in sections of a config.json"
    config = json.loads(path.read_text())
    for name, new in sections.items():
        config[name] = {**config[name], **new} if isinstance(new, dict) and isinstance(config.get(name), dict) else new
    path.write_text(json.dumps(config))


def test_every_preset_is_in_range():
    assert all(replace(c) == c for c in (*CODEC_PRESETS.values(), *LM_PRESETS.values()))


@pytest.mark.parametrize("kind", [CodecConfig, LMConfig])
def test_every_size_is_checked(kind):
    sizes = [name for name, value in vars(kind()).items() if type(value) is int]
    assert len(sizes) >= 7
    for name in sizes:
        for wrong in WRONG:
            if wrong != 0 or name not in ("lstm_layers", "level_bands", "level_streams"):
                with pytest.raises((TypeError, ValueError), match=name):
                    kind(**{name: wrong})


def test_other_settings_are_checked():
    for wrong in (None, 5, [], [2, 0], [2.5], "22", [2] * 17, [1024] * 3, [2] * 16):
        with pytest.raises((TypeError, ValueError), match="stride|hop"):
            CodecConfig(strides=wrong, n_filters=32)
    for kind, names in ((CodecConfig, ["norm"]), (LMConfig, ["pattern", "average_streams", "text_padding"])):
        for name in names:
            with pytest.raises((TypeError, ValueError), match=name):
                kind(**{name: ["x"]})
    with pytest.raises(ValueError, match="2.24"):
        LMConfig(n_q=256, max_frames=2**20)
    for name in ("duration", "max_duration", "guidance_scale", "temperature", "top_k", "top_p"):
        for wrong in (None, True, "4", [1], -1, float("nan"), float("inf"), 10**18):
            with pytest.raises((TypeError, ValueError), match=name):
                Generation(**{name: wrong})
    for name in ("longest", "extend_stride"):
        for wrong in (True, "4", -1, float("nan"), 10**18):
            with pytest.raises((TypeError, ValueError), match=name):
                Generation(**{name: wrong})


BOUNDED = """
import resource, sys, time
from audiogen_nb import AudioGen
from audiogen_nb.pipeline import load_audiocraft
pages = int(open("/proc/self/statm").read().split()[0]) if sys.platform == "linux" else 0
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 400_000_000, resource.RLIM_INFINITY))
for folder in sys.argv[1:]:
    start = time.process_time()
    try:
        AudioGen.from_pretrained(folder)
        print("loaded")
    except (ValueError, TypeError) as e:
        print(round(time.process_time() - start, 2), e)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory")
def test_sizes_are_refused_in_a_second_and_without_memory(folder, tmp_path):
    "A language model of 100 GB, a million layers, a codec of 70 TB, and a scale that would spread a matrix"
    wide = dict(dim=2**15, n_layers=8, n_heads=2)
    deep = dict(n_layers=1000)
    codec = dict(dimension=2**16, n_q=256, card=2**20, lstm_layers=64)
    cases = []
    for i, new in enumerate([dict(lm=wide), dict(lm=deep), dict(lm=dict(n_layers=10**6)), dict(codec=codec), dict(codec=dict(n_q=10**9))]):
        cases.append(shutil.copytree(folder, tmp_path / f"case{i}"))
        edit(cases[-1] / "config.json", **new)
    cases.append(shutil.copytree(folder, tmp_path / "scale"))
    state = load_file(cases[-1] / "lm.safetensors")
    name = next(n for n, v in state.items() if v.dim() == 2)
    save_file({**state, name: state[name].to(torch.int8), name + ".scale": torch.ones(3000, *state[name].shape[:1], 1)},
              cases[-1] / "lm.safetensors")
    done = subprocess.run([sys.executable, "-c", BOUNDED, *map(str, cases)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(cases), done.stderr[-2000:]
    for line in lines:
        assert ("does not fit its config.json" in line or "cannot use" in line) and float(line.split()[0]) < 5, line


def test_headers_that_lie(folder):
    path = folder / "codec.safetensors"
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    name = next(k for k in header if k != "__metadata__")
    big = json.dumps({**header, name: {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    for bad in ((2**62).to_bytes(8, "little") + data[8:], len(big).to_bytes(8, "little") + big + data[8 + n:], data[:-4], b""):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="codec.safetensors is damaged"):
            AudioGen.from_pretrained(folder)


def test_json_is_bounded(folder):
    for name in ("config.json", "text/config.json"):
        path = folder / name
        kept = path.read_text()
        for bad in ('{"a":' * 200_000, "[1]", "7", '{"a": "' + "x" * 5_000_000 + '"}', "\udcff".encode("utf-8", "surrogatepass")):
            path.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
            with pytest.raises(ValueError, match="config.json"):
                AudioGen.from_pretrained(folder)
        path.write_text(kept)
    AudioGen.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "codec.safetensors", "lm.safetensors", "text/config.json", "text/vocab.txt",
                                  "text/table.safetensors"])
def test_links_and_pipes_are_not_read(folder, tmp_path, name):
    (tmp_path / "outside").write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="leads out of its folder.*outside"):
        AudioGen.from_pretrained(folder)
    (folder / name).unlink(), os.mkfifo(folder / name)
    with pytest.raises(ValueError):
        AudioGen.from_pretrained(folder)


def test_a_folder_in_the_cache_of_the_hub_links_to_its_blobs(folder, tmp_path):
    home = tmp_path / "models--some--body"
    (home / "blobs").mkdir(parents=True)
    inside = shutil.copytree(folder, home / "snapshots" / "0123")
    for i, path in enumerate([p for p in inside.rglob("*") if p.is_file()]):
        path.rename(home / "blobs" / str(i))
        path.symlink_to(os.path.relpath(home / "blobs" / str(i), path.parent))
    AudioGen.from_pretrained(inside)


@pytest.mark.parametrize("config, message", [
    (dict(name="../../secret"), "no other path is read"), (dict(name="/etc/passwd"), "no other path is read"),
    (dict(name="some/body"), "without its revision"), (dict(name="some/body", revision="main"), "without its revision"),
    (dict(name="some/body", revision="z" * 40), "without its revision"), (dict(name=["t5-base"]), "no other path is read"),
    (dict(max_length=10**12), "max_length"), (dict(normalise="yes"), "normalise"), (dict(type=["hf"]), "known")])
def test_a_text_encoder_may_not_lead_elsewhere(folder, config, message):
    (folder / "text" / "config.json").write_text(json.dumps({"type": "hf", "name": None, **config}))
    with pytest.raises((ValueError, TypeError), match=message):
        AudioGen.from_pretrained(folder)


def test_a_pinned_encoder_is_asked_for_as_safetensors_of_that_revision(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps({"type": "hf", "name": "some/body", "revision": "0" * 40}))
    asked = []

    def ask(name, **options):
        asked.append((name, options))
        raise OSError("no network")
    for kind in (transformers.AutoTokenizer, transformers.AutoConfig):
        monkeypatch.setattr(kind, "from_pretrained", ask)
    with pytest.raises(FileNotFoundError, match="some/body"):
        load_text_encoder(tmp_path)
    assert asked == [("some/body", {"trust_remote_code": False, "revision": "0" * 40})]
    (tmp_path / "some" / "body").mkdir(parents=True), monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a folder of that name is here"):
        load_text_encoder(tmp_path)


def test_a_checkpoint_names_no_encoder_of_its_own(root):
    from audiogen_nb.peers.audiocraft import read_audiocraft
    from audiogen_nb.peers import audiocraft
    parity, read = root / "tests" / "data" / "parity", audiocraft.read_checkpoint

    def evil(path):
        found = read(path)
        found.config.setdefault("conditioners", {})["description"] = {"model": "t5", "t5": {"name": "evil/body"}}
        return found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(audiocraft, "read_checkpoint", evil)
        with pytest.raises(ValueError, match="evil/body"):
            read_audiocraft(parity)


def test_weight_maps_stay_in_their_folder(tmp_path):
    from audiogen_nb.peers.musicgen import _read_state
    index = tmp_path / "model.safetensors.index.json"
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors")
    (tmp_path / "link.safetensors").symlink_to("/etc/passwd")
    for file, message in (("../a", "names '../a'"), ("/etc/passwd", "names '/etc/passwd'"), ("link.safetensors", "leads out"), (7, "weight_map"),
                          ("b.safetensors", "b.safetensors is missing")):
        index.write_text(json.dumps({"weight_map": {"w": file}}))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            _read_state(tmp_path)
    index.write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    assert _read_state(tmp_path).keys() == {"w"}


class Runs:
    "Pickled, it calls what it was given"
    def __init__(self, *call): self.call = call
    def __reduce__(self): return self.call


@pytest.mark.parametrize("old", [False, True])
def test_pickles_are_read_without_memory_or_code(tmp_path, old):
    from audiogen_nb.peers.pickles import read_checkpoint
    path, mark = tmp_path / "state_dict.bin", tmp_path / "ran"
    for value, message in ((torch.zeros(1).expand(10**6, 10**6), "claims more than its 1"), (Runs(os.mkdir, (str(mark),)), "mkdir"),
                           (Runs(bytearray, (10**12,)), "bytearray"), (Runs(torch.FloatStorage, (10**12,)), "damaged|refused")):
        torch.save({"best_state": {"w": value}, "xp.cfg": "a: 1"}, path, _use_new_zipfile_serialization=not old)
        start = time.process_time()
        with pytest.raises(ValueError, match=message):
            read_checkpoint(path)
        assert not mark.exists() and time.process_time() - start < 5
    memo = b"\x80\x02" + b"N" + b"r\xff\xff\xff\x7f" + b"."                        # remember None under the number 2^31 - 1
    if old:
        path.write_bytes(memo)
    else:
        torch.save({"best_state": {"w": torch.zeros(3)}, "xp.cfg": "a: 1"}, path)
        with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "x", "w") as target:
            for part in source.infolist():
                target.writestr(part.filename, memo if part.filename.endswith("data.pkl") else source.read(part))
        shutil.move(tmp_path / "x", path)
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)


def test_compressed_archives_and_names_that_lead_out_are_refused(tmp_path):
    from audiogen_nb.peers.pickles import read_checkpoint
    path = tmp_path / "state_dict.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2)), archive.writestr("a/data/0", bytes(10**7))
    with pytest.raises(ValueError, match="do not add up"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2)), archive.writestr("../../out", b"x")
    with pytest.raises(ValueError, match=r"'\.\./\.\./out'"):
        read_checkpoint(path)


def test_adapters_of_others_are_checked(tiny, tmp_path):
    pytest.importorskip("peft")
    from audiogen_nb.train.lora import LoRATraining, adapters, merge_lora
    with adapters(tiny, LoRATraining(rank=2)) as adapted:
        adapted.save_pretrained(tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    merge_lora(tiny, tmp_path / "adapter")
    kept = config.read_text()
    for new in (dict(r=10**9), dict(r="2"), dict(r=3), dict(peft_type="LOHA"), dict(use_dora=True), dict(rank_pattern={"a": 10**6})):
        config.write_text(json.dumps({**json.loads(kept), **new}))
        with pytest.raises((ValueError, TypeError)):
            merge_lora(tiny, tmp_path / "adapter")
    config.write_text(json.dumps({**json.loads(kept), "target_modules": "(a+)+$"}))     # the names in the file count, no pattern
    merge_lora(tiny, tmp_path / "adapter")


def test_loading_leaves_the_random_numbers_alone(folder):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    AudioGen.from_pretrained(folder)
    assert torch.equal(torch.rand(3), expected)


def test_what_a_killed_process_left_is_swept_and_what_was_put_aside_comes_back(tmp_path):
    for name in (".a.wav.0123abcd.part", ".mine.0123abcd.new", ".keep.me", ".a.wav.0123abcd.mine"):
        (tmp_path / name).touch()
    (tmp_path / ".old.0123abcd.old").mkdir()
    sweep_stale(tmp_path, 60)
    assert len(list(tmp_path.iterdir())) == 5
    sweep_stale(tmp_path, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.wav.0123abcd.mine", ".keep.me", "old"]


def test_a_layout_is_told_from_a_bounded_file(tmp_path):
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="leads out"):
        layout_of(tmp_path)
