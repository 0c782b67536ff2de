"""Sounds on disk and the stream of training items: parts equal the whole, an item is a function of its number, workers come and go."""
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from contextlib import suppress
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiogen_nb.data import refs as on_disk
from audiogen_nb.data.clips import Clip, SoundFolder, split_clips
from audiogen_nb.data.mixing import join_captions, random_mix
from audiogen_nb.data.refs import MARGIN, ClipRef, PackedRefs, SoundSet, read_part
from audiogen_nb.data.stream import CaptionedCrops, Mixing, OwnItems, check_groups, crops_loader, draw_item, fill_clip
from audiogen_nb.data.toy_kinds import ToyWorld
from audiogen_nb.sampling.request import step_generator
from audiogen_nb.sound import level_db, load_audio, save_audio, set_level
from audiogen_nb.soundfiles import read_mono, sound_length

RATE = 16_000
KINDS = {"a.wav": {}, "b.wav": dict(subtype="FLOAT"), "c.wav": dict(subtype="GSM610"), "d.wav": dict(subtype="IMA_ADPCM"), "e.flac": {},
         "f.ogg": {}, "g.opus": dict(format="OGG", subtype="OPUS"), "h.mp3": dict(format="MP3"), "i.aiff": {}}


def noise(n, channels=1, seed=0):
    "White noise (n, channels)"
    return np.random.default_rng(seed).uniform(-0.3, 0.3, (n, channels)).astype("float32")


def write(path, samples, rate, **kind):
    "A file in blocks, as encoders want it"
    with soundfile.SoundFile(path, "w", rate, samples.shape[1], **kind) as out:
        for at in range(0, len(samples), 4096):
            out.write(samples[at:at + 4096])
    return path


@pytest.fixture(scope="module")
def minute(tmp_path_factory):
    "A minute of noise at 16 kHz, as WAV"
    return write(tmp_path_factory.mktemp("minute") / "minute.wav", noise(60 * RATE), RATE)


@pytest.fixture(scope="module")
def world():
    "Toy clips of 1 to 3 s in memory"
    return [clip for seconds in (1.0, 2.0, 3.0) for clip in ToyWorld(6, seed=0, duration=seconds)]


@pytest.fixture(scope="module")
def kept(world, tmp_path_factory):
    "The same on disk"
    folder = tmp_path_factory.mktemp("kept")
    return SoundSet([ClipRef(save_audio(folder / f"{i}.wav", clip.audio, RATE), clip.captions, clip.kind, name=str(i))
                     for i, clip in enumerate(world)], RATE)


# Parts of files

