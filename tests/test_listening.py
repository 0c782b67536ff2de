"""The blind listening test without a browser: sounds, order, answers on disk, screening, intervals."""
import csv
import math
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from audiogen_nb.data.toy_kinds import toy_clip
from audiogen_nb.judge.listening import (ANCHORS, ListeningTest, Rating, RatingsFile, Stimuli, clustered_interval,
                                         gated_level_db, krippendorff_alpha, low_pass, read_captions, read_ratings, screen_raters,
                                         shuffled_trials, sound_items, student_quantile, summarise, systems_from_folders)
from audiogen_nb.sound import load_audio, save_audio, set_level

CAPTIONS = {"dog": "a dog barks", "rain": "heavy rain", "bell": "a <bell> rings"}
SECRETS = ("recordings", "secret_hiss", "anchor", ".wav", "dog.", "rain.", "bell.")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "Recordings and a system with hiss, at levels 20 dB apart and different rates"
    root = tmp_path_factory.mktemp("sounds")
    for i, kind in enumerate(CAPTIONS):
        clean = toy_clip(kind, 0, 1.0).audio
        noise = 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(i))
        for name, audio, rate in (("recordings", set_level(clean, -40), 16_000), ("secret_hiss", set_level(clean + noise, -20), 24_000)):
            (root / name).mkdir(exist_ok=True)
            save_audio(root / name / f"{kind}{'.wav' if rate == 16_000 else '.flac'}", audio, rate)
    return [root / "recordings", root / "secret_hiss"]


@pytest.fixture
def opened(folders, tmp_path):
    "Opens tests over the folders; they are closed at the end"
    made = []

    def open_test(rater="anna", out="ratings.csv", **how):
        made.append(ListeningTest(folders, tmp_path / out, rater, **{"captions": CAPTIONS, "reference": "recordings", "seconds": 0.6} | how))
        return made[-1]
    yield open_test
    for test in made:
        test.close()


# Statistics

def test_student_quantiles_are_those_of_the_tables():
    table = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 29: 2.045}
    assert all(abs(student_quantile(n) - t) < 5e-3 for n, t in table.items())
    assert abs(student_quantile(5, 0.99) - 4.032) < 5e-3


def test_interval_against_a_sum_by_hand():
    values = torch.tensor([[1.0, 2.0, 6.0], [3.0, 5.0, 7.0]])               # mean 4; rows -3, +3; columns -4, -1, +5
    d = values - 4
    v_r, v_i, v_1 = 2 * 18 / 36, 1.5 * 42 / 36, 6 / 5 * d.square().sum().item() / 36
    mean, low, high = clustered_interval(values)
    assert mean == 4 and abs((high - low) / 2 - 12.706 * math.sqrt(max(v_r + v_i - v_1, v_r, v_i))) < 0.02
    padded = torch.full((4, 5), math.nan)
    padded[1:3, 1:4] = values                                                # who did not answer does not count
    assert clustered_interval(padded) == pytest.approx((mean, low, high))


def test_interval_with_one_rater_or_one_answer():
    mean, low, high = clustered_interval(torch.tensor([[1.0, 2.0, 3.0]]))
    assert mean == 2 and abs(high - 2 - 4.303 / math.sqrt(3)) < 0.01          # the ordinary one over items
    assert math.isnan(clustered_interval(torch.tensor([[7.0]]))[1])
    with pytest.raises(ValueError, match="raters, items"):
        clustered_interval(torch.full((2, 2), math.nan))


@pytest.mark.parametrize("strict, luck, noise", [(8.0, 3.0, 10.0), (3.0, 8.0, 10.0), (0.0, 0.0, 10.0)])
def test_interval_covers_whatever_the_answers_vary_with(strict, luck, noise):
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(300):
        draw = lambda *shape: torch.randn(*shape, generator=generator)
        _, low, high = clustered_interval(strict * draw(8, 1) + luck * draw(1, 16) + noise * draw(8, 16))
        hits += low <= 0 <= high
    assert 0.91 <= hits / 300


