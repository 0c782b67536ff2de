"""Data sets of others: a miniature of each layout is read as its makers meant it; what is missing is named, what is wrong refused."""
import json
import os
import pickle
import re
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiogen_nb.data import split_clips
from audiogen_nb.data.clips import SoundFolder
from audiogen_nb.data.datasets import DATASETS, labels_to_caption, read_dataset

RATE = 16_000
ID = "Ab-cdEfghi_"                      # of a video


def sound(path, seconds=1.0, hz=440.0, rate=RATE):
    "A sine"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate), rate)
    return path


def table(path, text, encoding="utf-8"):
    "A table, its lines stripped"
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(line.strip() for line in text.strip().splitlines()).encode(encoding) + b"\n")
    return path


def read(name, root, split, **options):
    "A set that must be whole"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_dataset(name, root, split, **options)


def read_partial(name, root, split, **options):
    "(set, its one warning)"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = read_dataset(name, root, split, **options)
    assert len(said) == 1, [str(w.message) for w in said]
    assert name == "audiofolder" or said[0].filename == __file__, "the warning points at the caller"
    return found, str(said[0].message)


# Miniatures

def audiocaps(root):
    for split, rows in {"train": f"1,{ID},30,A dog barks", "test": f'7,{ID},40,"A man says ""hi"", and waits"',
                        "val": "\n".join(f"{n},vfY_TJq7n_U,130,Caption {n}" for n in range(2, 7))}.items():
        table(root / f"dataset/{split}.csv", f"audiocap_id,youtube_id,start_time,caption\n{rows}")
    sound(root / f"audio/train/{ID}_30.flac"), sound(root / f"audio/test/{ID}_40.wav")
    sound(root / "audio/val/vfY_TJq7n_U_130.wav")


def clotho(root):
    for split in ("development", "validation", "evaluation"):
        table(root / f"clotho_captions_{split}.csv", f"""
            file_name,caption_1,caption_2,caption_3,caption_4,caption_5
            Café in the rain.wav,Rain ({split}),It rains,"Rain, more rain",A  steady rain ,Water falls""")
        table(root / f"clotho_metadata_{split}.csv", """
            file_name,keywords,sound_id,sound_link,start_end_samples,manufacturer,license
            Café in the rain.wav,rain; café ;roof,338297,x,"[4628992, 5298288]",firanthir,http://cc/by""", "latin-1")
        sound(root / split / "Café in the rain.wav", {"development": 1, "validation": 2, "evaluation": 3}[split])


def esc50(root):
    rows = [(f"{fold}-{100 + fold}-{take}-{fold}.wav", fold, kind, 100 + fold, take)
            for fold, kind in enumerate(["dog", "crackling_fire", "rain", "rooster", "sea_waves"], 1) for take in "AB"]
    table(root / "meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take\n"
          + "\n".join(f"{name},{fold},{fold},{kind},False,{source},{take}" for name, fold, kind, source, take in rows))
    for name, *_ in rows:
        sound(root / "audio" / name)


def fsd50k(root):
    table(root / "FSD50K.ground_truth/dev.csv", """
        fname,labels,mids,split
        64760,"Bark,Dog,Domestic_animals_and_pets,Animal","/m/05tny_,/m/0bt9lr,/m/068hy,/m/0jbk",train
        16399,Rain,/m/06mb1,val""")
    table(root / "FSD50K.ground_truth/eval.csv", "fname,labels,mids\n37199,\"Chink_and_clink\",/m/07q0yl5")
    table(root / "FSD50K.ground_truth/vocabulary.csv", "0,Bark,/m/05tny_")
    table(root / "FSD50K.metadata/dev_clips_info_FSD50K.json",
          json.dumps({"64760": {"title": "x", "uploader": "alice", "license": "http://cc/zero"}}))
    sound(root / "FSD50K.dev_audio/64760.wav"), sound(root / "FSD50K.dev_audio/16399.wav")
    sound(root / "FSD50K.eval_audio/37199.wav")


def audioset(root):
    table(root / "class_labels_indices.csv", """
        index,mid,display_name
        0,/m/09x0r,"Speech"
        73,/m/068hy,"Domestic animals, pets"
        74,/m/0bt9lr,"Dog\"""")
    for i, split in enumerate(("balanced_train", "unbalanced_train", "eval")):
        table(root / f"{split}_segments.csv", f"""
            # Segments csv created Sun Mar  5 10:54:25 2017
            # num_ytids=1, num_segs=1, num_unique_labels=2, num_positive_labels=2
            # YTID, start_seconds, end_seconds, positive_labels
            -{i}RWZT-miFs, 30.000, 40.000, "/m/068hy,/m/0bt9lr"
            """)
        sound(root / f"audio/{split}/Y-{i}RWZT-miFs.wav", 10.0)


def vggsound(root):
    table(root / "vggsound.csv", f'{ID},30,"railroad car, train wagon",train\n--0PQM4-hqg,7,waterfall burbling,test')
    sound(root / f"audio/{ID}_000030.wav"), sound(root / "audio/--0PQM4-hqg_000007.wav")


