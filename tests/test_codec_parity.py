"The codec against AudioCraft's own numbers, layer by layer."
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiogen_nb import Codec
from audiogen_nb.codec.seanet import CodecConfig
from audiogen_nb.engine.chunks import folded
from audiogen_nb.peers.audiocraft_codec import codec_from_audiocraft, codec_to_audiocraft

DATA = Path(__file__).parent / "data" / "parity"
CONFIG = CodecConfig(n_filters=4, strides=(2, 4, 5, 8), dimension=16, n_q=4, card=64, norm="weight")


@pytest.fixture(scope="module")
def expected():
    return load_file(DATA / "expected.safetensors")


@pytest.fixture(scope="module")
def state():
    return torch.load(DATA / "compression_state_dict.bin", weights_only=True)["best_state"]


@pytest.fixture(scope="module")
def codec(state):
    return codec_from_audiocraft(state, CONFIG)


def close(got, want, tolerance=1e-4):
    assert got.shape == want.shape
    assert (got - want).abs().max() < tolerance


@torch.no_grad()
@pytest.mark.parametrize("part, start", [("enc", "clip"), ("dec", "clip_quantized")])
def test_every_layer(codec, expected, part, start):
    x = expected[start]
    for i, layer in enumerate(codec.encoder if part == "enc" else codec.decoder):
        x = layer(x)
        close(x, expected[f"clip_{part}_layer{i:02}"], 2e-5)


@torch.no_grad()
def test_codes_levels_and_sound(codec, expected):
    close(codec.encoder(expected["wav"]), expected["enc_latent"], 2e-5)
    codes = codec.encode(expected["wav"], sample_rate=16_000)
    assert torch.equal(codes, expected["codes"]) and torch.equal(codes[:, :2], expected["codes_nq2"])
    residual = codec.encoder(expected["wav"])
    for k, book in enumerate(codec.quantizer.codebooks):
        entry = book.entries[codes[:, k]].transpose(1, 2)
        close(residual, expected["rvq_residual_in"][k], 2e-5)
        close(entry, expected["rvq_stage_quantized"][k], 1e-6)
        residual = residual - entry
    close(codec.quantizer.decode(codes), expected["quantized"], 1e-6)
    close(codec.decode(codes), expected["decoded"], 2e-5)
    close(codec.decode(codes, length=expected["wav"].shape[-1]), expected["recon_trimmed"], 2e-5)
    close(codec.decode(codes[:, :2])[..., :3200], expected["decoded_nq2_first3200"], 2e-5)
    close(codec.decode(expected["random_codes"]), expected["random_codes_decoded"], 2e-5)


def test_weights_go_back_as_they_came(codec, state):
    back = codec_to_audiocraft(codec)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name].float(), state[name].float()) for name in state)


def test_both_spellings_of_weight_norm_load(codec, state):
    new = {name.replace("weight_g", "parametrizations.weight.original0").replace("weight_v", "parametrizations.weight.original1"): t
           for name, t in state.items()}
    again = codec_from_audiocraft(new, CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), codec.state_dict().values()))


@torch.no_grad()
def test_folded_and_bfloat16(codec, expected):
    plain = folded(codec)
    close(plain.decode(expected["codes"]), expected["decoded"])
    assert torch.equal(plain.encode(expected["wav"]), expected["codes"])
    again = Codec(plain.config)
    again.load_state_dict(plain.state_dict())
    close(again.eval().decode(expected["codes"]), expected["decoded"])
    assert not any("parametrizations" in name for name in plain.state_dict())
    half = folded(codec, torch.bfloat16)
    noise = half.decode(expected["codes"]) - expected["decoded"]
    assert noise.dtype == torch.float32 and 10 * torch.log10(expected["decoded"].square().mean() / noise.square().mean()) > 20
    assert half.encode(expected["wav"]).shape == expected["codes"].shape
    assert "encoder.0.conv.parametrizations.weight.original0" in codec.state_dict(), "the original keeps its names"