def test_alpha_is_that_of_the_published_example():
    x = math.nan
    values = torch.tensor([[1, 2, 3, 3, 2, 1, 4, 1, 2, x, x, x], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, x, 3],
                           [x, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, x], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, x]])
    assert abs(krippendorff_alpha(values) - 0.849) < 5e-4
    assert krippendorff_alpha(torch.tensor([[1.0, 5.0], [1.0, 5.0]])) == 1 and math.isnan(krippendorff_alpha(values[:1]))
    assert math.isnan(krippendorff_alpha(torch.ones(2, 3)))


def ratings(answers, seconds=9.0, question="OVL"):
    "Ratings from {rater: {system: [value for each item]}}"
    roles = {"ref": "reference", ANCHORS["OVL"]: "anchor", ANCHORS["REL"]: "anchor"}
    return [Rating("", rater, 0, 0, str(i), system, roles.get(system, "system"), question, value, seconds, 4.0, "t")
            for rater, systems in answers.items() for system, values in systems.items() for i, value in enumerate(values)]


GOOD = {"ref": [90, 92, 95, 91], "ours": [40, 50, 45, 60], ANCHORS["OVL"]: [20, 10, 15, 25]}


@pytest.mark.parametrize("answers, seconds, reason", [
    (GOOD | {"ref": [90, 92, 60, 91]}, 9.0, "reference below 85 in 1 of 4"),
    (GOOD | {ANCHORS["OVL"]: [99, 99, 99, 99]}, 9.0, "anchor (99) is not below the reference (92)"),
    ({system: [90] * 4 for system in GOOD}, 9.0, "all 12 answers are 90"),
    (GOOD, 1.9, "12 of 12 answers came before 50% of the sound was over"),
    ({"ref": [90] * 4, "ours": [95, 91, 93, 88], ANCHORS["OVL"]: [80, 85, 89, 89]}, 9.0, None)])
def test_each_rule_names_its_reason(answers, seconds, reason):
    found = screen_raters(ratings({"one": answers}, seconds))["one"]
    assert not found if reason is None else any(reason in why for why in found), found


def test_a_rater_against_all_others_is_found_without_reference():
    normal = {"a": [20, 30, 40, 50, 60, 70, 80, 90], "b": [25, 32, 38, 55, 61, 68, 85, 88]}
    answers = {"one": normal, "two": {k: [v - 5 for v in vs] for k, vs in normal.items()},
               "turned": {k: [101 - v for v in vs] for k, vs in normal.items()}}
    found = screen_raters(ratings(answers))
    assert not found["one"] and not found["two"] and "correlation with the others -1.00" in found["turned"][0]
    assert not screen_raters(ratings(answers), correlation=-1.1)["turned"]


def test_every_threshold_counts():
    low = ratings({"one": GOOD | {"ref": [90, 92, 60, 91]}})
    assert not screen_raters(low, reference_least=60)["one"] and not screen_raters(low, share=0.25)["one"]
    assert not screen_raters(ratings({"one": GOOD}, 1.9), pace=0.4)["one"]


def test_summary_has_scores_before_and_after_and_differences():
    people = {"a": GOOD, "b": {k: [v - 4 for v in vs] for k, vs in GOOD.items()}, "lazy": {k: [50] * 4 for k in GOOD}}
    found = summarise(ratings(people), reference_least=80)
    score = {(when, row["system"]): row["mean"] for when in ("before", "after") for row in getattr(found, when)}
    assert score["after", "ref"] == 90 and score["before", "ref"] == pytest.approx((92 + 88 + 50) / 3, abs=0.01)
    assert [row["system"] for row in found.differences] == ["ref - ours"] and found.differences[0]["mean"] == 43.25
    assert found.screened["lazy"] and not found.screened["a"] and found.agreement["OVL"] > 0.9
    assert "lazy is not counted: OVL" in str(found) and "After screening: 2 raters" in str(found)
    assert all(1 <= row["low"] <= row["mean"] <= row["high"] <= 100 for row in found.after)
    nobody = summarise(ratings({"lazy": people["lazy"]}))
    assert nobody.before and not nobody.after and not nobody.differences and str(nobody)
    with pytest.raises(ValueError, match="no answers"):
        summarise([])


# Sounds