def wavcaps(root):
    for folder, name, key in (("AudioSet_SL", "as", f"Y{ID}.wav"), ("BBC_Sound_Effects", "bbc", "NHU05"),
                              ("FreeSound", "fsd", "2218"), ("SoundBible", "sb", "2218")):
        table(root / f"json_files/{folder}/{name}_final.json", json.dumps({"num_captions_per_audio": 1, "data": [
            {"id": key, "caption": f"A sound of {folder}.", "duration": 1.0, "file_name": "a/b.mp3"}]}))
        sound(root / folder / f"{key.removesuffix('.wav')}.flac", {"fsd": 1.0, "sb": 2.0}.get(name, 1.0))


def audiofolder(root):
    table(root / "train/metadata.csv", "file_name,caption,caption_2\na/1.wav,a dog barks,barking\n2.wav,rain,it rains")
    table(root / "test/metadata.jsonl", '{"file_name": "3.wav", "text": "a bell"}')
    sound(root / "train/a/1.wav"), sound(root / "train/2.wav"), sound(root / "test/3.wav")
    sound(root / "valid/dog/0001.wav")


MINIATURES = dict(audiocaps=audiocaps, clotho=clotho, esc50=esc50, fsd50k=fsd50k, audioset=audioset, vggsound=vggsound,
                  wavcaps=wavcaps, audiofolder=audiofolder)


@pytest.fixture
def made(tmp_path):
    "Make the miniature of a data set: its folder"
    def make(name):
        MINIATURES[name](tmp_path / name)
        return tmp_path / name
    return make


# What each layout says

# name, split: (name, captions, labels, kind, group, part of the source) of its first clip, and how many clips
READ = {
    ("audiocaps", "train"): (f"{ID}_30", ("A dog barks",), (), "other", f"youtube/{ID}", "academic", 1),
    ("audiocaps", "test"): (f"{ID}_40", ('A man says "hi", and waits',), (), "other", f"youtube/{ID}", "AudioCaps | ", 1),
    ("audiocaps", "val"): ("vfY_TJq7n_U_130", tuple(f"Caption {n}" for n in range(2, 7)), (), "other", "youtube/vfY_TJq7n_U",
                           "vfY_TJq7n_U_130.wav", 1),
    ("clotho", "development"): ("Café in the rain.wav",
                                ("Rain (development)", "It rains", "Rain, more rain", "A steady rain", "Water falls"),
                                ("rain", "café", "roof"), "other", "freesound/338297", "firanthir, http://cc/by", 1),
    ("clotho", "validation"): ("Café in the rain.wav",
                               ("Rain (validation)", "It rains", "Rain, more rain", "A steady rain", "Water falls"),
                               ("rain", "café", "roof"), "other", "freesound/338297", "Clotho 2.1 | Café in the rain.wav", 1),
    ("clotho", "evaluation"): ("Café in the rain.wav",
                               ("Rain (evaluation)", "It rains", "Rain, more rain", "A steady rain", "Water falls"),
                               ("rain", "café", "roof"), "other", "freesound/338297", "firanthir", 1),
    ("esc50", "test/2"): ("2-102-A-2.wav", ("crackling fire",), ("crackling_fire",), "crackling fire", "freesound/102",
                          "2-102-A-2.wav | CC BY-NC", 2),
    ("fsd50k", "train"): ("64760", ("bark, dog, domestic animals and pets, animal",),
                          ("Bark", "Dog", "Domestic_animals_and_pets", "Animal"), "bark", "freesound/64760",
                          "alice, http://cc/zero", 1),
    ("fsd50k", "val"): ("16399", ("rain",), ("Rain",), "rain", "freesound/16399", "FSD50K | 16399.wav | CC BY 4.0", 1),
    ("fsd50k", "dev"): ("64760", ("bark, dog, domestic animals and pets, animal",),
                        ("Bark", "Dog", "Domestic_animals_and_pets", "Animal"), "bark", "freesound/64760", "alice", 2),
    ("fsd50k", "eval"): ("37199", ("chink and clink",), ("Chink_and_clink",), "chink and clink", "freesound/37199", "37199", 1),
    ("audioset", "balanced_train"): ("-0RWZT-miFs_30", ("domestic animals, pets, dog",), ("Domestic animals, pets", "Dog"),
                                     "domestic animals, pets", "youtube/-0RWZT-miFs", "Y-0RWZT-miFs.wav", 1),
    ("audioset", "unbalanced_train"): ("-1RWZT-miFs_30", ("domestic animals, pets, dog",), ("Domestic animals, pets", "Dog"),
                                       "domestic animals, pets", "youtube/-1RWZT-miFs", "AudioSet", 1),
    ("audioset", "eval"): ("-2RWZT-miFs_30", ("domestic animals, pets, dog",), ("Domestic animals, pets", "Dog"),
                           "domestic animals, pets", "youtube/-2RWZT-miFs", "AudioSet", 1),
    ("vggsound", "train"): (f"{ID}_30", ("railroad car, train wagon",), ("railroad car, train wagon",),
                            "railroad car, train wagon", f"youtube/{ID}", "VGGSound", 1),
    ("vggsound", "test"): ("--0PQM4-hqg_7", ("waterfall burbling",), ("waterfall burbling",), "waterfall burbling",
                           "youtube/--0PQM4-hqg", "VGGSound", 1),
    ("wavcaps", "audioset"): (f"Y{ID}", ("A sound of AudioSet_SL.",), (), "other", f"youtube/{ID}", "WavCaps", 1),
    ("wavcaps", "bbc"): ("NHU05", ("A sound of BBC_Sound_Effects.",), (), "other", "bbc/NHU05", "WavCaps", 1),
    ("wavcaps", "freesound"): ("2218", ("A sound of FreeSound.",), (), "other", "freesound/2218", "WavCaps", 1),
    ("wavcaps", "soundbible"): ("2218", ("A sound of SoundBible.",), (), "other", "soundbible/2218", "WavCaps", 1),
    ("audiofolder", "train"): ("a/1.wav", ("a dog barks", "barking"), (), "other", "a/1.wav", "1.wav", 2),
    ("audiofolder", "test"): ("3.wav", ("a bell",), (), "other", "3.wav", "3.wav", 1),
    ("audiofolder", "validation"): ("dog/0001.wav", ("dog",), ("dog",), "dog", "dog/0001.wav", "0001.wav", 1),
}


