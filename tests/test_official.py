"""AudioCraft's checkpoints and transformers' MusicGen layout: parity, precisions, round trips, and what is refused."""
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiogen_nb import AudioGen
from audiogen_nb.engine.products import routes
from audiogen_nb.hub import AUDIOCRAFT_FILES, model_folder
from audiogen_nb.peers.pickles import read_checkpoint, read_yaml
from audiogen_nb.files import new_folder
from audiogen_nb.cli import main
from audiogen_nb.peers.parity import parity_ladder
from audiogen_nb.lm.transformer import AudioLM
from audiogen_nb.peers.audiocraft import NamedTextEncoder, save_audiocraft
from audiogen_nb.pipeline import load_audiocraft
from audiogen_nb.train.codec import without_levels

PARITY = Path(__file__).parent / "data" / "parity"
EXPECTED = load_file(PARITY / "expected.safetensors")


@pytest.fixture(scope="module")
def official():
    "The fixture as a model; its text encoder is never asked"
    return load_audiocraft(PARITY, text_encoder=NamedTextEncoder("t5-large", 32))


def package(folder, file, change):
    "A copy of a fixture's file with something else in it"
    folder.mkdir(exist_ok=True)
    for name in AUDIOCRAFT_FILES:
        content = torch.load(PARITY / name, weights_only=True)
        torch.save(change(content) if name == file else content, folder / name)
    return folder


def yaml(old, new):
    "A change of the configuration"
    def change(content):
        assert old in content["xp.cfg"]
        return {**content, "xp.cfg": content["xp.cfg"].replace(old, new)}
    return change


# Parity

def test_every_rung_of_the_ladder(official):
    rungs = parity_ladder(official, EXPECTED)
    assert len(rungs) == 82 and {rung.part for rung in rungs} == {"language model", "tokens", "sampling", "codec"}
    assert not [str(rung) for rung in rungs if not rung.passed]
    assert {rung.tolerance for rung in rungs if rung.part == "tokens" and "logits" not in rung.name} == {0.0}


def test_the_ladder_sees_a_swapped_matrix(official):
    weight = official.lm.blocks[2].cross_attention.kv_proj.weight
    with torch.no_grad():
        weight.copy_(weight.roll(64, 0))
        broken = [rung.name for rung in parity_ladder(official, EXPECTED) if not rung.passed]
        weight.copy_(weight.roll(64, 0))
    assert broken[0] == "hidden states after layer 2"


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_made_ready_for_generation_it_still_writes_the_same_tokens(dtype):
    lm = load_audiocraft(PARITY, text_encoder=NamedTextEncoder("t5-large", 32), text_padding="zeros", dtype=dtype).lm
    text, mask = EXPECTED["text_hidden"], EXPECTED["text_mask"].bool()
    assert torch.equal(lm.generate(text, mask, 25, greedy=True), EXPECTED["greedy_tokens"])
    assert torch.equal(lm.generate(text, mask, 25, prompt=EXPECTED["prompt_codes"], greedy=True), EXPECTED["continuation_tokens"])


def test_default_padding_makes_items_independent_and_zeros_do_not(official):
    text, mask = EXPECTED["text_hidden"], EXPECTED["text_mask"].bool()
    assert official.lm.config.text_padding == "masked"
    got = official.lm.generate(text, mask, 25, greedy=True)
    assert torch.equal(got[:1], EXPECTED["greedy_tokens_item0_alone"])
    assert torch.equal(got[1:], EXPECTED["greedy_tokens_shortest_alone"])
    assert not torch.equal(got[1], EXPECTED["greedy_tokens"][1])


@pytest.mark.parametrize("dtype,worst", [("bfloat16", 0.1), ("int8", 0.2)])
def test_smaller_precisions_stay_close(dtype, worst):
    lm = load_audiocraft(PARITY, text_encoder=NamedTextEncoder("t5-large", 32), text_padding="zeros", dtype=dtype).lm
    with torch.no_grad():
        got = lm(EXPECTED["fwd_sequence"], EXPECTED["text_hidden"], EXPECTED["text_mask"].bool()).float()
    error = (got - EXPECTED["fwd_logits"]).square().mean().sqrt() / EXPECTED["fwd_logits"].std()
    assert 1e-4 < error < worst