def test_gated_level_ignores_silence_and_knows_it():
    tone = 0.1 * torch.sin(torch.arange(16_000) * 0.3)[None]
    assert gated_level_db(torch.cat([tone, torch.zeros(1, 64_000)], 1), 16_000) == pytest.approx(gated_level_db(tone, 16_000), abs=1.0)
    assert gated_level_db(torch.zeros(1, 100), 16_000) == pytest.approx(-120)
    assert gated_level_db(torch.full((1, 5), 0.1), 16_000) == pytest.approx(-20)


def test_low_pass_keeps_below_and_drops_above():
    t = torch.arange(16_000) / 16_000
    for hz, kept in ((200, 1.0), (3000, 1.0), (4200, 0.0)):
        tone = torch.sin(2 * math.pi * hz * t)
        assert low_pass(tone, 16_000)[1000:-1000].square().mean().item() * 2 == pytest.approx(kept, abs=0.01)
    assert low_pass(torch.sin(2 * math.pi * 3000 * t), 16_000, 1000.0).abs()[1000:-1000].max() < 0.01


def test_all_versions_of_an_item_are_equally_loud_and_never_clip(folders):
    for level, loud in ((-23.0, False), (-3.0, True)):
        stimuli = Stimuli(folders, CAPTIONS, "recordings", ("OVL", "REL"), level, seconds=0.6)
        assert stimuli.systems == ["recordings", "secret_hiss", *ANCHORS.values()]
        for item in stimuli.files:
            sounds = [stimuli.audio(item, system) for system in stimuli.systems]
            levels = [gated_level_db(audio, 16_000) for audio in sounds]
            assert max(levels) - min(levels) < 0.05 and levels[0] == pytest.approx(stimuli.levels[item], abs=0.05)
            assert max(audio.abs().max() for audio in sounds) <= 0.99 and {audio.shape for audio in sounds} == {(1, 9600)}
            assert (stimuli.levels[item] < level) if loud else (stimuli.levels[item] <= level)
        assert all(CAPTIONS[stimuli.other[item]] != CAPTIONS[item] for item in stimuli.files)


def test_silence_stays_and_lengths_that_differ_are_told(tmp_path):
    for name, seconds in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        save_audio(tmp_path / name / "x.wav", torch.zeros(1, 16_000 * seconds), 16_000)
    with pytest.warns(UserWarning, match="x differ in length.*seconds=1"):
        stimuli = Stimuli([tmp_path / "a", tmp_path / "b"])
    assert not stimuli.audio("x", "a").any() and stimuli.captions == {"x": "x"}


def test_folders_are_matched_and_what_is_missing_is_named(folders, tmp_path):
    other = tmp_path / "peer"
    (other / ".hidden").mkdir(parents=True)
    for name in ("dog.wav", "cat.wav", ".hidden/rain.wav"):
        save_audio(other / name, 0.1 * torch.ones(1, 9600), 16_000)
    (other / "notes.txt").write_text("no sound", encoding="utf-8")
    assert list(sound_items(other)) == ["cat", "dog"]
    with pytest.warns(UserWarning, match="3 of 4 sounds are left out: .*recordings lacks cat.*peer lacks bell, rain"):
        assert list(Stimuli([*folders, other], CAPTIONS, seconds=0.6).files) == ["dog"]
    with pytest.raises(ValueError, match="no sound in common.*recordings has bell, dog, rain; empty has no sound"):
        (tmp_path / "empty").mkdir(), Stimuli([folders[0], tmp_path / "empty"])
    save_audio(other / "dog.flac", torch.zeros(1, 100), 16_000)
    with pytest.raises(ValueError, match="two sounds called 'dog'"):
        sound_items(other)
    with pytest.raises(FileNotFoundError, match="no folder of sounds"):
        sound_items(tmp_path / "nowhere")


def test_systems_are_named_after_folders(tmp_path):
    assert list(systems_from_folders([tmp_path / "a", tmp_path / "b"])) == ["a", "b"]
    assert list(systems_from_folders([tmp_path / "a/wav", tmp_path / "b/wav"])) == ["a/wav", "b/wav"]
    with pytest.raises(ValueError, match="different names"):
        systems_from_folders([tmp_path / "a", tmp_path / "a"])
    with pytest.raises(TypeError, match="list of folders"):
        systems_from_folders(str(tmp_path))