@pytest.mark.parametrize("name, split", READ, ids=map("-".join, READ))
def test_each_layout_is_read(made, name, split):
    clip, captions, labels, kind, group, source, n = READ[name, split]
    found = read(name, made(name), split)
    refs = sorted(found.refs, key=lambda ref: ref.name != clip)
    assert len(found) == n and found.missing == {} and found.about is DATASETS[name] and found.sample_rate == RATE
    assert (refs[0].name, refs[0].captions, refs[0].labels, refs[0].kind, refs[0].group) == (clip, captions, labels, kind, group)
    assert source in refs[0].source
    assert all(clip.audio.shape[-1] > 0 and clip.captions and clip.name for clip in found)


def test_every_official_split_has_a_miniature():
    for name, facts in DATASETS.items():
        splits = {split for key, split in READ if key == name}
        assert splits == set(facts.splits) or name == "esc50"
        assert set(facts.aliases.values()) <= set(facts.splits) and not set(facts.aliases) & set(facts.splits)
        assert all([facts.title, facts.text, facts.licence, facts.home, facts.figures])
        if facts.clips:
            assert 1 < 3600 * facts.hours / facts.clips < 120, f"{name}: seconds a clip"


@pytest.mark.parametrize("name, alias", [(name, alias) for name, facts in DATASETS.items() for alias in facts.aliases])
def test_aliases_lead_to_the_official_split(made, name, alias):
    root = made(name)
    assert list(read(name, root, alias).refs) == list(read(name, root, DATASETS[name].aliases[alias]).refs)


def test_the_folds_of_esc50_are_a_partition(made):
    root = made("esc50")
    everything = {ref.name for ref in read("ESC-50", root, "all").refs}
    assert len(everything) == 10
    tested = []
    for fold in range(1, 6):
        train, test = (read("esc50", root, f"{side}/{fold}").refs for side in ("train", "test"))
        assert {r.name for r in train} | {r.name for r in test} == everything
        assert not {r.group for r in train} & {r.group for r in test}, "pieces of one recording stay together"
        tested += [r.name for r in test]
    assert sorted(tested) == sorted(everything)
    train, test = split_clips(read("esc50", root, "all").refs, 0.5)
    assert not {r.group for r in train} & {r.group for r in test}


@pytest.mark.parametrize("name, split, message", [
    ("audiocap", "train", "name must be one of audiocaps, clotho, .*got 'audiocap'"), (None, "train", "got None"),
    ("audiocaps", "training", r"must be one of train, val, test \(validation for val, valid for val\); got 'training'"),
    ("clotho", "all", "development, validation, evaluation"), ("esc50", "train", "train/1, .*test/5, all"),
    ("esc50", "test/6", "got 'test/6'"), ("audioset", "train", "balanced_train, unbalanced_train, eval"),
    ("fsd50k", None, "got None"), ("vggsound", ["train"], "got"), ("wavcaps", "../mine", "got '../mine'")])
def test_an_unknown_name_or_split_is_refused_before_anything_is_read(tmp_path, name, split, message):
    with pytest.raises(ValueError, match=message):
        read_dataset(name, tmp_path / "not there", split)


def test_other_arguments_are_checked(made):
    root = made("esc50")
    with pytest.raises(ValueError, match="captions must be 'as_is' or 'content_words', got 'lower'"):
        read_dataset("esc50", root, "all", captions="lower")
    with pytest.raises(TypeError, match="sample_rate"):
        read_dataset("esc50", root, "all", sample_rate="16k")
    assert read("esc50", root, "all", sample_rate=8000)[0].audio.shape == (1, 8000)
    for name in set(DATASETS) - {"audiofolder"}:
        with pytest.raises(FileNotFoundError, match="root must be the folder of a data set, got .*nowhere"):
            read_dataset(name, root / "nowhere", DATASETS[name].splits[0])
    with pytest.raises(FileNotFoundError):
        read_dataset("audiofolder", root / "nowhere", "train")


# Files and segments

CUT = [f"{ID}_30", f"{ID}_000030", f"{ID}_30_40", f"{ID}_30.000_40.000", f"Y{ID}_30", "97151"]