# Round trips

def test_round_trip_is_exact(official, tmp_path):
    save_audiocraft(official, tmp_path / "back")
    for file in AUDIOCRAFT_FILES:
        first, second = (torch.load(where / file, weights_only=True) for where in (PARITY, tmp_path / "back"))
        assert list(second) == list(first) and second["exported"] is True
        assert set(first["best_state"]) == set(second["best_state"])
        assert all(torch.equal(v, second["best_state"][k]) and v.dtype == second["best_state"][k].dtype
                   for k, v in first["best_state"].items())


def test_written_settings_agree_with_audiocrafts_own(official, tmp_path):
    "Every setting that AudioCraft's file has, ours has with the same value, seeds and the like apart"
    save_audiocraft(official, tmp_path / "back")
    free = {"seed", "autocast", "unroll", "music_lm", "coarse_first"}          # used in training, or by other layouts

    def differences(a, b, path=""):
        if isinstance(a, dict) and isinstance(b, dict):
            return [d for k in a if k not in free for d in differences(a[k], b.get(k, "absent"), f"{path}.{k}")]
        return [] if a == b else [(path, a, b)]

    for file in AUDIOCRAFT_FILES:
        assert differences(read_checkpoint(PARITY / file).config, read_checkpoint(tmp_path / "back" / file).config) == []


def test_to_our_folder_and_back(official, tmp_path, capsys):
    assert main(["convert", str(PARITY), str(tmp_path / "ours"), "--text-encoder", "t5-large"]) == 0
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["lm"]["text_dim"] == 32 and "CC BY-NC 4.0" in json.dumps(config["provenance"])
    assert "CC BY-NC 4.0" in capsys.readouterr().err
    stored, own = load_file(tmp_path / "ours" / "lm.safetensors"), official.lm.state_dict()
    assert set(stored) == set(own) and all(torch.equal(stored[k], own[k]) for k in own)
    assert json.loads((tmp_path / "ours" / "text" / "config.json").read_text())["name"] == "t5-large"


def test_from_pretrained_reads_a_folder_of_audiocrafts():
    model = AudioGen.from_pretrained(PARITY)
    assert model.text_encoder.name == "t5-large" and model.generation.max_duration == 10
    with torch.no_grad():
        codes = model.lm.generate(EXPECTED["text_hidden"][:1], EXPECTED["text_mask"][:1].bool(), 25, greedy=True)
    assert torch.equal(codes, EXPECTED["greedy_tokens_item0_alone"])


@pytest.fixture(scope="module")
def plain(pocket):
    "A model of the bundled one's shape, without its streams for levels, which AudioCraft does not know"
    torch.manual_seed(0)
    lm = AudioLM(AudioLM.preset("pocket"))
    return AudioGen(without_levels(pocket.codec), lm, pocket.text_encoder, pocket.generation, pocket.provenance)


def test_pockets_shape_travels_through_audiocrafts_layout(plain, tmp_path):
    plain.save_pretrained(tmp_path / "plain")
    assert main(["convert", str(tmp_path / "plain"), str(tmp_path / "theirs"), "--weights", "float32"]) == 0
    again = load_audiocraft(tmp_path / "theirs", text_encoder=plain.text_encoder)
    args = dict(duration=0.4, seed=1)
    assert torch.equal(again.generate_codes("a dog barks", **args), plain.generate_codes("a dog barks", **args))
    assert again.provenance["licence"] == plain.provenance.get("licence", "not stated")


def test_pocket_itself_stays(tmp_path, capsys):
    assert main(["convert", "pocket", str(tmp_path / "theirs")]) == 2
    assert "knows no codec with band levels" in capsys.readouterr().err and not list(tmp_path.iterdir())


# Refused

