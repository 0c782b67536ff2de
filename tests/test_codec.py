"The codec: any length, in pieces, always with its present weights, and what it refuses."
import copy
import gc
import pickle
import random
import threading
from dataclasses import replace

import pytest
import torch

from audiogen_nb import Codec
from audiogen_nb.codec.seanet import CODEC_PRESETS
from audiogen_nb.engine import chunks
from audiogen_nb.engine.chunks import StreamingCodec


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
            close(torch.cat(list(StreamingCodec(codec).decode_pieces(iter(pieces))), -1), sound)
        for window in (0.004, 0.05, 100.0):
            close(StreamingCodec(codec).decode(codes, window=window), sound)
            assert torch.equal(StreamingCodec(codec).encode(audio, window=window), codes)
        pieces = audio.tensor_split(sorted({*cuts(n_samples)}), -1)
        assert torch.equal(torch.cat(list(StreamingCodec(codec).encode_pieces(iter(pieces))), -1), codes)
        assert codec.decode(codes, length=n_samples).shape == audio.shape


def test_pieces_of_sound_come_while_codes_are_still_coming():
    torch.manual_seed(0)
    codec, asked = Codec(Codec.preset("tiny")).eval(), []
    codes = torch.randint(32, (1, 2, 20))
    stream = StreamingCodec(codec).decode_pieces(asked.append(i) or codes[..., i:i + 1] for i in range(20))
    next(stream)
    assert len(asked) <= 5


@torch.no_grad()
def test_the_full_size_codec_in_pieces_equals_the_whole():
    "AudioCraft's width, 57 million parameters: its largest layers take a way that narrow codecs never take"
    torch.manual_seed(0)
    codec = Codec(CODEC_PRESETS["audiocraft_16khz"]).eval()
    audio, codes = 0.1 * torch.randn(1, 1, 16_000), torch.randint(2048, (1, 4, 50))
    latent, sound = codec.encoder(audio), codec.decoder(codec.quantizer.decode(codes))
    assert any(layer.conv.weight.numel() >= chunks._LARGE for layer in codec.encoder if hasattr(layer, "conv"))
    scale = latent.abs().max()
    for pieces in ((audio,), audio.split(5000, -1), iter(audio.split(3999, -1))):
        close(torch.cat(list(chunks.run_pieces(codec.encoder, pieces)), -1) / scale, latent / scale, 1e-5)
    for pieces in ((codes,), codes.split(25, -1), iter(codes.split([1, 1, 1, 40, 7], -1))):
        close(torch.cat(list(StreamingCodec(codec).decode_pieces(pieces)), -1), sound, 1e-5)


def peak(run):
    "The most bytes that were allocated at the same time, beyond those at the start"
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    used = most = 0
    for event in profile.events():
        used += event.self_cpu_memory_usage
        most = max(most, used)
    return most


def test_memory_of_a_long_sound_is_bounded():
    "Dropping what comes out, no longer sound needs more: neither a list of pieces nor of latents is made"
    torch.manual_seed(0)
    codec, most = Codec(replace(CODEC_PRESETS["tiny"], n_filters=8, dimension=64)).eval(), []
    codec.decode(codec.encode(torch.zeros(1, 1, 160)))                                # prepares the weights
    for seconds in (3, 9):
        codes, audio = torch.randint(32, (1, 2, 100 * seconds)), 0.1 * torch.randn(1, 1, 16_000 * seconds)
        streams = (lambda: StreamingCodec(codec).decode_pieces(codes.split(50, -1)), lambda: StreamingCodec(codec).encode_pieces(audio.split(8000, -1)))
        most.append([peak(lambda: [None for _ in stream()]) for stream in streams])
        assert peak(lambda: StreamingCodec(codec).decode(codes, window=0.5)) <= most[0][0] + 2 * audio.nbytes, "pieces, and joined"
        assert peak(lambda: StreamingCodec(codec).encode(audio, window=0.5)) <= most[0][1] + 2 * audio.nbytes, "the check of the whole"
    assert all(long <= 1.05 * short for short, long in zip(*most)), most
    assert max(most[0]) < 1.5e6, "between pieces only the steps still needed are kept"


# Prepared weights are kept between calls, and never outlive the weights

def decoded(codec, codes):
    with torch.no_grad():
        return codec.decoder(codec.quantizer.decode(codes))