def test_unreadable_sounds_are_named(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for sound in ("one", "two"):
            save_audio(tmp_path / name / f"{sound}.wav", 0.1 * torch.ones(1, 9600), 16_000)
    (tmp_path / "b/two.wav").write_bytes(b"no sound"), (tmp_path / "a/one.wav").write_bytes(b"RIFF")
    with pytest.raises(ValueError, match="2 sounds cannot be used: .*one.wav.*two.wav"):
        Stimuli([tmp_path / "a", tmp_path / "b"])


def test_captions_from_tables(tmp_path):
    (tmp_path / "t.csv").write_text("file,caption\ndog.wav,\"a dog, barking\"\ndog.wav,second\nin\\rain.flac,Regen in Köln\n", encoding="utf-8")
    (tmp_path / "t.jsonl").write_text('{"file": "dog.wav", "caption": "a dog"}\n', encoding="utf-8")
    assert read_captions(tmp_path / "t.csv", ["dog", "in/rain"]) == {"dog": "a dog, barking", "in/rain": "Regen in Köln"}
    assert read_captions(tmp_path / "t.jsonl", ["dog"]) == {"dog": "a dog"} and read_captions(None, ["x/a_dog"]) == {"x/a_dog": "a dog"}
    with pytest.raises(ValueError, match="lack a text for cat"):
        read_captions(tmp_path / "t.csv", ["dog", "cat"])
    (tmp_path / "t.csv").write_text("path\nx\n", encoding="utf-8")
    with pytest.raises(ValueError, match="`file` and a `caption`"):
        read_captions(tmp_path / "t.csv", ["dog"])


# Trials and answers

def test_order_is_of_the_rater_and_the_seed_and_hits_every_sound_once(folders):
    stimuli = Stimuli(folders, CAPTIONS, "recordings", ("OVL", "REL"), seconds=0.6)
    orders = [[trial[1:3] for trial in shuffled_trials(stimuli, rater, seed)] for rater in ("anna", "ben") for seed in (0, 1)]
    assert all(Counter(order) == Counter(orders[0]) and len(set(order)) == 12 for order in orders)
    assert len({tuple(order) for order in orders}) == 4 and orders[0] == [t[1:3] for t in shuffled_trials(stimuli, "anna", 0)]


def test_every_answer_is_on_disk_at_once_and_is_resumed(opened, tmp_path):
    test = opened()
    for n in range(3):
        test.answer(test.next_trial, "OVL", 10 + n, 2.5)
        rows = list(csv.reader((tmp_path / "ratings.csv").open(encoding="utf-8", newline="")))
        assert rows[0] == list(Rating._fields) and len(rows) == 2 * n + 2 and rows[-1][8] == str(10 + n) and rows[-1][9] == "2.50"
        test.answer(test.next_trial, "REL", 50)
    again = opened()
    assert again.answers == test.answers and again.progress == (3, 12) and again.next_trial.number == 3
    assert opened("ben").progress == (0, 12)
    with pytest.raises(RuntimeError, match="taken the file over"):
        test.answer(3, "OVL", 5)


def test_a_second_answer_replaces_and_undo_withdraws(opened, tmp_path):
    test = opened()
    for n in (0, 1):
        test.answer(n, "OVL", 60), test.answer(n, "REL", 70)
    test.answer(0, "OVL", 65)                                           # trial 0 is now the last
    assert {(r.trial, r.question): r.value for r in read_ratings(tmp_path / "ratings.csv")}[0, "OVL"] == 65
    assert test.undo().number == 0 and test.next_trial.number == 0 and test.progress == (1, 12)
    assert len(read_ratings(tmp_path / "ratings.csv")) == 2 and opened().answers == {(1, "OVL"): 60, (1, "REL"): 70}
    again = opened()
    assert again.undo().number == 1 and again.undo() is None


@pytest.mark.parametrize("tail, kept", [(b"2030-01-01T00:00:00+00:00,anna,0,1,dog,sec", 1), (b"\"2030", 1), (b"", 1)])
def test_part_of_a_line_is_cut_off(opened, tmp_path, tail, kept):
    opened().answer(0, "OVL", 33)
    path = tmp_path / "ratings.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert len(opened().answers) == kept and path.read_bytes() == whole
    path.write_bytes(whole[:-1])                                        # an editor took the last line end only
    assert len(opened().answers) == kept and path.read_bytes() == whole


KILLED = """
import sys, time
from audiogen_nb.judge.listening import ListeningTest
test = ListeningTest(sys.argv[2:], sys.argv[1], "anna", {"dog": "a", "rain": "b", "bell": "c"}, seconds=0.6)
test.answer(0, "OVL", 77)
print("written", flush=True)
time.sleep(60)
"""


def test_another_process_is_refused_and_a_killed_one_leaves_its_answers(folders, tmp_path):
    out, captions = tmp_path / "r.csv", {"dog": "a", "rain": "b", "bell": "c"}
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(out), *map(str, folders)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "written\n"
        with pytest.raises(FileExistsError, match="is in use"):
            ListeningTest(folders, out, "ben", captions, seconds=0.6)
    finally:
        child.kill(), child.wait(), child.stdout.close()
    test = ListeningTest(folders, out, "anna", captions, seconds=0.6)
    assert test.answers == {(0, "OVL"): 77}
    test.close()
    assert not list(tmp_path.glob(".*.lock"))


def test_refusals_leave_the_open_test_alone(opened, folders):
    test = opened()
    test.answer(0, "OVL", 50)
    for how, message in ((dict(seed=1), "seed=0"), (dict(level=-30.0), "another test"), (dict(questions=("OVL",)), "another test"),
                         (dict(captions=CAPTIONS | {"dog": "another"}), "another test"), (dict(questions="OVL"), "questions must"),
                         (dict(questions=("MOS",)), "questions must"), (dict(reference="nobody"), "reference must"),
                         (dict(reference=None, anchors=True), "anchors are made from"), (dict(rater=" "), "rater must"),
                         (dict(rater="a\nb"), "one line"), (dict(out="x.txt"), "csv"), (dict(sample_rate=4000), "sample_rate"),
                         (dict(captions={i: "same" for i in CAPTIONS}), "different texts")):
        with pytest.raises(ValueError, match=message):
            opened(**how)
    with pytest.raises(FileNotFoundError, match="create it first"):
        opened(out="no/such.csv")
    for bad, kind in ((0, ValueError), (101, ValueError), (50.5, TypeError), ("50", TypeError), (True, TypeError)):
        with pytest.raises(kind, match="value must be"):
            test.answer(0, "OVL", bad)
    for bad, message in ((lambda: test.answer(99, "OVL", 5), "trial must be"), (lambda: test.answer(0, "MOS", 5), "question must be")):
        with pytest.raises(ValueError, match=message):
            bad()
    assert test.answers == {(0, "OVL"): 50} and (test.answer(0, "REL", 1) or test.progress) == (1, 12)


def test_every_setting_makes_another_test(folders):
    def stimuli(captions=CAPTIONS, reference="recordings", anchors=("OVL",), level=-23.0, sample_rate=16_000, seconds=0.6):
        return Stimuli(folders, captions, reference, anchors, level, sample_rate, seconds).fingerprint(["OVL"])
    changes = [dict(captions=CAPTIONS | {"dog": "x"}), dict(reference="secret_hiss"), dict(anchors=()), dict(level=-24.0),
               dict(sample_rate=22_050), dict(seconds=0.5)]
    assert len({stimuli(), *(stimuli(**change) for change in changes)}) == 7 and stimuli() == stimuli()


def test_a_formula_is_text_in_a_table_program(tmp_path):
    row = Rating("", "=cmd|' /C calc'!A0", 0, 0, "@item", "+ours", "system", "OVL", 5, 1.0, 1.0, "f")
    file = RatingsFile(tmp_path / "r.csv", "f", row.rater)
    file.append(row), file.append(row._replace(rater="'quoted", item="-x, \"y\""))
    file.close()
    cells = [cell for cells in csv.reader((tmp_path / "r.csv").open(encoding="utf-8", newline="")) for cell in cells]
    assert not [cell for cell in cells if cell[:1] in tuple("=+-@")]
    assert read_ratings(tmp_path / "r.csv") == [row, row._replace(rater="'quoted", item="-x, \"y\"")]


@pytest.mark.parametrize("text, message", [
    ("a,b\n1,2\n", "no file of ratings"), ("", "no file of ratings"), ("HEAD\n1,2\n", "line 2: 2 cells"),
    ("HEAD\n,a,0,0,i,s,system,OVL,101,1,1,t\n", "line 2: value must be in 1..100"), ("HEAD\n,a,0,0,i,s,system,OVL,5,nan,1,t\n", "line 2: seconds"),
    ("HEAD\n,a,x,0,i,s,system,OVL,5,1,1,t\n", "line 2"), ("HEAD\n,a,0,0,i,s,system,OVL,5,1,1,t\n,b,0,0,i,s,system,OVL,5,1,1,u\n", "2 different tests")])
def test_a_damaged_or_foreign_file_is_refused(tmp_path, text, message):
    (tmp_path / "r.csv").write_text(text.replace("HEAD", ",".join(Rating._fields)), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_ratings(tmp_path / "r.csv")
    with pytest.raises(FileNotFoundError, match="no file of ratings"):
        read_ratings(tmp_path / "none.csv")


# The panel

def test_the_page_tells_nothing_about_the_system(opened):
    panel = opened().show()
    for _ in range(12):
        page = panel.head.value + panel.player.value.split("base64,")[0] + panel.line.value
        assert not [word for word in SECRETS if word in page] and "data:audio/wav" in panel.player.value
        panel.sliders["OVL"].value, panel.sliders["REL"].value = 30, 60
        panel.next.click()
    assert "All 12 sounds are rated" in panel.head.value and panel.bar.value == 12 and panel.form.layout.display == "none"
    assert set(panel.test.answers.values()) == {30, 60}


def test_next_waits_for_both_sliders_and_a_double_click_writes_nothing(opened):
    panel = opened().show()
    panel.sliders["OVL"].value = 10
    assert panel.next.disabled and not panel.test.answers
    panel.next.click()
    assert not panel.test.answers
    panel.sliders["REL"].value = 51
    assert not panel.next.disabled
    panel.next.click(), panel.next.click()
    assert panel.test.progress == (1, 12) and panel.at.number == 1


def test_back_shows_the_answers_and_undo_takes_them_away(opened):
    panel = opened().show()
    assert panel.back.disabled and panel.undo.disabled
    for values in ((20, 30), (40, 60)):
        panel.sliders["OVL"].value, panel.sliders["REL"].value = values
        panel.next.click()
    panel.back.click()
    assert panel.at.number == 1 and [s.value for s in panel.sliders.values()] == [40, 60] and not panel.next.disabled
    panel.sliders["OVL"].value = 44
    panel.next.click()
    assert panel.at.number == 2 and panel.test.answers[1, "OVL"] == 44
    panel.undo.click()
    assert panel.at.number == 1 and panel.next.disabled and panel.test.progress == (1, 12)


def test_a_caption_is_text_and_a_fault_is_said(opened):
    panel = opened().show()
    panel.show(next(trial for trial in panel.test.trials if trial.item == "bell"))
    assert "a &lt;bell&gt; rings" in panel.head.value
    panel.test.close()
    panel.sliders["OVL"].value, panel.sliders["REL"].value = 5, 6
    panel.next.click()
    assert "no longer writes" in panel.line.value and not panel.test.answers


def test_time_on_a_trial_adds_up(opened, tmp_path):
    panel = opened().show()
    panel.start -= 5
    panel.sliders["OVL"].value, panel.sliders["REL"].value = 5, 6
    panel.next.click(), panel.back.click()
    panel.sliders["OVL"].value = 7
    panel.next.click()
    assert all(rating.seconds >= 5 for rating in read_ratings(tmp_path / "ratings.csv"))
    assert time.monotonic() - panel.start < 60


def test_the_player_holds_the_levelled_sound(opened, tmp_path):
    import base64
    panel = opened().show()
    data = panel.player.value.split("base64,")[1].split("'")[0]
    (tmp_path / "x.wav").write_bytes(base64.b64decode(data))
    audio, rate = load_audio(tmp_path / "x.wav")
    assert rate == 16_000 and (audio - panel.test.audio(panel.at)).abs().max() < 1e-3