@pytest.mark.parametrize("stem", CUT)
@pytest.mark.parametrize("headers", [True, False])
def test_names_that_clips_go_by(tmp_path, stem, headers):
    table(tmp_path / "train.csv", f"audiocap_id,youtube_id,start_time,caption\n97151,{ID},30,x")
    path = sound(tmp_path / "deep/er" / f"{stem}.FLAC", 12.0)
    [ref] = read("audiocaps", tmp_path, "train", headers=headers).refs
    assert (ref.path, ref.start, ref.end) == (path, 0.0, None), "a cut clip is the whole file, whatever its length"


@pytest.mark.parametrize("stem", [ID, f"Y{ID}"])
@pytest.mark.parametrize("headers", [True, False])
def test_a_long_file_is_the_source_and_a_short_one_the_clip(tmp_path, stem, headers):
    table(tmp_path / "train.csv", f"audiocap_id,youtube_id,start_time,caption\n1,{ID},3,x")
    for seconds, place in ((10.0, (0.0, None)), (10.9, (0.0, None)), (9.0, (0.0, None)), (11.5, (3.0, 13.0)), (60.0, (3.0, 13.0))):
        sound(tmp_path / f"{stem}.wav", seconds)
        [ref] = read("audiocaps", tmp_path, "train", headers=headers).refs
        assert (ref.start, ref.end) == place, seconds
    assert ref.load(RATE).seconds == 10.0


@pytest.fixture
def decoded(monkeypatch):
    "The lengths of all blocks that are decoded"
    original, counts = soundfile.SoundFile.read, []

    def counted(self, *args, **kwargs):
        block = original(self, *args, **kwargs)
        counts.append(len(block))
        return block
    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    return counts


@pytest.mark.parametrize("suffix, rate", [(".wav", RATE), (".flac", RATE), (".wav", 44_100)])
def test_segments_are_read_by_seeking(tmp_path, decoded, suffix, rate):
    table(tmp_path / "vggsound.csv", f"{ID},12,whistling,train\n{ID},20.5,humming,train")
    t = np.arange(40 * rate) / rate
    hz = np.select([(t >= 12) & (t < 22)], [1000.0], 100.0)
    soundfile.write(tmp_path / f"{ID}{suffix}", 0.3 * np.sin(2 * np.pi * hz * t), rate)
    found = read("vggsound", tmp_path, "train")
    assert sum(decoded) == 0, "reading a data set decodes nothing"
    assert [(r.name, r.start, r.end) for r in found.refs] == [(f"{ID}_12", 12, 22), (f"{ID}_20.5", 20.5, 30.5)]
    whistling, humming = found[0].audio[0], found[1].audio[0]
    assert sum(decoded) <= 2 * 10 * rate * 1.05, "and a clip no more than its segment, and what resampling needs beside it"
    assert len(whistling) == len(humming) == 10 * RATE
    wave = 0.3 * np.sin(2 * np.pi * 1000 * (np.arange(10 * RATE) / RATE + 12))
    assert np.abs(whistling.numpy() - wave)[100:-100].max() < 5e-3
    loudest = torch.fft.rfft(humming[2 * RATE:]).abs().argmax().item() / 8
    assert abs(loudest - 100) < 1, "1.5 s of whistling, then the hum"


def test_what_starts_behind_the_end_is_missing(tmp_path):
    table(tmp_path / "vggsound.csv", f"{ID},12,whistling,train\n{ID},50,humming,train")
    sound(tmp_path / f"{ID}.wav", 40.0)
    found, said = read_partial("vggsound", tmp_path, "train")
    assert [r.name for r in found.refs] == [f"{ID}_12"] and found.missing == {f"{ID}_50": f"{ID}.wav ends at 40 s"}


def test_segments_that_end_with_the_video_are_shorter(tmp_path):
    audioset(tmp_path)
    table(tmp_path / "eval_segments.csv", f'{ID}, 28.500, 38.500, "/m/0bt9lr"')
    sound(tmp_path / f"{ID}.wav", 32.0)
    assert read("audioset", tmp_path, "eval")[0].seconds == 3.5


def test_files_are_found_wherever_they_are(tmp_path):
    esc50(tmp_path)
    for path in (tmp_path / "audio").iterdir():
        path.unlink()
    first = sound(tmp_path / "b/1-101-A-1.ogg", 2.0)
    sound(tmp_path / "c/1-101-A-1.wav", 3.0), sound(tmp_path / "a/x/1-101-A-1.wav", 4.0), sound(tmp_path / ".hidden/1-101-B-1.wav")
    elsewhere = sound(tmp_path.parent / f"{tmp_path.name} elsewhere" / "1-101-B-1.mp3")
    os.symlink(elsewhere.parent, tmp_path / "link")
    os.symlink(tmp_path, tmp_path / "b/loop")
    refs = {ref.name: ref for ref in read("esc50", tmp_path, "test/1").refs}
    assert refs["1-101-A-1.wav"].path == first, "nearest to the root, then by the alphabet; any suffix"
    assert refs["1-101-B-1.wav"].path == tmp_path / "link/1-101-B-1.mp3", "links are followed, circles left"