def step(codec, codes, **options):
    optimizer = torch.optim.Adam(codec.parameters(), 1e-2, **options)
    codec.decoder(codec.quantizer.decode(codes)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def change_one(codec, through=lambda p: p):
    for weight in (p for p in codec.decoder.parameters() if p.dim() == 3 and p.shape[1] > 1):
        through(weight)[0] += 1.0


CHANGES = {"adam": step, "fused adam": lambda codec, codes: step(codec, codes, fused=True),
           "foreach adam": lambda codec, codes: step(codec, codes, foreach=True),
           "training mode": lambda codec, codes: (step(codec.train(), codes), codec.eval()),
           "in place": lambda codec, codes: change_one(codec),
           "through data": lambda codec, codes: change_one(codec, lambda p: p.data),
           "loading": lambda codec, codes: codec.load_state_dict(Codec(codec.config).state_dict()),
           "assigning": lambda codec, codes: codec.load_state_dict(Codec(codec.config).state_dict(), assign=True),
           "rounding": lambda codec, codes: codec.to(torch.bfloat16).float(),
           "double": lambda codec, codes: change_one(codec.double()),
           "data replaced": lambda codec, codes: [setattr(p, "data", p.data * 0.5) for p in codec.parameters()]}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("norm", ["weight", "none", "layer"])
def test_changed_weights_are_used_at_once(norm, change):
    torch.manual_seed(0)
    codec = Codec(replace(CODEC_PRESETS["tiny"], lstm_layers=1, norm=norm)).eval()
    codes = torch.randint(32, (1, 2, 9))
    before = codec.decode(codes)
    assert torch.equal(codec.decode(codes), before)
    change(codec, codes)
    after = codec.decode(codes)
    changed, wrong = (after - before).abs().max(), (after - decoded(codec, codes)).abs().max()
    assert changed > 1e-4 and wrong < changed / 50


def test_prepared_weights_are_kept_in_evaluation_mode_only_and_die_with_the_codec():
    torch.manual_seed(0)
    gc.collect()
    codes, n = torch.randint(32, (1, 2, 9)), len(chunks._PREPARED)
    codec = Codec(replace(CODEC_PRESETS["tiny"], norm="none")).train()
    first, names = StreamingCodec(codec).decode(codes), set(codec.state_dict())
    assert len(chunks._PREPARED) == n, "training mode keeps nothing"
    assert torch.equal(StreamingCodec(codec.eval()).decode(codes), first)
    kept = [chunks._PREPARED[layer][1][0] for layer in codec.decoder.modules() if layer in chunks._PREPARED]
    assert kept and set(codec.state_dict()) == names
    StreamingCodec(codec).decode(codes)
    again = [chunks._PREPARED[layer][1][0] for layer in codec.decoder.modules() if layer in chunks._PREPARED]
    assert all(a is b for a, b in zip(kept, again, strict=True)), "nothing is prepared twice"
    for other in (copy.deepcopy(codec), pickle.loads(pickle.dumps(codec))):
        assert not any(layer in chunks._PREPARED for layer in other.modules())
        assert torch.equal(StreamingCodec(other).decode(codes), first)
    del codec, other
    gc.collect()
    assert len(chunks._PREPARED) == n


def test_streams_share_weights_and_nothing_else():
    "Two at once, interleaved and in two threads"
    torch.manual_seed(0)
    codec = Codec(replace(CODEC_PRESETS["tiny"], lstm_layers=1)).eval()
    codes = [torch.randint(32, (1, 2, 12)) for _ in range(2)]
    whole = [StreamingCodec(codec).decode(c, window=0.02) for c in codes]
    streams, out = [StreamingCodec(codec).decode_pieces(c.split(2, -1)) for c in codes], ([], [])
    for pair in zip(*streams):
        for piece, got in zip(pair, out):
            got.append(piece)
    assert all(torch.equal(torch.cat(got, -1), want) for got, want in zip(out, whole))
    fresh, out = copy.deepcopy(codec), [None, None]
    threads = [threading.Thread(target=lambda i=i: out.__setitem__(i, StreamingCodec(fresh).decode(codes[i], window=0.02))) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, out, whole))


