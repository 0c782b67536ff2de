"""The committed sounds: nbs/sounds is what its table says, and the library carries four of them."""
import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from audiogen_nb.data.examples import example_sound, example_table
from audiogen_nb.lab.gallery import EXAMPLES, Gallery, in_turn, make_sounds, read_sounds, sounds_page, write_sounds
from audiogen_nb.sound import level_db, load_audio, log_mel

ROOT = Path(__file__).resolve().parent.parent
FOLDER, CARRIED = ROOT / "nbs" / "sounds", ROOT / "audiogen_nb" / "sounds"
ROWS = {row.file: row for row in read_sounds(FOLDER)}
FREE = {"CC0 1.0", "CC BY 3.0", "CC BY-SA 3.0"}          # no licence that asks for its text with every copy


def of(what):
    "The rows of one kind"
    return [row for row in ROWS.values() if row.what == what]


def test_every_row_has_a_file_and_every_file_a_row():
    assert set(ROWS) == {path.name for path in FOLDER.glob("*.ogg")}
    assert len(ROWS) == sum(1 for _ in csv.reader(open(FOLDER / "sounds.csv", encoding="utf-8"))) - 1, "a file named twice"


def test_sizes():
    sizes = {path.name: path.stat().st_size for path in FOLDER.glob("*.ogg")}
    assert max(sizes.values()) <= 60_000 and sum(sizes.values()) <= 1_500_000
    assert all(path.stat().st_size <= 30_000 for path in CARRIED.glob("*.ogg"))


@pytest.mark.parametrize("name", ROWS)
def test_a_file_is_a_sound_of_the_length_and_level_it_should_have(name):
    audio, rate = load_audio(FOLDER / name)
    assert rate == 16_000 and audio.shape[-1] / rate == pytest.approx(ROWS[name].seconds, abs=0.01)
    assert audio.abs().max() < 1                                      # not clipped by the compression either
    frames = level_db(audio[0].unfold(0, 320, 320))                   # 20 ms
    if ROWS[name].what == "model":                                    # a take is what it is, but never nothing
        assert frames.max() > -30 and -45 < level_db(audio) < -19
    else:
        assert (frames > -60).float().mean() > 0.2 and -32 < level_db(audio) < -19
    ends = level_db(audio[:, [*range(32), *range(-32, 0)]])
    assert ends < -26, "it is cut off: the first or last 2 ms are loud"


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_what_a_file_is_and_whom_to_thank(name):
    row = ROWS[name]
    assert name.startswith(row.what + "_") and row.what in ("recording", "model", "codec", "mix", "toy")
    assert row.text and row.source and row.maker and row.licence
    if row.what in ("recording", "codec", "mix"):
        assert row.licence in FREE
    if row.what in ("codec", "mix"):
        assert all(part in ROWS for part in row.source.split(" + "))
        assert all(ROWS[part].maker in row.maker for part in row.source.split(" + ")), "a maker of a part is not named"
        parts = {ROWS[part].licence for part in row.source.split(" + ")}
        assert "CC BY-SA 3.0" not in parts or row.licence == "CC BY-SA 3.0", "share alike"


def test_takes_are_not_chosen(root):
    takes = of("model")
    assert all(row.seed == 0 and row.source == "pocket" for row in takes)
    with open(root / "audiogen_nb" / "prompts.csv", encoding="utf-8") as file:
        plain = [row["prompt"] for row in csv.DictReader(file) if row["wording"] == "trained"]
    front = "a dog barks in the rain"
    assert [row.text for row in takes if row.text != front] == plain[::2]
    assert [row.settings["guidance_scale"] for row in takes if row.text == front] == [3.0, 1.0, 5.0]
    assert {row.settings["guidance_scale"] for row in takes if row.text != front} == {3.0}


def test_there_is_something_of_everything():
    assert len(of("recording")) >= 8 and len(of("model")) >= 10
    assert of("codec") and of("mix") and of("toy")


def test_the_page_is_made_from_the_table():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert page == sounds_page(list(ROWS.values())), "run `make sounds`"
    assert all(f"({name})" in page for name in ROWS)


