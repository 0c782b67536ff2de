"""Embedders: the front end of aiSFX, blocks, the published weights, wrappers for transformers and for any function, fetching."""
import json
import math
import subprocess
import zipfile
from collections import OrderedDict
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

import audiogen_nb.judge.embedding as em
from audiogen_nb.cli import main
from audiogen_nb.judge.embedding import (HEADS, AiSFX, Embedder, FunctionEmbedder, HFEmbedder, SoundEffectNet, effect_frames, fetch_judge,
                                         frame_blocks, load_aisfx, load_embedder, wave_blocks)
from audiogen_nb.sound import load_audio

SOUNDS = Path(__file__).resolve().parent.parent / "nbs" / "sounds"


def noise(n, seed=0, level=0.3):
    return level * (2 * torch.rand(1, n, generator=torch.Generator().manual_seed(seed)) - 1)


@pytest.fixture(scope="module")
def ear():
    "aiSFX's architecture, small and random"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AiSFX(SoundEffectNet(4, {"prosfx": 7, "other": 3}))


# The front end

def by_hand(samples):
    "Steps of the published description, one number at a time, in float64"
    mel = lambda hz: 1127.01048 * math.log(1 + hz / 700)
    n_frames = -(-len(samples) // 1024) + 1
    padded = np.concatenate([np.zeros(1024), samples, np.zeros(2048)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2047)
    edges = [mel(22050) * i / 97 for i in range(98)]
    weights = np.zeros((1025, 96))
    for k in range(1025):
        at = mel(k * 44100 / 2048)
        for i in range(96):
            low, middle, high = edges[i:i + 3]
            weights[k, i] = max(0, min((at - low) / (middle - low), (high - at) / (high - middle)))
    weights /= weights.sum(0)
    frames = np.stack([padded[1024 * i:1024 * i + 2048] * window for i in range(n_frames)])
    return np.log10(1 + 1e4 * (np.abs(np.fft.rfft(frames)) ** 2 @ weights)) / 9.457798957824707


@pytest.mark.parametrize("n", [1, 1024, 5000])
def test_the_front_end_is_the_one_described(n):
    audio = noise(n)[0]
    expected = by_hand(audio.double().numpy())
    found = effect_frames(audio)
    assert found.shape == expected.shape == (1 + -(-n // 1024), 96)
    assert np.abs(found.numpy() - expected).max() < 1e-4             # float32: the mel scale alone is good to 1e-5


def test_the_level_is_left_as_it_is():
    loud, soft = effect_frames(noise(20000)[0]), effect_frames(noise(20000)[0] / 2)
    assert torch.allclose((loud - soft)[3:-3], torch.tensor(math.log10(4) / 9.457798957824707), atol=2e-4)
    assert effect_frames(torch.zeros(3000)).abs().max() == 0


def test_a_long_sound_is_framed_in_parts():
    audio = noise(1024 * 4100)[0]
    assert torch.allclose(effect_frames(audio)[4090:4098], effect_frames(audio[1024 * 4080:])[10:18], atol=1e-5)


@pytest.mark.parametrize("n, blocks", [(1, 1), (99, 1), (100, 1), (149, 1), (150, 2), (199, 2), (200, 3)])
def test_blocks_of_frames(n, blocks):
    frames = torch.arange(1, n + 1).float()[:, None].expand(n, 96)
    cut = frame_blocks(frames)
    assert cut.shape == (blocks, 100, 96)
    assert cut[-1, 0, 0] == 50 * (blocks - 1) + 1 and cut[-1].count_nonzero() == 96 * min(n, 100)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("hop", [1, 3, 4])
def test_blocks_of_samples_cover_a_clip(n, hop):
    cut = wave_blocks(torch.arange(n), 4, hop)
    assert set(cut.flatten().tolist()) == set(range(n)) and cut.shape[1] == min(n, 4)
    assert all(0 < b - a <= hop for a, b in zip(cut[:, 0].tolist(), cut[1:, 0].tolist()))


# One interface

def test_clips_do_not_see_each_other(ear):
    clips = [noise(n, i) for i, n in enumerate((3000, 250_000, 100_000))]
    together = ear.embed(clips, 44100)
    assert together.shape == (3, ear.dim) and together.dtype == torch.float32
    scale = together.abs().max()
    for size in (1, 2, 100):
        assert torch.allclose(ear.embed(clips, 44100, batch_size=size), together, atol=1e-5 * scale)
    for i, clip in enumerate(clips):
        assert torch.allclose(ear.embed([clip[0]], 44100)[0], together[i], atol=1e-5 * scale)
    assert [len(b) for b in ear.blocks(clips, 44100)] == [1, 3, 1]
    assert torch.allclose(ear.blocks(clips, 44100)[1].mean(0), together[1])


def test_a_batch_is_a_list_of_clips(ear):
    batch = torch.stack([noise(50_000, 0), noise(50_000, 1)])
    assert torch.equal(ear.embed(batch, 44100), ear.embed([*batch], 44100))
    assert torch.allclose(ear.embed(batch.double(), 44100), ear.embed(batch, 44100))
    assert ear.embed(batch.requires_grad_(), 44100).requires_grad is False


def test_the_rate_matters(ear):
    low = noise(16_000)
    assert (ear.embed([low], 16_000) - ear.embed([low], 44_100)).abs().max() > 1e-3


def test_logits_are_of_the_head(ear):
    clips = [noise(120_000), noise(30_000, 1)]
    other = AiSFX(ear.net, "other")
    assert ear.logits(clips, 44100).shape == (2, 7) and other.logits(clips, 44100).shape == (2, 3)
    assert torch.equal(ear.embed(clips, 44100), other.embed(clips, 44100)) and ear.fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="head must be one of prosfx, other"):
        AiSFX(ear.net, "nobody")


def test_fingerprints(ear):
    assert ear.fingerprint() == AiSFX(ear.net).fingerprint()
    changed = SoundEffectNet(4, {"prosfx": 7, "other": 3})
    changed.load_state_dict(ear.net.state_dict())
    assert AiSFX(changed).fingerprint() == ear.fingerprint()
    with torch.no_grad():
        changed.stages[3][4].running_var[0] += 1
    assert AiSFX(changed).fingerprint() != ear.fingerprint()


@pytest.mark.parametrize("audio, error, says", [
    (torch.zeros(2, 100), ValueError, r"\(B, 1, T\)"), (torch.zeros(1, 2, 100), ValueError, r"\(B, 1, T\)"),
    ([], ValueError, "no clip"), ([torch.zeros(2, 100)], ValueError, r"audio\[0\] must be one mono clip"),
    ([torch.zeros(1, 10), torch.full((1, 10), math.nan)], ValueError, r"audio\[1\] has NaN"),
    ([torch.zeros(1, 0)], ValueError, "empty"), ([[0.0, 0.1]], TypeError, "torch tensor"), (torch.zeros(0, 1, 100), ValueError, "no clip"),
    ([torch.zeros(100, dtype=torch.int16)], TypeError, "floating point")])
def test_what_is_no_sound_is_refused(ear, audio, error, says):
    with pytest.raises(error, match=says):
        ear.embed(audio, 16_000)


def test_rates_and_batches_are_checked(ear):
    with pytest.raises(ValueError, match="from_rate"):
        ear.embed([noise(100)], 0)
    with pytest.raises(ValueError, match="batch_size"):
        ear.embed([noise(100)], 16_000, batch_size=0)


def test_an_embedder_must_say_how():
    bare = Embedder("bare", 8000, 3)
    for call in (lambda: bare.embed([noise(10)], 8000), lambda: bare.hear(None), bare.fingerprint):
        with pytest.raises(NotImplementedError, match="Embedder does not say"):
            call()


# Any function

def mean_and_peak(x): return torch.stack([x.mean(-1), x.abs().amax(-1)], -1)


def test_a_function_as_an_embedder():
    clip = noise(2500)
    whole = FunctionEmbedder("f", mean_and_peak, 1000, 2, "1")
    assert torch.allclose(whole.embed([clip], 1000), mean_and_peak(clip))
    blocks = FunctionEmbedder("f", mean_and_peak, 1000, 2, "1", seconds=1.0)
    assert torch.allclose(blocks.blocks([clip], 1000)[0], mean_and_peak(torch.stack([clip[0, :1000], clip[0, 1000:2000], clip[0, 1500:]])))
    assert len(FunctionEmbedder("f", mean_and_peak, 1000, 2, "1", 1.0, 0.5).blocks([clip], 1000)[0]) == 4
    assert torch.allclose(blocks.embed([clip[:, :500]], 1000)[0, 0], clip[0, :500].sum() / 1000)        # padded
    assert len({f.fingerprint() for f in (whole, blocks, FunctionEmbedder("f", mean_and_peak, 1000, 2, "2"))}) == 3
    named = FunctionEmbedder("f", mean_and_peak, 1000, 2, "1", classify=lambda x: x[:, :5])
    assert torch.equal(named.logits([clip], 1000)[0], clip[0, :5])
    with pytest.raises(ValueError, match="no classes"):
        whole.logits([clip], 1000)


@pytest.mark.parametrize("function, says", [(lambda x: x[:, :3], r"must give \(N, 2\)"), (lambda x: x.new_full((len(x), 2), math.nan), "finite"),
                                            (lambda x: x[:0, :2], "one row for each")])
def test_what_a_function_gives_is_checked(function, says):
    with pytest.raises(ValueError, match=says):
        FunctionEmbedder("f", function, 1000, 2, "1").embed([noise(100)], 1000)


def test_blocks_of_a_function_are_checked():
    for more in ({"seconds": 0}, {"seconds": 1.0, "hop": 2.0}, {"hop": 1.0}, {"seconds": math.nan}):
        with pytest.raises(ValueError, match="seconds|hop"):
            FunctionEmbedder("f", mean_and_peak, 1000, 2, "1", **more)


# Networks in transformers

@pytest.fixture(scope="module")
def hf():
    hf = pytest.importorskip("transformers")
    from transformers.utils import logging
    logging.disable_progress_bar()
    return hf


def tiny_clap(hf, folder, fusion=False):
    from tokenizers import Tokenizer, models, pre_tokenizers
    text = dict(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=20,
                pad_token_id=0)
    hears = dict(num_mel_bins=64, spec_size=128, hidden_size=16, patch_embeds_hidden_size=8, depths=[1, 1], num_attention_heads=[2, 2],
                 window_size=4, patch_size=4, patch_stride=[4, 4], num_hidden_layers=2, enable_fusion=fusion,
                 **({"fusion_type": "aff_2d"} if fusion else {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf.ClapModel(hf.ClapConfig(text_config=text, audio_config=hears, projection_dim=12)).save_pretrained(folder)
    hf.ClapFeatureExtractor(sampling_rate=48_000, max_length_s=1, truncation="fusion" if fusion else "rand_trunc").save_pretrained(folder)
    vocabulary = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<pad>", "<unk>", "dog", "rain"])}, "<unk>"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("fusion", [False, True])
def test_clap_hears_and_reads(hf, tmp_path, fusion):
    clap = load_embedder(tiny_clap(hf, tmp_path, fusion), seconds=1.0)
    clips = [noise(20_000), noise(120_000, 1), noise(48_000, 2)]
    heard = clap.embed(clips, 48_000)
    assert (clap.name, clap.sample_rate, clap.dim) == (tmp_path.name, 48_000, 12) and heard.shape == (3, 12)
    np.random.seed(1)                                                    # the extractor draws with NumPy
    assert torch.allclose(clap.embed(clips, 48_000), heard, atol=1e-5)
    assert torch.allclose(clap.embed(clips[2:], 48_000)[0], heard[2], atol=1e-5)
    with torch.no_grad():                                                # what transformers itself makes of one block
        inputs = hf.ClapFeatureExtractor.from_pretrained(tmp_path)(clips[2][0].numpy(), sampling_rate=48_000, return_tensors="pt")
        inputs["is_longer"] = torch.tensor([[False]])
        made = hf.ClapModel.from_pretrained(tmp_path).get_audio_features(**inputs)
    assert torch.allclose(getattr(made, "pooler_output", made), heard[2:], atol=1e-5)
    read = clap.embed_text(["dog", "rain rain dog"])
    assert read.shape == (2, 12) and torch.allclose(clap.embed_text(["dog"])[0], read[0], atol=1e-5)
    assert (read[0] - read[1]).abs().max() > 1e-4
    assert clap.fingerprint() == load_embedder(tmp_path, seconds=1.0).fingerprint() != load_embedder(tmp_path, seconds=0.5).fingerprint()
    with pytest.raises(ValueError, match="no classes"):
        clap.logits(clips, 48_000)
    with pytest.raises(ValueError, match="seconds must be at most 1"):
        load_embedder(tmp_path, seconds=2.0)


def test_ast_names_kinds(hf, tmp_path):
    config = hf.ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64, num_mel_bins=32,
                          num_labels=5)
    hf.ASTForAudioClassification(config).save_pretrained(tmp_path)
    hf.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(tmp_path)
    ast = load_embedder(str(tmp_path), seconds=0.6)
    assert isinstance(ast, HFEmbedder) and (ast.sample_rate, ast.dim) == (16_000, 16)
    assert ast.embed([noise(30_000)], 16_000).shape == (1, 16) and ast.logits([noise(30_000)], 16_000).shape == (1, 5)
    assert len(ast.blocks([noise(30_000)], 16_000)[0]) == 4                             # 1.875 s in blocks of 0.6 s
    with pytest.raises(ValueError, match="reads no texts"):
        ast.embed_text(["dog"])


def test_hubert_is_averaged_over_time(hf, tmp_path):
    config = hf.HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8), conv_stride=(5, 4),
                             conv_kernel=(10, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)
    hf.HubertModel(config).save_pretrained(tmp_path)
    hf.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(tmp_path)
    hubert, clip = load_embedder(tmp_path, seconds=0.5), noise(8000)
    with torch.no_grad():
        expected = hubert.model(clip).last_hidden_state.mean(1)
    assert torch.allclose(hubert.embed([clip], 16_000), expected, atol=1e-6)


def test_checkpoints_that_are_not_whole_are_refused(hf, tmp_path):
    tiny_clap(hf, tmp_path)
    from safetensors.torch import load_file, save_file
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("audio_projection.linear1.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 of its weights, e.g. audio_projection.linear1.weight"):
        load_embedder(tmp_path, seconds=1.0)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="cannot load the embedder"):            # a pickle is not opened
        load_embedder(tmp_path, seconds=1.0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(ValueError, match="holds no network that hears"):
        load_embedder(tmp_path)
    with pytest.raises(ValueError, match="has no key 'revison': did you mean 'revision'"):
        load_embedder(tmp_path, revison="x")


# Fetching

@pytest.fixture
def wheel(tmp_path, monkeypatch):
    "A small wheel with members of the published one's names, taken for the published one"
    members = {name: b"x" * (i + 5) for i, name in enumerate(em._MEMBERS)}
    path = tmp_path / "aisfx-0.1.2-py2.py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in [*members.items(), ("aisfx/inference.py", b"raise SystemExit")]:
            archive.writestr(name, data)
    stamp = lambda data: (len(data), sha256(data).hexdigest())
    monkeypatch.setattr(em, "_WHEEL", stamp(path.read_bytes()))
    monkeypatch.setattr(em, "_CHECKPOINT", stamp(members["aisfx/models/checkpoint.pth"]))
    monkeypatch.setattr(em, "_MEMBERS", {name: (em._MEMBERS[name][0], len(data)) for name, data in members.items()})
    return path


@pytest.fixture
def pip(wheel, monkeypatch):
    "pip, replaced by a copy of the small wheel; the commands it was called with"
    calls = []

    def run(command, **more):
        calls.append(command)
        Path(command[command.index("--dest") + 1], wheel.name).write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")
    monkeypatch.setattr(em.subprocess, "run", run)
    return calls


def test_fetching_keeps_the_weights_and_the_licence(pip, tmp_path):
    folder = fetch_judge(tmp_path / "new" / "judge")
    assert folder == tmp_path / "new" / "judge" / "aisfx"
    assert sorted(p.name for p in folder.iterdir()) == ["ABOUT", "LICENSE", "checkpoint.pth"]
    assert [p.name for p in folder.parent.iterdir()] == ["aisfx"]                        # nothing half done lies about
    command, = pip
    assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "aisfx==0.1.2" and "--no-deps" in command
    assert not any("://" in part or "index" in part for part in command)                 # from wherever pip is set up to ask
    assert fetch_judge(folder.parent) == folder and len(pip) == 1                        # is there
    (folder / "checkpoint.pth").write_bytes(b"cut")
    fetch_judge(folder.parent)
    assert (folder / "checkpoint.pth").read_bytes() == b"xxxxx" and len(pip) == 2


def test_a_wheel_that_is_here_needs_no_pip(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(em.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    assert (fetch_judge(tmp_path / "judge", wheel) / "LICENSE").is_file()
    with pytest.raises(FileNotFoundError, match="no wheel at"):
        fetch_judge(tmp_path / "other", tmp_path / "no.whl")


@pytest.mark.parametrize("n", [-1, 20, 60])
def test_a_changed_wheel_is_refused(wheel, tmp_path, n):
    data = bytearray(wheel.read_bytes())
    data[n] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(ValueError, match="not the published wheel"):
        fetch_judge(tmp_path / "judge", wheel)
    assert not [*(tmp_path / "judge").iterdir()]


@pytest.mark.parametrize("change", ["size", "missing", "twice"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_members_of_a_wheel_are_checked(wheel, tmp_path, monkeypatch, change):
    first, *others = em._MEMBERS
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in others if change == "missing" else [*em._MEMBERS, *([first] if change == "twice" else [])]:
            archive.writestr(name, b"x" * (em._MEMBERS[name][1] + (change == "size")))
    monkeypatch.setattr(em, "_WHEEL", (wheel.stat().st_size, sha256(wheel.read_bytes()).hexdigest()))
    with pytest.raises(ValueError, match="must hold aisfx/models/checkpoint.pth once, with 5 bytes"):
        fetch_judge(tmp_path / "judge", wheel)
    assert not [*(tmp_path / "judge").iterdir()]


def test_pip_that_fails_is_quoted(tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "no matching distribution")
    monkeypatch.setattr(em.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(FileNotFoundError, match=r"no matching distribution.*--wheel"):
        fetch_judge(tmp_path)


def test_the_command(pip, wheel, tmp_path, capsys):
    assert main(["fetch-judge", "--dest", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "a" / "aisfx")
    assert main(["fetch-judge", "--dest", str(tmp_path / "b"), "--wheel", str(wheel)]) == 0 and len(pip) == 1
    assert main(["fetch-judge", "--dest", str(tmp_path / "c"), "--wheel", str(tmp_path / "no.whl")]) == 2
    assert "no wheel at" in capsys.readouterr().err


# Checkpoints

def published(net):
    "A network's weights in the layout of the published checkpoint"
    state, heads = OrderedDict(), list(net.heads)
    for name, value in net.state_dict().items():
        part, i, j, what = name.split(".")
        j = int(j)
        state[f"fc.{heads.index(i)}.{j}.{what}" if part == "heads" else
              f"embedding_net.conv_block{int(i) + 1}.{'bn' if j % 3 else 'conv'}{j // 3 + 1}.{what}"] = value
    return state, {name: (i, net.heads[name][-1].out_features) for i, name in enumerate(heads)}


def kept(folder, monkeypatch, made):
    torch.save(made, folder / "checkpoint.pth")
    data = (folder / "checkpoint.pth").read_bytes()
    monkeypatch.setattr(em, "_CHECKPOINT", (len(data), sha256(data).hexdigest()))
    return folder


def test_the_layout_of_the_checkpoint(tmp_path, monkeypatch):
    net = SoundEffectNet()
    ear = load_embedder("aisfx", folder=kept(tmp_path, monkeypatch, published(net)), head="ucsMixed")
    assert all(torch.equal(a, b) for a, b in zip(ear.net.state_dict().values(), net.state_dict().values(), strict=True))
    assert ear.logits([noise(1000)], 44100).shape == (1, HEADS["ucsMixed"]) and ear.dim == 512
    assert not any(p.requires_grad for p in ear.net.parameters()) and not ear.net.training


class Evil:
    def __reduce__(self): return Path.touch, (Path("evil"),)


def test_a_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="[Ww]eights"):
        load_aisfx(kept(tmp_path, monkeypatch, (Evil(), {})))
    assert not Path("evil").exists()


def test_weights_that_are_not_there_or_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match="fetch them once with: audiogen-nb fetch-judge"):
        load_embedder(folder=tmp_path)
    (tmp_path / "checkpoint.pth").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not the published checkpoint; delete"):
        load_embedder(folder=tmp_path)
    with pytest.raises(ValueError, match="has no key 'heads': did you mean 'head'"):
        load_embedder(heads="prosfx")


# The published weights. The figures come from the authors' code (network, blocks, and the front end with Essentia) on the same samples at
# 44.1 kHz: length of the mean vector, every 64th of its numbers, the first four scores of the first head.
PUBLISHED = {
    "recording_applause": (30.581, [1.2794, 0.7492, 2.1453, 0.5431, 0.8292, 0.3196, 1.8619, 1.1121], [-2.108, 2.767, -8.804, -1.632]),
    "recording_bell": (30.7567, [1.479, 0.9014, 0.9262, 1.489, 2.4823, 1.823, 0.6868, 1.4463], [-7.475, -2.258, 6.253, -6.588]),
    "toy_siren": (42.2997, [0.8778, 3.1406, 1.0657, 1.4839, 3.6504, 2.165, 1.0139, 0.8807], [-0.864, -10.176, -0.67, -5.388]),
}


@pytest.fixture(scope="module")
def aisfx():
    try:
        return load_embedder("aisfx")
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", PUBLISHED)
def test_three_sounds_as_the_authors_hear_them(aisfx, name):
    length, numbers, scores = PUBLISHED[name]
    audio = load_audio(SOUNDS / f"{name}.ogg", 44_100)[0]
    vector = aisfx.embed([audio], 44_100)[0]
    assert vector.norm().item() == pytest.approx(length, abs=0.01)
    assert vector[::64].tolist() == pytest.approx(numbers, abs=0.005)
    assert aisfx.logits([audio], 44_100)[0, :4].tolist() == pytest.approx(scores, abs=0.01)


def test_the_published_heads(aisfx):
    assert {name: head[-1].out_features for name, head in aisfx.net.heads.items()} == HEADS and aisfx.fingerprint() == "f898c89c6bb1e66e"