def test_names_with_accents_are_found_in_either_form(tmp_path):
    clotho(tmp_path)
    path = tmp_path / "development" / "Café in the rain.wav"
    path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))
    assert len(read("clotho", tmp_path, "development")) == 1


def test_a_split_of_clotho_takes_its_own_files(made):
    root = made("clotho")
    assert [read("clotho", root, split)[0].seconds for split in DATASETS["clotho"].splits] == [1, 2, 3]
    assert read("clotho", root, "validation").refs[0].captions[0] == "Rain (validation)"
    (root / "clotho_metadata_validation.csv").unlink()
    ref = read("clotho", root, "validation").refs[0]
    assert (ref.labels, ref.group) == ((), "Café in the rain.wav") and "Creative Commons" in ref.source, "metadata are optional"


def test_folders_are_known_by_whole_words(made):
    root = made("clotho")
    sound(root / "a redevelopment/Café in the rain.wav", 9.0)
    assert read("clotho", root, "development")[0].seconds == 1


def test_a_clip_may_be_called_by_any_of_its_captions(made):
    root = made("audiocaps")
    path = next(root.rglob("vfY*"))
    path = path.rename(path.with_name("5.wav"))
    [ref] = read("audiocaps", root, "val").refs
    assert ref.path == path and len(ref.captions) == 5


def test_sources_of_wavcaps_keep_apart(made):
    root = made("wavcaps")
    assert (read("wavcaps", root, "freesound")[0].seconds, read("wavcaps", root, "soundbible")[0].seconds) == (1, 2)
    next((root / "SoundBible").iterdir()).unlink()
    sound(root / "SoundBible/1.flac")
    with pytest.raises(FileNotFoundError, match="none"):
        read_dataset("wavcaps", root, "soundbible")


def test_json_of_the_same_style(tmp_path):
    entries = [{"id": 7, "caption": ["a", "b"]}, {"audio": "/mnt/fast/data/YvfY.wav", "caption_1": "c", "caption_2": "d"},
               {"id": "x.mp3", "caption": "e", "wav": "C:\\sounds\\y.wav"}]
    sound(tmp_path / "7.wav"), sound(tmp_path / "YvfY.flac"), sound(tmp_path / "y.wav")
    for content in (entries, {"data": entries}):
        (tmp_path / "mine.json").write_text(json.dumps(content), encoding="utf-8-sig")
        refs = read("wavcaps", tmp_path, "mine").refs
        assert [(r.name, r.captions, r.path.name) for r in refs] == [
            ("7", ("a", "b"), "7.wav"), ("YvfY", ("c", "d"), "YvfY.flac"), ("x", ("e",), "y.wav")]
    with pytest.raises(ValueError, match=r"audioset, bbc, freesound, soundbible, or the name of a \.json .*got 'other'"):
        read_dataset("wavcaps", tmp_path, "other")
    with pytest.raises(FileNotFoundError, match=f"no table bbc_final.json below {tmp_path}, where 3 sounds and 1 other tables"):
        read_dataset("wavcaps", tmp_path, "bbc")


# AudioFolder

def test_audiofolder_with_a_table_beside_the_splits(tmp_path):
    for name in ("train/1.wav", "train/2.wav", "eval/3.wav"):
        sound(tmp_path / "data" / name)
    table(tmp_path / "metadata.csv", "file_name,text\ndata/train/1.wav,one\ndata/eval/3.wav,three\ndata/train/4.wav,four")
    train, said = read_partial("audiofolder", tmp_path, "train")
    assert [(r.name, r.captions) for r in train.refs] == [("data/train/1.wav", ("one",))]
    assert train.missing == {"data/train/4.wav": "not there"} and "4.wav (not there)" in said
    test, _ = read_partial("audiofolder", tmp_path, "test")
    assert [r.captions for r in test.refs] == [("three",)] and test.missing == {}


def test_audiofolder_without_splits_is_train(tmp_path):
    sound(tmp_path / "dog/0001.wav"), sound(tmp_path / "cat/0002.wav")
    assert [r.labels for r in read("audiofolder", tmp_path, "train").refs] == [("cat",), ("dog",)]
    with pytest.raises(FileNotFoundError, match="no folder for test below .*all is train"):
        read_dataset("audiofolder", tmp_path, "test")
    sound(tmp_path / "dev/0003.wav")
    with pytest.raises(FileNotFoundError, match="no folder for train below .*there are dev"):
        read_dataset("audiofolder", tmp_path, "train")


def test_audiofolder_of_nothing(tmp_path):
    table(tmp_path / "train/metadata.csv", "file_name,text\n1.wav,one")
    with pytest.raises(FileNotFoundError, match="holds no usable sound.*1.wav"):
        read_dataset("audiofolder", tmp_path, "train")


@pytest.mark.parametrize("name", ["../secret.wav", "ABSOLUTE", "a/../../secret.wav"])
@pytest.mark.parametrize("exists", [True, False])
def test_audiofolder_does_not_lead_out(tmp_path, name, exists):
    if exists:
        sound(tmp_path / "secret.wav")
    sound(tmp_path / "hub/train/1.wav"), (tmp_path / "hub/train/a").mkdir()
    name = str(tmp_path / "secret.wav") if name == "ABSOLUTE" else name.replace("../s", "../../s")
    table(tmp_path / "hub/train/metadata.csv", f"file_name,text\n1.wav,one\n{name},two")
    with warnings.catch_warnings(), pytest.raises(ValueError, match="must not lead outside") as refusal:
        warnings.simplefilter("ignore")
        read_dataset("audiofolder", tmp_path / "hub", "train")
    assert ("line 3" in str(refusal.value)) == exists