class Trap:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["state", "configuration", "version", "whole file", "no archive"])
def test_a_malicious_pickle_is_refused_and_nothing_runs(tmp_path, where):
    spring = tmp_path / "sprung"
    trap, target = Trap(spring), tmp_path / "bad"
    if where in ("state", "configuration", "version"):
        key = {"state": "best_state", "configuration": "xp.cfg", "version": "version"}[where]
        package(target, AUDIOCRAFT_FILES[0], lambda content: {**content, key: {"a": trap} if key == "best_state" else trap})
    else:
        package(target, AUDIOCRAFT_FILES[0], lambda content: content)
        if where == "whole file":
            torch.save(trap, target / AUDIOCRAFT_FILES[0])
        else:
            (target / AUDIOCRAFT_FILES[0]).write_bytes(pickle.dumps(trap, protocol=2))
    with pytest.raises(ValueError, match="refused, nothing of it was run.*mkdir"):
        load_audiocraft(target)
    assert not spring.exists()
    torch_load = torch.load
    torch_load(target / AUDIOCRAFT_FILES[0], weights_only=False) if where != "no archive" else pickle.loads((target / AUDIOCRAFT_FILES[0]).read_bytes())
    assert spring.exists()                                          # it was a real trap


def test_yaml_may_not_name_functions(tmp_path):
    spring = tmp_path / "sprung"
    with pytest.raises(ValueError, match="cannot be read"):
        read_yaml(f"a: !!python/object/apply:os.mkdir ['{spring}']")
    assert not spring.exists()