def mel_distance(a, b):
    "Mean distance of two log-mel spectrograms in dB; what lies 40 dB below the loudest counts as equal"
    mel = 8.686 * torch.stack([log_mel(x, 16_000) for x in (a, b)])
    mel = mel.clamp_min(mel.max() - 40)
    return (mel[0] - mel[1]).abs().mean().item()


@pytest.mark.parametrize("name", [row.file for row in of("toy") + of("mix") + of("codec")])
def test_what_needs_no_download_is_made_again(name):
    # Two Vorbis files of one sound differ in a few bytes (each stream has a random number), so the sounds are compared
    assert mel_distance(Gallery(FOLDER).make(ROWS[name]), load_audio(FOLDER / name)[0]) < 1


def test_a_take_is_made_again(pocket):
    gallery = Gallery(FOLDER)
    gallery.pocket = pocket
    row = ROWS["model_dog.ogg"]
    assert mel_distance(gallery.make(row), load_audio(FOLDER / row.file)[0]) < 1


def test_the_codec_leaves_the_sound_recognisable_and_changes_it():
    sounds = {row.source: load_audio(FOLDER / row.file)[0] for row in of("codec")}
    originals = {name: load_audio(FOLDER / name)[0] for name in sounds}
    for name, decoded in sounds.items():
        n = min(x.shape[-1] for x in originals.values())
        distances = {other: mel_distance(decoded[:, :n], x[:, :n]) for other, x in originals.items()}
        assert min(distances, key=distances.get) == name, distances
        assert distances[name] > 0.3


def test_making_again_leaves_files_as_they_are(tmp_path):
    rows = [row for row in of("toy")]
    write_sounds(tmp_path, rows)
    make_sounds(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make_sounds(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    changed = [row._replace(seed=1) for row in rows]
    write_sounds(tmp_path, changed)
    make_sounds(tmp_path)
    assert all((tmp_path / row.file).read_bytes() != first[row.file] for row in rows)


def test_sounds_in_turn():
    click = torch.ones(1, 1600)
    both = in_turn([click, click], 16_000, [0.1, 0.3], 0.5)
    assert both.shape == (1, 8000) and torch.equal(both[:, 1600:3200], both[:, 4800:6400])
    assert both[:, 3200:4800].abs().max() == 0
    assert in_turn([click], 16_000).shape == click.shape
    with pytest.raises(ValueError):
        in_turn([click], 16_000, [0.1, 0.3])


def test_rows_come_back_as_written(tmp_path):
    write_sounds(tmp_path, list(ROWS.values()))
    assert read_sounds(tmp_path) == list(ROWS.values())
    assert (tmp_path / "sounds.csv").read_text() == (FOLDER / "sounds.csv").read_text()
    json.dumps([row.settings for row in ROWS.values()])


# The sounds that the library carries

@pytest.mark.parametrize("name", EXAMPLES)
def test_example_sound(name):
    audio, rate = example_sound(name)
    assert audio.dim() == 2 and audio.shape[0] == 1 and rate == 16_000 and audio.dtype == torch.float32
    assert 0.5 <= audio.shape[-1] / rate <= 3
    assert (CARRIED / f"{name}.ogg").read_bytes() == (FOLDER / f"recording_{name}.ogg").read_bytes(), "run `make sounds`"


def test_example_credits():
    table = {example.name: example for example in example_table()}
    assert tuple(table) == EXAMPLES
    assert {path.name for path in CARRIED.iterdir()} == {"credits.csv", *(f"{name}.ogg" for name in EXAMPLES)}
    for name, example in table.items():
        row = ROWS[f"recording_{name}.ogg"]
        assert (example.text, example.source, example.maker, example.licence) == \
            (row.text, row.source, row.maker, row.licence)
        assert example.licence in FREE and "16 kHz" in example.changes


def test_an_unknown_example_is_refused():
    with pytest.raises(ValueError, match="name must be one of dog, bell, water, birds; got 'cow'"):
        example_sound("cow")


def test_the_repository_carries_the_sounds(root):
    if not (root / ".git").exists() or not shutil.which("git"):
        pytest.skip("no repository here")
    import subprocess
    files = [*FOLDER.glob("*.ogg"), *CARRIED.glob("*.ogg")]
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=root, capture_output=True, text=True).stdout
    assert not ignored, f"ignored by git: {ignored}"