@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
@pytest.mark.parametrize("name", KINDS)
def test_a_part_is_what_the_whole_has_there(tmp_path, name, rate, capfd):
    rate = 48_000 if name == "g.opus" and rate == 44_100 else rate
    channels = 1 if name == "c.wav" else 2
    path = write(tmp_path / name, noise(70_077, channels), rate, **KINDS[name])
    whole, n = read_mono(path)[0], sound_length(path)[0]
    assert len(whole) == n
    for start in [0, 1, 1151, 1152, *range(4000, n, n // 40), n - 2000, n - 500, n - 10, n - 1]:
        part, same = read_mono(path, start, 700)
        assert same == rate and len(part) == len(whole[start:start + 700])
        assert abs(part - whole[start:start + 700]).max() < 1e-6, start
    assert len(read_mono(path, n + 5, 10)[0]) == 0 and len(read_mono(path, 5, 0)[0]) == 0
    assert np.array_equal(read_mono(path, n - 100)[0][-50:], read_mono(path, n - 50)[0])


@pytest.mark.parametrize("rate", [11_025, 24_000])
def test_a_whole_mp3_is_one_piece(tmp_path, rate):
    "Read in blocks, it equals what one call reads: no decoder starts anew between blocks"
    path = write(tmp_path / "a.mp3", noise(200_000), rate, format="MP3")
    assert abs(read_mono(path)[0] - soundfile.read(path, dtype="float32")[0]).max() < 1e-6


@pytest.mark.parametrize("from_rate", [8_000, 22_050, 44_100, 48_000, 44_099, 15_999])
def test_a_resampled_part_is_what_the_resampled_whole_has_there(tmp_path, from_rate):
    path = write(tmp_path / "a.wav", noise(3 * from_rate + 50), from_rate)
    whole, _ = load_audio(path, RATE)
    n = whole.shape[-1]
    for start, length in ((0, 1), (0, 100), (7, 3), (16_001, 4000), (30_000, None), (n - 10, 100), (n - 1, 1), (n, 5)):
        part = read_part(path, RATE, start, length)
        expected = whole[:, start:][:, :length]
        assert part.shape == expected.shape
        # the same products are summed: float32 rounds to 2^-24, soxr computes with 20 bits
        assert not part.numel() or (part - expected).abs().max() <= 2 ** -20 * whole.abs().max(), (start, length)


def test_no_more_is_decoded_than_is_needed(tmp_path, monkeypatch):
    path = write(tmp_path / "a.flac", noise(20 * 44_100), 44_100)
    read = []
    monkeypatch.setattr(on_disk, "read_mono", lambda path, start, n: read.append(n) or read_mono(path, start, n))
    ClipRef(path, ("noise",)).load(RATE, 10.0, 1.0)
    block = 441 * -(-MARGIN // 160)
    assert read[0] <= 44_100 + 2 * block + 441


def test_a_header_that_lies(tmp_path):
    whole = write(tmp_path / "a.wav", noise(RATE), RATE).read_bytes()
    (tmp_path / "short.wav").write_bytes(whole[:44 + 2 * 4000])                         # a quarter of what the header says
    ref = ClipRef(tmp_path / "short.wav", ("noise",))
    assert ref.load(RATE).audio.shape[-1] == 4000 and ref.seconds == 0.25
    with pytest.raises(ValueError, match="no sound from 0.5 s on"):
        ref.load(RATE, 0.5)
    flac = write(tmp_path / "a.flac", noise(4 * RATE), RATE).read_bytes()
    (tmp_path / "short.flac").write_bytes(flac[:len(flac) // 4])
    with pytest.raises(ValueError, match="short.flac"):
        ClipRef(tmp_path / "short.flac", ("noise",)).load(RATE, 3.0, 0.5)


def test_what_a_reference_refuses(minute, tmp_path):
    for start, end in ((-1.0, None), (5.0, 5.0), (5.0, 4.0), (float("nan"), None)):
        with pytest.raises(ValueError, match="must start"):
            ClipRef(minute, ("noise",), start=start, end=end)
    for wrong in (dict(captions="noise"), dict(captions=("noise",), labels="noise")):
        with pytest.raises(TypeError, match="tuples"):
            ClipRef(minute, **wrong)
    late = ClipRef(minute, ("noise",), start=60.0)
    for ask in (lambda: late.seconds, lambda: late.load(RATE)):
        with pytest.raises(ValueError, match="no sound"):
            ask()
    ref = ClipRef(minute, ("noise",), start=10.0, end=12.0)
    for offset, seconds in ((-1.0, None), (0.0, -1.0), (float("nan"), None), (2.0, 1.0), (0.0, 0.0)):
        with pytest.raises(ValueError):
            ref.load(RATE, offset, seconds)
    with pytest.raises(FileNotFoundError, match="nowhere.wav"):
        ClipRef(tmp_path / "nowhere.wav", ("noise",)).load(RATE)


def test_a_reference_ends_with_its_file(minute):
    ref = ClipRef(minute, ("noise",), start=55.0, end=70.0)
    assert ref.seconds == 5.0 and ref.load(RATE).seconds == 5.0 and ref.load(RATE, 4.0, 9.0).seconds == 1.0


# Sets

def test_a_set_is_a_sequence_of_clips(kept, world):
    assert len(kept) == len(world) and [c.captions for c in kept] == [c.captions for c in world]
    assert all((a.audio - b.audio).abs().max() < 2 ** -14 for a, b in zip(kept, world))             # 16 bits
    assert kept[-1].name == str(len(world) - 1) and [c.name for c in kept[1:3]] == ["1", "2"]
    assert kept.seconds == pytest.approx(sum(clip.seconds for clip in world))
    for wrong in (len(kept), -len(kept) - 1):
        with pytest.raises(IndexError):
            kept[wrong]


def test_references_come_back_as_they_were(minute):
    odd = Path(os.fsdecode(b"/data/\xff\xfe.wav"))                                                  # a name that is not UTF-8
    refs = [ClipRef(minute, ("犬が吠える", "a dog"), "dog", 1.5, 2.25, "n", "g", "s", ("Bark", "Dog")), ClipRef(odd, ())]
    packed = PackedRefs(iter(refs))
    assert list(packed) == refs and packed[-2:] == refs and not len(PackedRefs([]))
    assert list(pickle.loads(pickle.dumps(packed))) == refs
    sent = ForkingPickler.dumps(PackedRefs(refs * 10_000))                       # to a worker that is spawned: a handle, no copy
    assert len(sent) < 10_000


def test_what_a_set_knows_of_itself(kept, minute, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    broken = SoundSet([ClipRef(minute, ("noise",)), ClipRef(tmp_path / "bad.wav", ("x",))], RATE, {"3": "not there"}, "a test")
    with pytest.warns(UserWarning, match="1 of 2 clips cannot be read"):
        assert broken.durations.tolist() == [60.0, 0.0]
    assert broken.missing == {"3": "not there"} and broken.about == "a test"
    train, held_out = split_clips(kept.refs, 0.3)
    assert train and held_out and {type(r) for r in train + held_out} == {ClipRef}


def test_a_folder_has_references(tmp_path):
    for name in ("dog/bark.wav", "rain.flac"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_audio(tmp_path / name, torch.from_numpy(noise(RATE).T), RATE)
    folder = SoundFolder(tmp_path, RATE)
    for clip, again in zip(folder, SoundSet(folder.refs, RATE), strict=True):
        assert torch.equal(clip.audio, again.audio)
        assert all(getattr(clip, f) == getattr(again, f) for f in ("captions", "kind", "source", "name", "group"))


# Items

def drawn_as_before(groups, n_samples, mix_probability, generator):
    "The draw as it was when all clips lay in memory: trainings rely on it to the bit"
    weights = torch.tensor([w for w, _ in groups])

    def one():
        clips = groups[torch.multinomial(weights, 1, generator=generator).item()][1]
        clip = clips[torch.randint(len(clips), (1,), generator=generator).item()]
        return set_level(fill_clip(clip.audio, n_samples, clip.sample_rate, generator), -20.0), list(clip.captions)
    audio, captions = one()
    if torch.rand(1, generator=generator).item() < mix_probability:
        other, more = one()
        audio = random_mix(audio, other, generator)
        captions = [join_captions(a, more[i % len(more)]) for i, a in enumerate(captions)]
    return set_level(audio, -26 + 8 * torch.rand(1, generator=generator).item()), captions


def test_items_in_memory_are_what_they_were(world):
    groups = [(0.7, world[:8]), (0.3, world[8:])]
    crops = CaptionedCrops(groups, 24_000, RATE, Mixing(0.5), seed=3)
    for i in range(40):
        audio, captions = drawn_as_before(groups, 24_000, 0.5, step_generator(3, i))
        assert torch.equal(crops[i][0], audio) and crops[i][1] == captions
        again = draw_item(groups, 24_000, 0.5, step_generator(3, i))
        assert torch.equal(again[0], audio) and again[1] == captions


def test_items_from_disk_are_those_from_memory(kept):
    held = list(kept)
    for fill in (True, False):
        disk, memory = (CaptionedCrops([(1.0, clips)], 16_000, RATE, fill=fill) for clips in (kept, held))     # of 1 to 3 crops
        for i in range(30):
            assert torch.equal(disk[i][0], memory[i][0]) and disk[i][1] == memory[i][1]
    listed = CaptionedCrops([(1.0, list(kept.refs))], 16_000, RATE)
    assert torch.equal(listed[5][0], CaptionedCrops([(1.0, kept)], 16_000)[5][0])


def test_a_long_clip_is_read_by_a_window(minute, monkeypatch):
    read = []
    monkeypatch.setattr(on_disk, "read_mono", lambda path, start, n: read.append((start, n)) or read_mono(path, start, n))
    crops = CaptionedCrops([(1.0, [ClipRef(minute, ("noise",))])], 8_000, RATE, Mixing(0.0), window=2.0)
    whole = load_audio(minute)[0]
    for i in range(20):
        crop = crops[i][0][0]
        (start, n), read[:] = read[-1], []
        assert n == 16_000
        places = whole[0, start:start + n].unfold(0, 8_000, 1)[:, 1000:1200]                # away from the fades
        likeness = torch.cosine_similarity(places, crop[None, 1000:1200])
        assert likeness.max() > 0.9999
    starts = [CaptionedCrops([(1.0, [ClipRef(minute, ("noise",))])], 8_000, RATE, seed=s)[0] and read[-1][0] for s in range(30)]
    assert min(starts) < 10 * RATE and max(starts) > 45 * RATE                      # from anywhere


def test_silence_is_drawn_again(tmp_path):
    sound = torch.zeros(1, 20 * RATE)
    sound[:, :5 * RATE] = torch.from_numpy(noise(5 * RATE).T)                      # a quarter of the places
    crops = CaptionedCrops([(1.0, [ClipRef(save_audio(tmp_path / "a.wav", sound, RATE), ("noise",))])], RATE, RATE, window=1.0)
    heard = sum(crops[i][0].abs().max().item() > 0 for i in range(100))
    assert heard > 55                              # 1 - 0.72^5 = 0.8 of them; without another draw it would be 0.28
    save_audio(tmp_path / "silent.wav", torch.zeros(1, 2 * RATE), RATE)
    silent = CaptionedCrops([(1.0, [ClipRef(tmp_path / "silent.wav", ("nothing",))])], RATE, RATE)
    assert not silent[0][0].any()                                                  # nothing else is there: so be it


def test_what_cannot_be_read_is_left_out(kept, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    refs = [*kept.refs[:3], ClipRef(tmp_path / "bad.wav", ("bad",)), ClipRef(tmp_path / "gone.wav", ("gone",))]
    crops = CaptionedCrops([(1.0, list(kept)), (1.0, refs)], 16_000, RATE)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        items = [crops[i] for i in range(60)]
    assert len(said) == 2 and crops.unreadable == [(1, 3), (1, 4)]
    assert not {"bad", "gone"} & {c for _, captions in items for c in captions}
    again = CaptionedCrops([(1.0, list(kept)), (1.0, refs)], 16_000, RATE)
    with pytest.warns(UserWarning):
        assert torch.equal(again[59][0], items[59][0]) and [again[i] for i in range(30)]
    strict = CaptionedCrops([(1.0, refs)], 16_000, RATE, max_unreadable=1)
    with pytest.raises(ValueError, match="more than 1 clips"), pytest.warns(UserWarning):
        [strict[i] for i in range(60)]
    with pytest.raises(ValueError, match="in a row"), pytest.warns(UserWarning):
        CaptionedCrops([(1.0, refs[3:])], 16_000, RATE)[0]


def test_each_setting_of_the_mix_is_heard(world):
    def items(**settings):
        crops = CaptionedCrops([(1.0, world)], 16_000, RATE, Mixing(1.0, **settings))
        return [crops[i] for i in range(12)]
    usual = items()
    for change in (dict(snr_low=4.0), dict(snr_high=-4.0), dict(min_overlap=0.0)):
        assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(usual, items(**change)))
    captions = [c for _, said in items(joiners=(" then ", " over ")) for c in said]
    assert any(" then " in c for c in captions) and any(" over " in c for c in captions)
    assert not any(" then " in c or " over " in c for _, said in usual for c in said)
    clips = [Clip(world[0].audio, RATE, (), "none"), *world[:1]]                       # one without words
    assert {c for i in range(20) for c in CaptionedCrops([(1.0, clips)], 16_000, RATE, Mixing(1.0))[i][1]} <= set(world[0].captions)


def test_each_setting_of_the_crops_is_heard(world, kept):
    usual = dict(n_samples=16_000, sample_rate=RATE, mixing=Mixing(0.0))
    item = CaptionedCrops([(1.0, kept)], **usual)[7][0]
    for change in (dict(seed=1), dict(fill=False), dict(duration_power=1.0), dict(level=(-50.0, -40.0)), dict(n_samples=8_000)):
        others = [CaptionedCrops([(1.0, kept)], **usual | change)[i][0] for i in (7, 8, 9)]
        assert others[0].shape != item.shape or not torch.equal(others[0], item), change
    quiet = CaptionedCrops([(1.0, kept)], **usual | dict(level=(-50.0, -40.0)))
    assert all(-50.1 < level_db(quiet[i][0]).item() < -39.9 for i in range(20))
    resampled = CaptionedCrops([(1.0, kept)], 8_000, 8_000, Mixing(0.0))[0][0]
    assert resampled.shape == (1, 8_000)


def test_long_clips_are_drawn_more_often_if_asked(minute):
    kept = [ClipRef(minute, (str(seconds),), end=seconds) for seconds in (1.0, 2.0, 3.0)]
    for clips in (kept, [ref.load(RATE) for ref in kept]):
        for power, mean in ((0.0, 2.0), (1.0, 14 / 6)):                        # (1 + 2 + 3) / 3, (1 + 4 + 9) / 6
            crops = CaptionedCrops([(1.0, clips)], 1_600, RATE, Mixing(0.0), duration_power=power)
            drawn = [float(crops[i][1][0]) for i in range(600)]
            assert abs(sum(drawn) / 600 - mean) < 4 * 0.82 / 600 ** 0.5            # four standard errors, at most


def test_what_cannot_be_drawn_is_refused(world, kept):
    for groups in ([], [(0.0, world)], [(1.0, [])], [(-1.0, world)]):
        with pytest.raises(ValueError):
            check_groups(groups)
    assert check_groups([(1.0, world), (0.0, [])]) == [1.0, 0.0]
    for wrong in (dict(probability=1.5), dict(snr_low=6.0), dict(min_overlap=2.0), dict(joiners=()), dict(joiners=" and ")):
        with pytest.raises(ValueError):
            Mixing(**wrong)
    for wrong in (dict(n_samples=0), dict(level=(-10.0, -20.0)), dict(level=(-10.0, 3.0)), dict(window=0.5), dict(duration_power=2.0)):
        with pytest.raises(ValueError):
            CaptionedCrops([(1.0, world)], **dict(n_samples=100) | wrong)
    with pytest.raises(ValueError, match="resample first"):
        CaptionedCrops([(1.0, world)], 100, 44_100)[0]
    with pytest.raises(ValueError, match="number of an item"):
        CaptionedCrops([(1.0, world)], 100)[-1]


# Who draws what

def test_processes_share_the_batches_of_one():
    alone = list(OwnItems(12, 3, 8))
    assert alone == [list(range(12 * n, 12 * n + 12)) for n in range(3, 8)] and len(OwnItems(12, 3, 8)) == 5
    for world_size in (2, 3):
        parts = [list(OwnItems(12, 3, 8, rank, world_size)) for rank in range(world_size)]
        assert [sum(step, []) for step in zip(*parts)] == alone
    assert next(iter(OwnItems(4, 10 ** 9))) == [4 * 10 ** 9 + k for k in range(4)]
    assert not list(OwnItems(4, 9, 5)) and len(OwnItems(4, 9, 5)) == 0
    for wrong in (dict(batch_size=5, world_size=2), dict(batch_size=4, rank=2, world_size=2), dict(batch_size=0), dict(batch_size=4, first_step=-1)):
        with pytest.raises(ValueError):
            OwnItems(**wrong)
    with pytest.raises(TypeError, match="no end"):
        len(OwnItems(4))


def batches(dataset, n_steps=4, **settings):
    return list(crops_loader(dataset, 4, n_steps=n_steps, **settings))


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) and s == t for (x, s), (y, t) in zip(a, b))


def test_batches_do_not_depend_on_workers_processes_and_stops(kept, world):
    crops = CaptionedCrops([(1.0, kept), (1.0, world)], 8_000, RATE)
    state = torch.get_rng_state()
    alone = batches(crops)
    assert alone[0][0].shape == (4, 1, 8_000) and len(alone[0][1]) == 4 and isinstance(alone[0][1][0], list)
    for n_workers in (1, 2):
        assert same(batches(crops, n_workers=n_workers, prefetch=1), alone)
    assert same(batches(crops, n_workers=1, context="spawn"), alone)
    assert same(batches(crops, first_step=2, n_workers=2), alone[2:])
    halves = [batches(crops, rank=rank, world_size=2, n_workers=rank) for rank in range(2)]
    assert same([(torch.cat([a, b]), s + t) for (a, s), (b, t) in zip(*halves)], alone)
    assert torch.equal(torch.get_rng_state(), state)                          # the training's own random numbers are untouched
    endless = crops_loader(crops, 4, n_workers=1)
    assert same(list(islice(endless, 4)), alone)


def test_items_do_not_depend_on_threads(kept):
    crops = CaptionedCrops([(1.0, kept)], 40_000, RATE)
    before = torch.get_num_threads()
    found = []
    for n in (1, 2):
        torch.set_num_threads(n)
        found.append([crops[i][0] for i in range(5)])
        assert torch.get_num_threads() == n
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found))


class Threads(torch.utils.data.Dataset):
    "What a worker computes with"
    def __getitem__(self, i):
        return torch.tensor([[torch.get_num_threads(), signal.getsignal(signal.SIGINT) == signal.SIG_IGN]]).float(), []


def test_a_worker_has_one_thread_and_leaves_interrupts_alone():
    assert all(audio.flatten(1).tolist() == [[1.0, 1.0]] * 2 for audio, _ in crops_loader(Threads(), 2, n_steps=3, n_workers=1))


def test_a_loop_that_is_left_leaves_no_process_behind(kept):
    crops = CaptionedCrops([(1.0, kept)], 8_000, RATE)
    before = set(multiprocessing.active_children())
    for audio, _ in crops_loader(crops, 4, n_workers=2):
        break
    deadline = time.monotonic() + 20
    while set(multiprocessing.active_children()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert set(multiprocessing.active_children()) == before


def test_faults_are_counted_over_all_workers_and_reach_the_training(kept, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    refs = [*kept.refs, ClipRef(tmp_path / "bad.wav", ("bad",))]
    crops = CaptionedCrops([(1.0, refs)], 8_000, RATE)
    batches(crops, n_steps=30, n_workers=2)
    assert crops.unreadable == [(0, len(kept))]
    strict = CaptionedCrops([(1.0, refs)], 8_000, RATE, max_unreadable=0)
    with pytest.raises(ValueError, match="bad.wav"):
        batches(strict, n_steps=30, n_workers=1)


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)             # a shell's background jobs ignore Ctrl-C
from audiogen_nb.data.stream import CaptionedCrops, crops_loader
from audiogen_nb.data.refs import ClipRef
from pathlib import Path
crops = CaptionedCrops([(1.0, [ClipRef(Path(sys.argv[1]), ("noise",))])], 8_000, 16_000)
for n, _ in enumerate(crops_loader(crops, 4, n_workers=2)):
    if n == 3:
        import multiprocessing
        print(*[p.pid for p in multiprocessing.active_children()], flush=True)
"""


def interrupted(minute, folder, n_interrupts=4):
    "Workers of a run that got Ctrl-C, what it said, and whether it ended; one that did not says where it stands"
    with open(folder / "said", "w+", encoding="utf-8") as said:       # a pipe would stay open as long as a worker lives
        run = subprocess.Popen([sys.executable, "-X", "faulthandler", "-c", INTERRUPTED, minute], stdout=subprocess.PIPE, stderr=said,
                               text=True, start_new_session=True)
        workers, ended = [int(pid) for pid in run.stdout.readline().split()], False
        for _ in range(n_interrupts):                                   # Python loses an interrupt that falls into a destructor
            os.killpg(run.pid, signal.SIGINT)                           # as a terminal does: to all of them
            try:
                run.wait(timeout=20)                                    # a loaded machine is slow, not stuck
                ended = True
                break
            except subprocess.TimeoutExpired:
                continue
        if not ended:
            run.send_signal(signal.SIGABRT)
            run.wait(timeout=20)
            for pid in workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        run.stdout.close()
        said.seek(0)
        return workers, said.read(), ended


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_ends_the_run_and_its_workers(minute, tmp_path):
    workers, said, ended = interrupted(minute, tmp_path)
    assert ended, "the run did not end at Ctrl-C; where it stood:\n" + said
    # one for the run, none for its workers (a worker that was handing over data may say that its pipe broke)
    assert len(workers) == 2 and said.splitlines().count("KeyboardInterrupt") == 1, said
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_rare_kinds_are_drawn_as_often_as_asked(balance):
    clips = [Clip(torch.full((1, 400), 0.1 + 0.8 * (kind == "rare")), RATE, (kind,), kind, name=f"{kind}/{i}")
             for kind, n in (("common", 16), ("rare", 1)) for i in range(n)]
    crops = CaptionedCrops([(1.0, clips)], 400, RATE, Mixing(0.0), balance=balance)
    n = 2000
    share = sum(crops[i][1] == ["rare"] for i in range(n)) / n
    expected = 1 / (1 + 16 ** (1 - balance))
    assert abs(share - expected) < 5 * (expected * (1 - expected) / n) ** 0.5


@pytest.mark.parametrize("balance", [-0.1, 1.5, "all"])
def test_a_balance_that_is_none_is_refused(balance):
    with pytest.raises((ValueError, TypeError), match="balance"):
        CaptionedCrops([(1.0, [Clip(torch.ones(1, 400), RATE, ("a",), "a")])], 400, RATE, balance=balance)