@pytest.mark.parametrize("text,message", [("a: ${b}\nb: ${a}", "circles"), ("- 1", "no table"), ("{", "cannot be read")])
def test_unreadable_configurations(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", AUDIOCRAFT_FILES)
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_truncated_files(tmp_path, file, keep):
    target = package(tmp_path / "cut", file, lambda content: content)
    whole = (target / file).read_bytes()
    (target / file).write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="damaged|refused") as caught:
        load_audiocraft(target)
    assert str(target / file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", AUDIOCRAFT_FILES)
def test_a_missing_file_is_named(tmp_path, file):
    target = package(tmp_path / "less", file, lambda content: content)
    (target / file).unlink()
    with pytest.raises((FileNotFoundError, ValueError), match=file):
        load_audiocraft(target)


LM, CODEC = AUDIOCRAFT_FILES


@pytest.mark.parametrize("file,change,message", [
    (LM, yaml("n_q: 4", "n_q: 2"), "delays|belong together"),
    (CODEC, yaml("n_q: 4", "n_q: 2"), "do not belong together"),
    (LM, yaml("card: 64", "card: 32"), "do not belong together"),
    (CODEC, yaml("bins: 64", "bins: 128"), "do not belong together"),
    (LM, yaml("dim: 64", "dim: 128"), "do not fit their configuration"),
    (LM, yaml("num_layers: 3", "num_layers: 4"), "do not fit their configuration"),
    (LM, yaml("num_heads: 4", "num_heads: 5"), "multiple of"),
    (LM, yaml("num_heads: 4", "num_heads: many"), "whole number at transformer_lm.num_heads"),
    (LM, yaml("positional_embedding: sin", "positional_embedding: rope"), "positional_embedding = 'rope'"),
    (LM, yaml("  - description", "  - melody"), "fuser.cross"),
    (CODEC, yaml("n_filters: 4", "n_filters: 8"), "another codec"),
    (CODEC, yaml("causal: false", "causal: true"), "seanet.causal = True"),
    (CODEC, yaml("dimension: 16", "dimension: 32"), "another codec"),
    (LM, lambda c: {**c, "best_state": {}}, "no cross-attention"),
    (LM, lambda c: {"best_state": c["best_state"]}, "xp.cfg"),
    (LM, lambda c: [1, 2], "must hold tensors"),
    (CODEC, lambda c: {"pretrained": "someone/codec"}, "points to another checkpoint"),
    (LM, lambda c: {**c, "best_state": {**c["best_state"], "extra.weight": torch.zeros(2)}}, "extra.weight"),
    (LM, lambda c: {**c, "best_state": {k: v[:, :5] if k == "linears.0.weight" else v for k, v in c["best_state"].items()}},
     "."),
])
def test_mismatched_checkpoints(tmp_path, file, change, message):
    target = package(tmp_path / "bad", file, change)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_audiocraft(target, text_encoder=NamedTextEncoder("t5-large", 32))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("settings,kind,message", [
    (dict(text_padding="ones"), ValueError, "text_padding"), (dict(dtype="int3"), ValueError, "dtype"),
    (dict(text_encoder=3), TypeError, "text_encoder"), (dict(text_encoder="./nowhere"), FileNotFoundError, "nowhere"),
    (dict(text_encoder=NamedTextEncoder("t5-base", 768)), ValueError, "width 768, the checkpoint was trained with 32")])
def test_wrong_arguments(settings, kind, message):
    with pytest.raises(kind, match=message):
        load_audiocraft(PARITY, **settings)


def test_pockets_text_encoder_has_another_width(pocket):
    with pytest.raises(ValueError, match="width 72"):
        load_audiocraft(PARITY, text_encoder=pocket.text_encoder)


def test_what_cannot_fit_is_refused_before_it_is_read(monkeypatch):
    for module in list(sys.modules.values()):
        if module.__name__.startswith("audiogen_nb") and hasattr(module, "free_memory"):
            monkeypatch.setattr(module, "free_memory", lambda device="cpu": 1000)
    with pytest.raises(ValueError, match="GB are free"):
        load_audiocraft(PARITY, text_encoder=NamedTextEncoder("t5-large", 32))


def test_a_name_that_leads_nowhere(monkeypatch):
    with pytest.raises(FileNotFoundError, match="no folder"):
        model_folder("nobody")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(FileNotFoundError, match="check the name and the network"):
        load_audiocraft("facebook/audiogen-medium")


def test_an_interrupted_folder_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "model") as inside:
        (inside / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


# transformers

@pytest.fixture(scope="module")
def musicgen_folder(tmp_path_factory):
    "A tiny MusicGen, made and saved by transformers"
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers
    torch.manual_seed(0)
    t5 = transformers.T5Config(d_model=24, d_kv=6, d_ff=48, num_layers=1, num_heads=4, vocab_size=4)
    codec = transformers.EncodecConfig(num_filters=4, hidden_size=16, codebook_size=32, use_causal_conv=False, pad_mode="constant",
                                       use_conv_shortcut=False, sampling_rate=16_000, target_bandwidths=[1.0])
    decoder = transformers.MusicgenDecoderConfig(vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                                 ffn_dim=128, num_codebooks=4, pad_token_id=32, bos_token_id=32, initializer_factor=0.3)
    model = transformers.MusicgenForConditionalGeneration(transformers.MusicgenConfig(
        text_encoder=t5.to_dict(), audio_encoder=codec.to_dict(), decoder=decoder.to_dict()))
    folder = tmp_path_factory.mktemp("transformers") / "musicgen"
    model.save_pretrained(folder)
    tokens = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "rain": 2, "wind": 3}, "<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


def their_logits(folder, sequence, text, mask):
    import transformers
    model = transformers.MusicgenForConditionalGeneration.from_pretrained(folder).eval()
    with torch.no_grad():
        states = model.enc_to_dec_proj(text) * mask[..., None]
        return model.decoder(input_ids=sequence.flatten(0, 1), encoder_hidden_states=states,
                             encoder_attention_mask=mask.long()).logits.unflatten(0, (-1, 4))


def test_musicgen_in_and_out(musicgen_folder, tmp_path, capsys):
    from audiogen_nb.peers.musicgen import save_musicgen
    model = AudioGen.from_pretrained(musicgen_folder)
    assert "CC BY-NC" in capsys.readouterr().err
    sequence, text = torch.randint(33, (2, 4, 9)), torch.randn(2, 5, 24)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    with torch.no_grad():
        ours = model.lm(sequence, text, mask)
    theirs = their_logits(musicgen_folder, sequence, text, mask)
    assert (ours - theirs).abs().max() < 1e-4 and theirs.std() > 0.1
    save_musicgen(model, tmp_path / "back")
    assert torch.equal(their_logits(tmp_path / "back", sequence, text, mask), theirs)