def test_what_inference_mode_prepared_serves_outside_and_follows_the_weights():
    torch.manual_seed(0)
    codes, codec = torch.randint(32, (1, 2, 9)), Codec(CODEC_PRESETS["tiny"]).eval()
    with torch.inference_mode():
        born = Codec(CODEC_PRESETS["tiny"]).eval()                 # its parameters have no version
        sounds = [c.decode(codes) for c in (codec, born)]
    assert all(torch.equal(c.decode(codes), sound) for c, sound in zip((codec, born), sounds))
    step(codec, codes)
    with torch.inference_mode():
        change_one(born)
        close(born.decode(codes), decoded(born, codes), 1e-5)
        close(codec.decode(codes), decoded(codec, codes), 1e-5)
    assert not torch.equal(codec.decode(codes), sounds[0])


BAD_CODES = [(lambda c: c.float(), TypeError, "integer"), (lambda c: c + 32, ValueError, "lie in"),
             (lambda c: c - 1, ValueError, "lie in"),
             (lambda c: c.repeat(1, 2, 1), ValueError, "streams"), (lambda c: c[0], ValueError, "streams"),
             (lambda c: c[..., :0], ValueError, "at least 1 frame"), (lambda c: c.tolist(), TypeError, "integer"),
             (lambda c: c.bool(), TypeError, "integer"), (lambda c: c.to(torch.complex64), TypeError, "integer")]
BAD_AUDIO = [(lambda a: a[:, 0], {}, ValueError, "mono"), (lambda a: a.repeat(1, 2, 1), {}, ValueError, "mono"),
             (lambda a: (a * 9999).short(), {}, TypeError, "floating"), (lambda a: a * float("nan"), {}, ValueError, "NaN"),
             (lambda a: a[..., :0], {}, ValueError, "empty"), (lambda a: a.numpy(), {}, TypeError, "tensor"),
             (lambda a: a, {"sample_rate": 22_050}, ValueError, "22050 Hz"), (lambda a: a, {"window": 0}, ValueError, "window"),
             (lambda a: a, {"window": float("nan")}, ValueError, "window"), (lambda a: a, {"window": "2"}, ValueError, "window")]


@pytest.mark.parametrize("spoil, error, words", BAD_CODES)
def test_bad_codes_are_refused(tiny, spoil, error, words):
    codes = torch.zeros(1, 2, 5, dtype=torch.long)
    with pytest.raises(error, match=words):
        tiny.codec.decode(spoil(codes))
    with pytest.raises(error, match=words):
        list(StreamingCodec(tiny.codec).decode_pieces(iter([spoil(codes)])))


@pytest.mark.parametrize("spoil, options, error, words", BAD_AUDIO)
def test_bad_audio_is_refused(tiny, spoil, options, error, words):
    with pytest.raises(error, match=words):
        StreamingCodec(tiny.codec).encode(spoil(torch.zeros(1, 1, 500)), **options)
    if "window" not in options:
        with pytest.raises(error, match=words):
            tiny.codec.encode(spoil(torch.zeros(1, 1, 500)), **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32])
def test_every_integer_type_is_taken(tiny, dtype):
    codes = torch.randint(32, (1, 2, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiny.codec.decode(codes.to(dtype)), tiny.codec.decode(codes))


def test_windows_and_lengths(tiny):
    audio = 0.1 * torch.randn(1, 1, 500, generator=torch.Generator().manual_seed(0))
    codes = tiny.codec.encode(audio)
    assert torch.equal(StreamingCodec(tiny.codec).encode(audio, window=float("inf")), codes), "everything at once"
    assert StreamingCodec(tiny.codec).decode(codes, window=10 ** 400, length=500).shape == audio.shape
    with pytest.raises(TypeError, match="length must be a whole number, got float 500.0"):
        tiny.codec.decode(codes, length=500.0)


def test_a_stream_may_not_change_its_shape(tiny):
    codes = torch.zeros(2, 2, 5, dtype=torch.long)
    for other in (codes[:, :1], codes[:1]):
        for pieces in ([codes, other], iter([codes, other])):
            with pytest.raises(ValueError, match="every piece must have the shape of the first"):
                list(StreamingCodec(tiny.codec).decode_pieces(pieces))
    with pytest.raises(ValueError, match="shape of the first"):
        list(StreamingCodec(tiny.codec).encode_pieces([torch.zeros(2, 1, 400), torch.zeros(1, 1, 400)]))


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


def test_the_codec_runs_its_own_modules(tiny):
    seen = []
    hooks = [part.register_forward_hook(lambda *_: seen.append(True)) for part in (tiny.codec.encoder[0], tiny.codec.decoder[0])]
    tiny.codec.decode(tiny.codec.encode(torch.zeros(1, 1, 500)))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 2