def test_a_folder_may_be_partial(tmp_path):
    sound(tmp_path / "1.wav")
    table(tmp_path / "metadata.csv", "file_name,text\n1.wav,one\n2.wav,two")
    with pytest.raises(FileNotFoundError, match="2.wav"):
        SoundFolder(tmp_path)
    with pytest.warns(UserWarning, match="2.wav \\(not there\\)"):
        folder = SoundFolder(tmp_path, partial=True)
    assert len(folder) == 1 and folder.skipped == {tmp_path / "2.wav": "not there"}
    with pytest.raises(FileNotFoundError, match="no usable sound"):
        (tmp_path / "1.wav").unlink(), SoundFolder(tmp_path, partial=True)


# What is missing

def test_missing_clips_are_counted_and_named(made):
    root = made("esc50")
    for name in ("1-101-A-1", "3-103-B-3"):
        (root / "audio" / f"{name}.wav").unlink()
    (root / "audio/5-105-A-5.wav").write_bytes(b"")
    (root / "audio/5-105-B-5.wav").write_bytes(b"RIFF")
    sound(root / "audio/4-104-A-4.wav", 0.0)
    found, said = read_partial("esc50", root, "all")
    reasons = {"1-101-A-1.wav": "no file named 1-101-A-1", "3-103-B-3.wav": "no file named 3-103-B-3",
               "4-104-A-4.wav": "4-104-A-4.wav ends at 0 s", "5-105-A-5.wav": "5-105-A-5.wav cannot be read",
               "5-105-B-5.wav": "5-105-B-5.wav cannot be read"}
    assert found.missing == reasons and len(found) == 5
    assert said == "ESC-50, all: 5 of 10 clips are missing: " + ", ".join(f"{k} ({v})" for k, v in reasons.items())
    found, _ = read_partial("esc50", root, "all", headers=False)
    assert len(found) == 8, "without headers only names count"


def test_a_long_list_of_missing_clips_is_cut(tmp_path):
    rows = [f"{i:011},{i},x,train" for i in range(40)]
    table(tmp_path / "vggsound.csv", "\n".join(rows))
    sound(tmp_path / f"{0:011}_0.wav")
    found, said = read_partial("vggsound", tmp_path, "train")
    assert len(found.missing) == 39 and said.endswith(" and 29 more, see .missing") and said.count("no file named") == 10


def test_a_folder_without_any_of_the_clips_is_refused(tmp_path):
    vggsound(tmp_path)
    for path in (tmp_path / "audio").iterdir():
        path.rename(path.with_suffix(".mp4"))
    sound(tmp_path / "audio/other.wav")
    with pytest.raises(FileNotFoundError, match=rf"VGGSound, train: of 1 clips none is among 1 sounds below {tmp_path}, "
                                                rf"e.g. {ID}_30 \(no file named {ID}_30 or .*\); 2 .mp4 are no sounds"):
        read_dataset("vggsound", tmp_path, "train")


@pytest.mark.parametrize("name, file", [
    ("audiocaps", "val.csv"), ("clotho", "clotho_captions_validation.csv"), ("esc50", "esc50.csv"), ("fsd50k", "dev.csv"),
    ("audioset", "eval_segments.csv"), ("audioset", "class_labels_indices.csv"), ("vggsound", "vggsound.csv"),
    ("wavcaps", "bbc_final.json")])
def test_a_missing_table_is_named(made, name, file):
    root = made(name)
    next(root.rglob(file)).unlink()
    split = {"audiocaps": "val", "clotho": "val", "esc50": "all", "fsd50k": "val", "audioset": "eval", "vggsound": "test",
             "wavcaps": "bbc"}[name]
    with pytest.raises(FileNotFoundError, match=f"no table {file} below {root}"):
        read_dataset(name, root, split)


# Tables that are not what they should be

SEGMENTS = "# a\n# b\n# YTID, start_seconds, end_seconds, positive_labels\n"
ESC = "filename,fold,target,category,esc10,src_file,take\n"
CAPS = "audiocap_id,youtube_id,start_time,caption\n"
FSD = "fname,labels,mids,split\n"
FIVE = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"

