"Adapters: the base model stays as it is, runs resume, adapters are kept apart or added in, bad input."
import copy
import shutil

import pytest
import torch

pytest.importorskip("peft")

from audiogen_nb.data.toy_kinds import ToyWorld, toy_clip      # noqa: E402
from audiogen_nb.train.lora import LoRATraining, adapters, fit_lora, merge_lora      # noqa: E402

SETTINGS = LoRATraining(n_steps=12, batch_size=4, learning_rate=2e-2, warmup=2, n_items=8, checkpoint_every=5, sample_every=6)


@pytest.fixture(scope="module")
def clips():
    return [toy_clip("siren", seed, duration=0.5) for seed in range(6)]


@pytest.fixture(scope="module")
def run(tiny, clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lora"
    return folder, fit_lora(tiny, clips, folder, SETTINGS, clips[-2:], progress=False)


def state(model):
    return {name: value.clone() for name, value in model.lm.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


def test_the_loss_falls_and_the_base_model_is_untouched(tiny, clips, tmp_path):
    before, sound = state(tiny), tiny.generate("a siren", seed=0)
    log = fit_lora(tiny, clips, tmp_path / "run", SETTINGS, clips[-2:], progress=False)
    assert log[-1]["loss"] < log[0]["loss"] and [("held_out" in row) for row in log].count(True) == 2
    assert same(state(tiny), before) and torch.equal(tiny.generate("a siren", seed=0), sound)
    assert all(p.requires_grad for p in tiny.lm.parameters()) and not tiny.lm.training


def test_only_adapters_are_kept(tiny, run):
    folder, _ = run
    assert sorted(p.name for p in (folder / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert all("lora_" in name for name in checkpoint["lm"])
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]


def test_a_run_cut_in_two_is_the_run_in_one(tiny, clips, run, tmp_path, monkeypatch):
    _, whole = run
    from audiogen_nb.train.lm import LMTrainer
    step = LMTrainer.step

    def die(self, n):
        if n == 7:
            raise KeyboardInterrupt
        return step(self, n)

    before = state(tiny)
    monkeypatch.setattr(LMTrainer, "step", die)
    with pytest.raises(KeyboardInterrupt):
        fit_lora(tiny, clips, tmp_path / "cut", SETTINGS, clips[-2:], progress=False)
    assert same(state(tiny), before)
    monkeypatch.undo()
    assert fit_lora(tiny, clips, tmp_path / "cut", SETTINGS, clips[-2:], progress=False) == whole
    one, two = (state(merge_lora(tiny, folder / "adapter")) for folder in (run[0], tmp_path / "cut"))
    assert same(one, two)


def test_merged_is_the_adapted_model(tiny, run):
    before = state(tiny)
    merged, half, none = (merge_lora(tiny, run[0] / "adapter", scale) for scale in (1.0, 0.5, 0.0))
    assert same(state(tiny), before) and state(merged).keys() == before.keys()
    for name, value in state(merged).items():
        assert torch.allclose(state(half)[name], (value + before[name]) / 2, atol=1e-5)
        assert torch.allclose(state(none)[name], before[name], atol=1e-6)
    assert any(not torch.equal(value, before[name]) for name, value in state(merged).items())
    assert merged.codec is tiny.codec and merged.provenance["lora"]["rank"] == 8 and "lora" not in tiny.provenance


def test_merged_saves_loads_and_sounds_like_any_model(tiny, run, tmp_path):
    from audiogen_nb import AudioGen
    merged = merge_lora(tiny, run[0] / "adapter")
    again = AudioGen.from_pretrained(merged.save_pretrained(tmp_path / "m"))
    assert torch.equal(again.generate("a siren", seed=0), merged.generate("a siren", seed=0))
    assert not torch.equal(merged.generate_codes("a siren", seed=0), tiny.generate_codes("a siren", seed=0))


@pytest.mark.parametrize("change", [dict(rank=2), dict(alpha=1.0), dict(targets=r"blocks\..*q_proj"), dict(seed=1), dict(n_items=4)])
def test_every_setting_matters(tiny, clips, run, tmp_path, change):
    from dataclasses import replace
    few = replace(SETTINGS, n_steps=3)
    logs = [fit_lora(tiny, clips, tmp_path / name, s, progress=False) for name, s in (("a", few), ("b", replace(few, **change)))]
    assert [row["loss"] for row in logs[0]][1:] != [row["loss"] for row in logs[1]][1:]


def test_adapters_come_off_whatever_happens(tiny):
    before = state(tiny)
    with pytest.raises(RuntimeError, match="inside"), adapters(tiny, SETTINGS):
        assert not same(state(tiny), before)
        raise RuntimeError("inside")
    assert same(state(tiny), before) and all(p.requires_grad for p in tiny.lm.parameters())


def test_bad_input(tiny, clips, run, tmp_path):
    with pytest.raises(ValueError, match="clips is empty"):
        fit_lora(tiny, [], tmp_path / "x")
    with pytest.raises(ValueError, match="8000 Hz"):
        fit_lora(tiny, list(ToyWorld(1, 0, 0.5, 8000)), tmp_path / "x")
    with pytest.raises(ValueError, match="rank"):
        LoRATraining(rank=0)
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        merge_lora(tiny, tmp_path)
    shutil.copytree(run[0] / "adapter", tmp_path / "pickled")
    (tmp_path / "pickled" / "adapter_model.safetensors").unlink()
    torch.save({}, tmp_path / "pickled" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        merge_lora(tiny, tmp_path / "pickled")
    from audiogen_nb.lm.transformer import AudioLM
    other = copy.copy(tiny)
    other.lm = AudioLM(AudioLM.preset("pocket"))
    with pytest.raises(ValueError, match="do not fit"):
        merge_lora(other, run[0] / "adapter")
    assert not (tmp_path / "x").exists()


def test_peft_is_imported_lazily_and_missed_clearly(tiny_folder):
    import subprocess
    import sys
    code = ("import sys, audiogen_nb.train.lora as l; assert 'peft' not in sys.modules; sys.modules['peft'] = None\n"
            f"from audiogen_nb import AudioGen; m = AudioGen.from_pretrained({str(tiny_folder)!r})\n"
            "with l.adapters(m, l.LoRATraining()): pass")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert "pip install peft" in run.stderr, run.stderr


def test_captions_are_read_before_anything_is_encoded(tiny, clips, tmp_path):
    from dataclasses import replace
    foreign = [*clips[:5], replace(clips[5], captions=("a siren", "\u72ac"), name="5.wav")]
    for few, held_out in ((foreign, ()), (clips[:5], foreign[5:])):
        with pytest.raises(ValueError, match="5.wav: '\u72ac' holds no word"):
            fit_lora(tiny, few, tmp_path / "run", SETTINGS, held_out, progress=False)
        assert not (tmp_path / "run").exists()


def test_mended_clips_are_encoded_again_and_the_recipe_notes_both(tiny, clips, tmp_path, capsys):
    from dataclasses import replace
    from audiogen_nb.train.runs import read_recipe
    from audiogen_nb.train.shards import TokenShards
    few, mended = replace(SETTINGS, n_steps=2), [replace(clips[0], captions=("a fire engine",)), *clips[1:]]
    fit_lora(tiny, clips, tmp_path / "run", few, progress=False)
    fit_lora(tiny, mended, tmp_path / "run", replace(few, n_steps=3), progress=False)
    assert "captions changed: encoding again" in capsys.readouterr().err
    first, second = read_recipe(tmp_path / "run")
    assert first["made_from"]["tokens"]["captions"] != second["made_from"]["tokens"]["captions"]
    assert {text for _, texts in TokenShards(tmp_path / "run" / "tokens") for text in texts} & {"a fire engine"}
    assert merge_lora(tiny, tmp_path / "run" / "adapter").provenance["lora"]["recipe"] == [first, second]
