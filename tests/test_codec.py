"The codec: any length, in pieces, and what it refuses."
import random
from dataclasses import replace

import pytest
import torch

from audiogen_nb import Codec
from audiogen_nb.codec import CODEC_PRESETS


def close(got, want, tolerance=1e-4):
    assert got.shape == want.shape
    assert (got - want).abs().max() < tolerance


@pytest.mark.parametrize("name", CODEC_PRESETS)
@pytest.mark.parametrize("n_samples", [1, 319, 320, 321, 1000])
def test_any_length_gives_whole_frames(name, n_samples):
    torch.manual_seed(0)
    codec = Codec(replace(Codec.preset(name), n_filters=4)).eval()
    audio = 0.1 * torch.randn(1, 1, n_samples)
    codes = codec.encode(audio)
    assert codes.shape == (1, codec.n_q, -(-n_samples // codec.hop_length))
    assert codec.decode(codes).shape == (1, 1, codes.shape[-1] * codec.hop_length)
    assert codec.decode(codes, length=n_samples).shape == audio.shape


@pytest.mark.parametrize("name", CODEC_PRESETS)
def test_silence_trains(name):
    "Digital silence has no variance; no norm may turn that into an infinite gradient"
    torch.manual_seed(0)
    codec = Codec(replace(Codec.preset(name), n_filters=4))
    rebuilt, quantized = codec(torch.zeros(1, 1, 1000))
    (rebuilt.square().mean() + quantized.commitment).backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e4 for p in codec.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", CODEC_PRESETS)
def test_any_chunking_equals_the_whole(name):
    "Random chunks, one frame at a time, windows: the plain network's result to 1e-4, the same codes"
    rng = random.Random(name)
    torch.manual_seed(0)
    codec = Codec(replace(CODEC_PRESETS[name], n_filters=6, card=16)).eval()      # few codes: no ties for rounding to break
    for n_samples in (1, codec.hop_length, rng.randrange(400, 900), rng.randrange(2000, 5000)):
        audio = 0.1 * torch.randn(2, 1, n_samples)
        latent = codec.encoder(audio)
        codes = codec.quantizer.encode(latent)
        sound = codec.decoder(codec.quantizer.decode(codes))
        cuts = lambda n: sorted(rng.randrange(1, n) for _ in range(4)) if n > 1 else []
        for pieces in (codes.split(1, -1), codes.tensor_split(sorted({*cuts(codes.shape[-1])}), -1)):
            close(torch.cat(list(codec.stream_decode(iter(pieces))), -1), sound)
        for window in (0.004, 0.05, 100.0):
            close(codec.decode(codes, window=window), sound)
            assert torch.equal(codec.encode(audio, window=window), codes)
        pieces = audio.tensor_split(sorted({*cuts(n_samples)}), -1)
        assert torch.equal(torch.cat(list(codec.stream_encode(iter(pieces))), -1), codes)
        assert codec.decode(codes, length=n_samples).shape == audio.shape


def test_pieces_of_sound_come_while_codes_are_still_coming():
    torch.manual_seed(0)
    codec, asked = Codec(Codec.preset("tiny")).eval(), []
    codes = torch.randint(32, (1, 2, 20))
    stream = codec.stream_decode(asked.append(i) or codes[..., i:i + 1] for i in range(20))
    next(stream)
    assert len(asked) <= 5


def test_memory_of_a_long_decode_is_bounded():
    "Nothing inside is larger than a window's worth"
    torch.manual_seed(0)
    codec = Codec(replace(CODEC_PRESETS["tiny"], n_filters=8)).eval()
    largest = {}
    for seconds in (4, 16):
        codes = torch.randint(32, (1, 2, 100 * seconds))
        with torch.profiler.profile(profile_memory=True) as profile:
            codec.decode(codes, window=0.5)
        largest[seconds] = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest[16] <= 16 * 16_000 * 4 * 2, "no more than the sound itself"


BAD_CODES = [(lambda c: c.float(), TypeError, "integer"), (lambda c: c + 32, ValueError, "lie in"), (lambda c: c - 1, ValueError, "lie in"),
             (lambda c: c.repeat(1, 2, 1), ValueError, "streams"), (lambda c: c[0], ValueError, "streams"),
             (lambda c: c[..., :0], ValueError, "at least 1 frame"), (lambda c: c.tolist(), TypeError, "integer")]
BAD_AUDIO = [(lambda a: a[:, 0], {}, ValueError, "mono"), (lambda a: a.repeat(1, 2, 1), {}, ValueError, "mono"),
             (lambda a: (a * 9999).short(), {}, TypeError, "floating"), (lambda a: a * float("nan"), {}, ValueError, "NaN"),
             (lambda a: a[..., :0], {}, ValueError, "empty"), (lambda a: a.numpy(), {}, TypeError, "tensor"),
             (lambda a: a, {"sample_rate": 22_050}, ValueError, "22050 Hz"), (lambda a: a, {"window": 0}, ValueError, "window")]


@pytest.mark.parametrize("spoil, error, words", BAD_CODES)
def test_bad_codes_are_refused(tiny, spoil, error, words):
    codes = torch.zeros(1, 2, 5, dtype=torch.long)
    with pytest.raises(error, match=words):
        tiny.codec.decode(spoil(codes))
    with pytest.raises(error, match=words):
        list(tiny.codec.stream_decode(iter([spoil(codes)])))


@pytest.mark.parametrize("spoil, options, error, words", BAD_AUDIO)
def test_bad_audio_is_refused(tiny, spoil, options, error, words):
    with pytest.raises(error, match=words):
        tiny.codec.encode(spoil(torch.zeros(1, 1, 500)), **options)


def test_double_and_half_audio_is_taken(tiny):
    audio = 0.1 * torch.randn(1, 1, 900, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiny.codec.encode(audio.double()), tiny.codec.encode(audio))
    assert tiny.codec.encode(audio.half()).shape == (1, 2, 6)


def test_weights_of_another_geometry_are_refused():
    other = Codec(replace(CODEC_PRESETS["tiny"], n_filters=8))
    with pytest.raises(ValueError, match="these weights are of another codec: encoder.0"):
        Codec(CODEC_PRESETS["tiny"]).load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="absent"):
        Codec(CODEC_PRESETS["tiny"]).load_state_dict({})