BAD = [
    ("audiocaps", "train", "train.csv", "id,youtube_id,caption\n", "line 1: the header lacks audiocap_id, start_time; it has id"),
    ("audiocaps", "train", "train.csv", f"{CAPS}1,{ID},30\n", "line 2: 3 cells instead of audiocap_id"),
    ("audiocaps", "train", "train.csv", f"{CAPS}1,{ID},30,x\n\n2,{ID},thirty,x\n", "line 4: a time must be .* 'thirty'"),
    ("audiocaps", "train", "train.csv", f"{CAPS}1,{ID},-3,x\n", "line 2: a time"),
    ("audiocaps", "train", "train.csv", f"{CAPS}1,{ID},nan,x\n", "line 2: a time"),
    ("audiocaps", "train", "train.csv", f"{CAPS}1,{ID},30, \n", "line 2: a caption must be text"),
    ("audiocaps", "train", "train.csv", f"{CAPS}1,#NAME?,30,x\n", "line 2: '#NAME\\?' is not the id of a YouTube video"),
    ("audiocaps", "train", "train.csv", f'{CAPS}1,{ID},30,"x\ny"\n2,{ID},31,"open\n', "line 4: .*quotation mark left open"),
    ("audiocaps", "train", "train.csv", f"{CAPS}1,{ID},30,caf\xe9\n".encode("latin-1"), "line 2: bytes that are not UTF-8"),
    ("audiocaps", "train", "train.csv", f"{CAPS}1,{ID},30,x\n".encode("utf-16"), "line 1: UTF-16"),
    ("audiocaps", "train", "train.csv", CAPS, "AudioCaps, train: its table .* has no rows"),
    ("audiocaps", "train", "train.csv", "", "AudioCaps, train: its table .* has no rows"),
    ("clotho", "development", "clotho_captions_development.csv", f"{FIVE}x.wav,a,b,c,d,\n", "line 2: a caption must be text"),
    ("clotho", "development", "clotho_metadata_development.csv", "file_name,sound_id\n", "line 1: the header lacks keywords"),
    ("esc50", "all", "esc50.csv", f"{ESC}x.wav,6,0,dog,True,1,A\n", "line 2: fold must be 1 to 5, got '6'"),
    ("esc50", "all", "esc50.csv", f"{ESC},1,0,dog,True,1,A\n", "line 2: '' is not the name of a file"),
    ("esc50", "all", "esc50.csv", f"{ESC}x.wav,1,0,,True,1,A\n", "line 2: a label must be text"),
    ("vggsound", "train", "vggsound.csv", "#NAME?,30,x,train\n", "line 1: '#NAME\\?' is not the id of a YouTube video"),
    ("vggsound", "train", "vggsound.csv", f"{ID},30, ,train\n", "line 1: a label must be text"),
    ("fsd50k", "train", "dev.csv", f"{FSD}1,,,train\n", "line 2: a label must be text"),
    ("fsd50k", "train", "dev.csv", "fname,labels,mids\n", "line 1: the header lacks split"),
    ("fsd50k", "train", "dev_clips_info_FSD50K.json", "[1]", "must hold a JSON object"),
    ("audioset", "eval", "eval_segments.csv", f'{SEGMENTS}{ID}, 30.000, 40.000, "/m/x"\n', "line 4: label '/m/x' is not in class"),
    ("audioset", "eval", "eval_segments.csv", f'{SEGMENTS}{ID}, 40.000, 30.000, "/m/0bt9lr"\n', "line 4: a segment must end after"),
    ("audioset", "eval", "eval_segments.csv", f"{SEGMENTS}{ID}, 30.000, 40.000, /m/068hy,/m/0bt9lr\n", "line 4: 5 cells"),
    ("audioset", "eval", "class_labels_indices.csv", "a,b,c\n", "line 1: the header lacks mid, display_name"),
    ("vggsound", "train", "vggsound.csv", f"{ID},30,x,dev\n", "line 1: the last cell must be train or test, got 'dev'"),
    ("wavcaps", "bbc", "bbc_final.json", '{"data": [\n{"id": 1,}]}', "line 2: not valid JSON"),
    ("wavcaps", "bbc", "bbc_final.json", '{"date": []}', "line 1: it must hold a list"),
    ("wavcaps", "bbc", "bbc_final.json", '{"data": [{"id": "NHU05", "caption": "x"}, 7]}', "entry 1: it must be an object, got 7"),
    ("wavcaps", "bbc", "bbc_final.json", '[{"caption": "x"}]', "entry 0: it needs an id"),
    ("wavcaps", "bbc", "bbc_final.json", '[{"id": "NHU05"}]', "entry 0: a caption must be text"),
    ("wavcaps", "bbc", "bbc_final.json", '[{"id": "NHU05", "caption": 7}]', "entry 0: a caption must be text"),
    ("wavcaps", "bbc", "bbc_final.json", '[{"id": "NHU05", "caption": "\\ud800"}]', "entry 0: a caption must be text"),
    ("wavcaps", "bbc", "bbc_final.json", "[" * 100_000, "line 1: (nested too deep|not valid JSON)"),
    ("audiofolder", "test", "metadata.jsonl", "\n{", "line 2: not valid JSON"),
]


@pytest.mark.parametrize("name, split, file, content, message", BAD, ids=[f"{b[0]}-{i}" for i, b in enumerate(BAD)])
def test_a_bad_table_is_refused_with_file_and_line(made, name, split, file, content, message):
    root = made(name)
    path = next(root.rglob(file))
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as refusal:
        read_dataset(name, root, split)
    assert str(path) in str(refusal.value) or "no rows" in message


def test_tables_as_programs_write_them(made):
    root = made("audiocaps")
    path = next(root.rglob("train.csv"))
    plain = list(read("audiocaps", root, "train").refs)
    text = path.read_text(encoding="utf-8")
    for content in ("\ufeff" + text, text.replace("\n", "\r\n"), text.replace("\n", "\n\n"), text.rstrip("\n"),
                    text.replace(",", ", "), "# remark\n" + text):
        path.write_bytes(content.encode())
        assert list(read("audiocaps", root, "train").refs) == plain


