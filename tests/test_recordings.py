"""Recordings of many packages: archives that are not trusted, editions and splits, groups, the table of captions."""
import csv
import io
import shutil
import subprocess
import tarfile
import warnings
import zipfile
import zlib
from collections import Counter

import pytest
import torch

from audiogen_nb.data import recordings as rec
from audiogen_nb.data.clips import Clip, split_clips
from audiogen_nb.data.recordings import (PACKAGES, Package, caption_table, chosen_packages, fetch_recordings, find_row, near_duplicates,
                                         read_archive, read_recordings, recording_group, safe_name, similar_pairs)
from audiogen_nb.data.toy_kinds import toy_clip
from audiogen_nb.sound import resample, save_audio
from audiogen_nb.train.runs import training_clips

RATE = 16000
FILES = {"sound/rain.wav": b"rain" * 100, "sound/deep/dog 1.ogg": b"dog", "textures/sky.png": b"sky"}


def zip_file(path, files, **settings):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **settings) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def tar_file(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def rcc_file(path, files, version=2, packed=True):
    "A Qt resource file, written from the description of its format"
    tree = {}
    for name, content in files.items():
        *folders, last = name.split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[last] = content
    nodes, names, bodies, waiting = [], b"", b"", [("", tree)]
    while waiting:                                                       # breadth first: children are neighbours
        name, inside = waiting.pop(0)
        at, text = len(names), name.encode("utf-16-be")
        names += len(name).to_bytes(2, "big") + bytes(4) + text
        if isinstance(inside, dict):
            first = len(nodes) + 1 + len(waiting)
            nodes.append(at.to_bytes(4, "big") + b"\0\2" + len(inside).to_bytes(4, "big") + first.to_bytes(4, "big"))
            waiting += list(inside.items())
        else:
            body = len(inside).to_bytes(4, "big") + zlib.compress(inside) if packed else inside
            nodes.append(at.to_bytes(4, "big") + bytes([0, int(packed)]) + bytes(4) + len(bodies).to_bytes(4, "big"))
            bodies += len(body).to_bytes(4, "big") + body
    nodes = b"".join(node + bytes(8 if version > 1 else 0) for node in nodes)
    start = 20 if version < 3 else 24
    head = b"qres" + b"".join(n.to_bytes(4, "big") for n in (version, start, start + len(nodes), start + len(nodes) + len(bodies)))
    path.write_bytes(head.ljust(start, b"\0") + nodes + bodies + names)
    return path


# Archives

@pytest.mark.parametrize("make", [
    lambda d: zip_file(d / "a.zip", FILES), lambda d: zip_file(d / "a.PK3", FILES), lambda d: zip_file(d / "a.wz", FILES),
    lambda d: tar_file(d / "a.tar.gz", FILES), lambda d: tar_file(d / "a.tgz", FILES), lambda d: tar_file(d / "a.tar", FILES, "w"),
    lambda d: tar_file(d / "a.tar.xz", FILES, "w:xz"),
    *(lambda d, v=v, p=p: rcc_file(d / "a.rcc", FILES, v, p) for v in (1, 2, 3) for p in (True, False))])
def test_every_archive_is_read(tmp_path, make):
    path = make(tmp_path)
    assert dict(read_archive(path)) == FILES
    assert dict(read_archive(path, lambda name: name.endswith(".wav"))) == {"sound/rain.wav": FILES["sound/rain.wav"]}


@pytest.mark.parametrize("name", ["../x.wav", "/x.wav", "a/../../x.wav", "a//x.wav", "./x.wav", "a\\..\\x.wav", "C:x.wav", "a\0.wav", "a\n.wav"])
def test_unsafe_names(tmp_path, name):
    with pytest.raises(ValueError, match="unsafe name"):
        safe_name(name)
    makers = [rcc_file] if "\0" in name else [zip_file, tar_file]
    for i, make in enumerate(makers):
        path = make(tmp_path / f"{i}{ {zip_file: '.zip', tar_file: '.tgz', rcc_file: '.rcc'}[make]}", {name: b"x"})
        if name == "./x.wav" and make is tar_file:
            continue                                                     # tar writes its own names so
        with pytest.raises(ValueError):
            list(read_archive(path))


def test_bombs_and_damage(tmp_path, monkeypatch):
    monkeypatch.setattr(rec, "_LARGEST", 1000)
    monkeypatch.setattr(rec, "_TOGETHER", 2500)
    for make, name in ((zip_file, "a.zip"), (tar_file, "a.tgz"), (rcc_file, "a.rcc")):
        with pytest.raises(ValueError, match="unpacks to more"):
            list(read_archive(make(tmp_path / name, {"big.wav": bytes(100_000)})))
        with pytest.raises(ValueError, match="more than .* of sounds"):
            list(read_archive(make(tmp_path / name, {f"{i}.wav": bytes(900) for i in range(3)})))
    for name in ("a.zip", "a.tgz", "a.rcc"):
        whole = (tmp_path / name).read_bytes()
        for cut in (0, 3, 10, 30, len(whole) // 2, len(whole) - 5):
            (tmp_path / f"cut-{name}").write_bytes(whole[:cut])
            with pytest.raises(ValueError):
                list(read_archive(tmp_path / f"cut-{name}"))
    with pytest.raises(ValueError, match="no archive"):
        list(read_archive(tmp_path / "a.7z"))


def test_an_rcc_tree_in_a_circle(tmp_path):
    data = bytearray(rcc_file(tmp_path / "a.rcc", FILES).read_bytes())
    data[20 + 22 + 10:20 + 22 + 14] = (0).to_bytes(4, "big")             # the first folder's first child is the root
    (tmp_path / "a.rcc").write_bytes(data)
    with pytest.raises(ValueError, match="circles|cut short|unsafe"):
        list(read_archive(tmp_path / "a.rcc"))


def test_links_in_a_tar_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("link.wav")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert list(read_archive(tmp_path / "a.tar")) == []


# Packages

@pytest.fixture
def shelf(tmp_path, monkeypatch):
    "A pretended mirror with one package whose sounds are in an archive"
    if not shutil.which("dpkg-deb"):
        pytest.skip("needs dpkg-deb")
    monkeypatch.setenv("AUDIOGEN_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGES, "toy-game-data", Package("usr/share/games/toy", ("base.pk3/sound/",), "CC0 1.0, nobody", 2))
    rows = (*caption_table(), rec.CaptionRow("toy-game-data", "base.pk3/sound/*_rain.wav", "rain", ("rain falls",) * 3),
            rec.CaptionRow("toy-game-data", "base.pk3/sound/voice/*", "-", ()))
    monkeypatch.setattr(rec, "caption_table", lambda: rows)
    rec._rows_of.cache_clear()
    tree = tmp_path / "toy-game-data"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text("Package: toy-game-data\nVersion: 1\nArchitecture: all\nMaintainer: A <a@example.org>\n"
                                             "Description: test\n", encoding="utf-8")
    (tree / "usr/share/doc/toy-game-data").mkdir(parents=True)
    (tree / "usr/share/doc/toy-game-data/copyright").write_text("free", encoding="utf-8")
    game = tree / "usr/share/games/toy"
    game.mkdir(parents=True)
    save_audio(tmp_path / "x.wav", toy_clip("rain", 1, duration=1.0).audio, RATE)
    sound = (tmp_path / "x.wav").read_bytes()
    zip_file(game / "base.pk3", {"sound/1_rain.wav": sound, "sound/2_rain.wav": sound, "sound/voice/hello.wav": sound, "music/a.wav": sound})
    zip_file(game / "other.pk3", {"sound/1_rain.wav": sound})
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text(f'#!/bin/sh\ncp "{tmp_path}/$2.deb" . || exit 100\n', encoding="utf-8")
    (tools / "apt-cache").write_text('#!/bin/sh\necho "Size: 5"; echo "Installed-Size: ${SIZE:-1}"\n', encoding="utf-8")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    def build():
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, tmp_path / "toy-game-data.deb"], check=True, capture_output=True)
        return game
    build()
    yield build
    rec._rows_of.cache_clear()


def test_a_package_with_an_archive(shelf, tmp_path):
    dest = fetch_recordings(tmp_path / "all", "toy-game-data")
    files = {str(p.relative_to(dest / "toy-game-data")) for p in dest.rglob("*") if p.is_file()}
    assert files == {"usr/share/doc/toy-game-data/copyright", "usr/share/games/toy/base.pk3/sound/1_rain.wav",
                     "usr/share/games/toy/base.pk3/sound/2_rain.wav"}
    assert [p.name for p in dest.iterdir()] == ["toy-game-data"]
    clips = read_recordings(dest, packages="all")
    assert [(c.kind, c.edition) for c in clips] == [("rain", 2)] * 2 and clips[0].group == clips[1].group
    assert "CC0 1.0, nobody" in clips[0].source
    assert [c.name for c in read_recordings(dest, packages=["toy-game-data"])] == [c.name for c in clips]
    for first_edition in (None, True):
        with pytest.raises(FileNotFoundError, match="no recordings.*openttd-opensfx"):
            read_recordings(dest, packages=first_edition)
    for asked in ("all", ["toy-game-data"], "toy-game-data"):
        (kept,), aside = training_clips({"recordings": asked, "recordings_folder": str(dest)}, RATE)
        assert len(kept) + len(aside) == 2
    with pytest.raises(FileNotFoundError, match="no recordings"):
        training_clips({"recordings": True, "recordings_folder": str(dest)}, RATE)
    with pytest.raises(ValueError, match="packages must be"):
        training_clips({"recordings": 7, "recordings_folder": str(dest)}, RATE)


def test_a_package_that_wants_to_get_out(shelf, tmp_path):
    from pathlib import Path
    game = Path(tmp_path / "toy-game-data/usr/share/games/toy")
    zip_file(game / "base.pk3", {"sound/../../../../../../evil_rain.wav": b"x"})
    shelf()
    with pytest.raises(ValueError, match="unsafe name"):
        fetch_recordings(tmp_path / "all", "toy-game-data")
    assert list((tmp_path / "all").iterdir()) == [] and not list(tmp_path.rglob("evil*"))


def test_a_full_disk_is_seen_before(shelf, tmp_path, monkeypatch):
    monkeypatch.setenv("SIZE", str(10 ** 12))
    with pytest.raises(OSError, match="toy-game-data needs up to"):
        fetch_recordings(tmp_path / "all", "toy-game-data")


def test_chosen_packages():
    assert len(chosen_packages()) == 5 and chosen_packages(True) == chosen_packages() and chosen_packages("all") == list(PACKAGES) and len(PACKAGES) >= 30
    assert chosen_packages(["sonic-pi-samples", "openttd-opensfx"]) == ["openttd-opensfx", "sonic-pi-samples"]
    with pytest.raises(ValueError, match="packages must be"):
        chosen_packages("no-such-package")


def test_packages_state_a_licence_and_have_rows():
    counted = Counter(row.package for row in caption_table())
    for name, package in PACKAGES.items():
        assert counted[name] and len(package.licence) > 5 and package.inside and package.edition in (1, 2), name
        assert not package.folder.startswith("/") and not package.folder.endswith("/")


# Splits

def test_a_later_edition_leaves_the_split_alone():
    first = [Clip(torch.zeros(1, 1), 1, ("x",), kind, name=f"{kind}{i}", group=f"{kind}{i}") for kind in "ab" for i in range(20)]
    later = [Clip(torch.zeros(1, 1), 1, ("x",), kind, name=f"later{kind}{i}", group=f"later{kind}{i}", edition=2)
             for kind in "abc" for i in range(50)]
    twins = [Clip(torch.zeros(1, 1), 1, ("x",), "c", name=f"twin{c.name}", group=c.group, edition=2) for c in first]
    before = {c.name for c in split_clips(first)[1]}
    kept, aside = split_clips([*later, *first, *twins])
    assert {c.name for c in aside if c.edition == 1} == before
    assert not {c.group for c in kept} & {c.group for c in aside}
    assert len([c for c in aside if c.name.startswith("later")]) == 18


# Groups

def test_near_duplicates_are_found_at_another_pitch():
    clips = [toy_clip(kind, seed, duration=1.5) for kind in ("dog", "bell", "rain", "engine", "frog", "glass") for seed in (1, 2)]
    slower = [Clip(resample(c.audio, 10, 12), RATE, c.captions, c.kind) for c in clips[::4]]
    quieter = [Clip(0.2 * c.audio, RATE, c.captions, c.kind) for c in clips[1::4]]
    found = {(i, j) for i, j, _ in similar_pairs([*clips, *slower, *quieter], 0.95)}
    n = len(clips)
    assert {(0, n), (4, n + 1), (8, n + 2), (1, n + 3), (5, n + 4), (9, n + 5)} <= found


def test_the_table_of_groups():
    with open(rec._GROUPS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows] == sorted({r["name"] for r in rows})
    for row in rows:
        package, name = row["name"].split("/", 1)
        assert PACKAGES[package].edition > 1 and find_row(package, name) is not None, row
        assert recording_group(package, name) == row["group"] != row["name"]
    groups = {r["group"] for r in rows}
    assert not groups & {r["name"] for r in rows}, "a group of a group"
    near = [Clip(toy_clip("dog", 1).audio, RATE, ("x",), "dog", name=name, edition=PACKAGES[name.split("/")[0]].edition)
            for name in ("widelands-data/sound/animals/frog.ogg", "enigma-data/drip.wav")]
    assert near_duplicates(near) == {"enigma-data/drip.wav": "widelands-data/sound/animals/frog.ogg"}


def test_takes_share_a_group():
    kick = [recording_group("hydrogen-drumkits", f"ForzeeStereo/Kick-{i}.wav") for i in (1, 2)]
    assert kick[0] == kick[1] != recording_group("hydrogen-drumkits", "ForzeeStereo/TomLow-1.wav")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert recording_group("widelands-data", "sound/animals/frog.ogg") == "widelands-data/sound/animals/frog.ogg"