def test_musicgen_agrees_with_pocket(pocket):
    pytest.importorskip("transformers")
    from audiogen_nb.peers.twin import twin_rungs
    assert all(rung.passed for rung in twin_rungs(pocket.lm, n_frames=8, seed=1))


def test_convert_command(musicgen_folder, tmp_path, capsys):
    for argv in ([musicgen_folder, tmp_path / "a"], [tmp_path / "a", tmp_path / "b"],
                 [tmp_path / "b", tmp_path / "c", "--to", "musicgen", "--text-encoder", tmp_path / "a" / "text" / "encoder"]):
        assert main(["convert", *map(str, argv)]) == 0
        assert capsys.readouterr().out.strip() == str(argv[1])
    first, last = (load_file(folder / "model.safetensors") for folder in (musicgen_folder, tmp_path / "c"))
    assert all(torch.equal(first[k], last[k]) for k in last if k.startswith(("decoder.", "enc_to_dec", "text_encoder.")))


@pytest.mark.parametrize("argv,message", [
    (["nobody", "{new}"], "no folder"), (["pocket", "{old}"], "exists"), (["pocket", "{new}/x"], "does not exist"),
    (["pocket", "{new}", "--to", "wav"], "layout"), (["pocket", "{new}", "--weights", "int4"], "weights"),
    (["pocket", "{new}", "--to", "musicgen"], "text encoder"), (["pocket", "{new}", "--text-encoder", "t5-base"], "has its own")])
def test_convert_refuses(tmp_path, capsys, argv, message):
    (tmp_path / "old").mkdir()
    code = main(["convert", *(a.format(new=tmp_path / "new", old=tmp_path / "old") for a in argv)])
    shown = capsys.readouterr()
    assert code == 2 and message in shown.err.splitlines()[-1] and shown.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["old"]


# Memory

PEAK = """
import contextlib, io, re, sys
from audiogen_nb.peers.audiocraft import NamedTextEncoder
from audiogen_nb.pipeline import load_audiocraft
def memory(what): return int(re.search(what + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024
def load(folder): return load_audiocraft(folder, text_encoder=NamedTextEncoder("t5-large", 32), dtype=sys.argv[3])
with contextlib.redirect_stderr(io.StringIO()):
    load(sys.argv[1]); before = memory("VmRSS"); model = load(sys.argv[2])
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("dtype,share", [("float32", 1.0), ("int8", 0.25)])
def test_loading_never_holds_two_copies(tmp_path, dtype, share):
    "A language model of 200 MB in float32, loaded by a process of its own"
    content = torch.load(PARITY / LM, weights_only=True)
    small = content["best_state"]
    dim, layers = 768, 7
    sizes = {64: dim, 192: 3 * dim, 256: 4 * dim, 65: 65, 32: 32}
    state = {}
    for name, value in small.items():
        names = [name] if "layers." not in name else [name.replace("layers.0.", f"layers.{i}.") for i in range(layers)] \
            if "layers.0." in name else []
        shape = [sizes[n] for n in value.shape]
        if name.startswith("linears."):
            shape = [64, dim]
        state |= {n: torch.full(shape, 0.01) for n in names}
    config = content["xp.cfg"].replace("dim: 64", f"dim: {dim}").replace("num_layers: 3", f"num_layers: {layers}")
    (tmp_path / "large").mkdir()
    torch.save({**content, "best_state": state, "xp.cfg": config}, tmp_path / "large" / LM)
    shutil.copy(PARITY / CODEC, tmp_path / "large" / CODEC)
    weights = sum(v.nbytes for v in state.values())
    known = os.environ | {"AUDIOGEN_NB_ROUTES": ",".join(f"{name}={value:d}" for name, value in asdict(routes()).items())}    # measured here
    done = subprocess.run([sys.executable, "-c", PEAK, PARITY, tmp_path / "large", dtype], capture_output=True, text=True, env=known)
    assert done.returncode == 0, done.stderr[-2000:]
    assert weights > 200e6 and int(done.stdout) < weights * (share + 0.35)