# Names that lead elsewhere

@pytest.mark.parametrize("name", ["../secret.wav", "/secret.wav", "a/b.wav", "..\\secret.wav", "..", ".", "x\0.wav"])
@pytest.mark.parametrize("layout, file, row", [
    ("esc50", "meta/esc50.csv", ESC + "{},1,0,dog,True,1,A"), ("clotho", "clotho_captions_development.csv", FIVE + "{},a,b,c,d,e"),
    ("fsd50k", "FSD50K.ground_truth/dev.csv", FSD + "{},Dog,x,train"), ("audiocaps", "dataset/train.csv", CAPS + f"{{}},{ID},30,x"),
    ("audiocaps", "dataset/train.csv", CAPS + "1,{},30,x"), ("vggsound", "vggsound.csv", "{},30,x,train"),
    ("audioset", "eval_segments.csv", SEGMENTS + '{}, 30.000, 40.000, "/m/0bt9lr"')])
def test_names_that_lead_elsewhere_are_refused(made, tmp_path, layout, file, row, name):
    root = made(layout)
    sound(tmp_path / "secret.wav"), sound(root / "a/b.wav")
    (root / file).write_bytes(row.format(name).encode() + b"\n")
    split = {"esc50": "test/1", "clotho": "development", "audioset": "eval"}.get(layout, "train")
    with pytest.raises(ValueError, match=re.escape(str(root / file)) + ", line"):
        read_dataset(layout, root, split)


def test_of_a_path_in_json_the_last_part_counts(tmp_path):
    root = tmp_path / "set"
    secret = sound(tmp_path / "secret.wav")
    sound(root / "ok.wav")
    entries = [{"id": "1", "audio": name, "caption": "x"} for name in ("../secret.wav", str(secret), "..\\secret.wav")]
    entries = [dict(e, id=str(i)) for i, e in enumerate(entries)] + [{"id": "ok", "caption": "x"}]
    table(root / "mine.json", json.dumps(entries))
    found, said = read_partial("wavcaps", root, "mine")
    assert [r.path for r in found.refs] == [root / "ok.wav"] and list(found.missing) == ["0", "1", "2"]
    table(root / "mine.json", json.dumps([{"id": "..", "caption": "x"}]))
    with pytest.raises(ValueError, match="entry 0: '..' is not the name of a file"):
        read_dataset("wavcaps", root, "mine")


# Captions

def test_labels_become_captions():
    assert labels_to_caption(["Bark", "Domestic_animals_and_pets", " Domestic  animals, pets "]) \
        == "bark, domestic animals and pets, domestic animals, pets"
    assert labels_to_caption([]) == ""


def test_captions_as_the_paper_forms_them(made):
    pytest.importorskip("simplemma")
    of = lambda name, split: read(name, made(name), split, captions="content_words").refs[0]
    assert of("fsd50k", "train").captions == ("bark dog domestic animal pet animal",)
    assert of("fsd50k", "train").labels[2] == "Domestic_animals_and_pets", "labels stay as they are"
    assert of("audiocaps", "val").captions == ("caption",), "numbers out; the five are one then"
    assert of("clotho", "development").captions[-1] == "water fall"
    assert of("audiofolder", "train").captions == ("dog bark", "bark")


# Size

def test_reading_asks_the_disk_once_a_folder(tmp_path, monkeypatch):
    audioset(tmp_path)
    n = 3000
    table(tmp_path / "eval_segments.csv", "\n".join(f'{i:011}, 30.000, 40.000, "/m/0bt9lr"' for i in range(n)))
    for i in range(n):
        if i % 1000 == 0:
            (tmp_path / f"many/{i // 1000}").mkdir(parents=True)
        (tmp_path / f"many/{i // 1000}/{i:011}_30.wav").touch()
    asked = []
    for function in ("scandir", "stat", "lstat", "listdir"):
        original = getattr(os, function)
        monkeypatch.setattr(os, function, lambda *a, _f=original, _n=function, **k: asked.append(_n) or _f(*a, **k))
    found = read("audioset", tmp_path, "eval", headers=False)
    assert len(found) == n and asked.count("scandir") == 9 and len(asked) < 200, "folders, not files, are asked for"


def test_sets_travel_to_other_processes(made):
    found = read("esc50", made("esc50"), "all")
    back = pickle.loads(pickle.dumps(found))
    assert list(back.refs) == list(found.refs) and torch.equal(back[3].audio, found[3].audio) and back.about == found.about


def test_the_readers_are_loaded_when_they_are_asked_for():
    code = ("import sys, audiogen_nb.data as d; assert 'audiogen_nb.data.datasets' not in sys.modules\n"
            "from audiogen_nb.data import DATASETS, read_dataset; assert 'esc50' in DATASETS and callable(read_dataset)\n"
            "assert set(d.__all__) >= {'DATASETS', 'read_dataset'}; d.nothing")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "AttributeError" in done.stderr and "'nothing'" in done.stderr, done.stderr
