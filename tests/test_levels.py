"""Levels of bands: windows, gains, streams that say them, their training, and what has no counterpart elsewhere."""
import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from audiogen_nb.codec.levels import BandLevels, LevelledDecoder, LevelledEncoder, networks, overlap_add, windows_of
from audiogen_nb.codec.seanet import CodecConfig, Decoder, Encoder
from audiogen_nb.codec.vq import Codec
from audiogen_nb.data.toy_kinds import ToyWorld
from audiogen_nb.hub import POCKET, load_codec
from audiogen_nb.engine.chunks import StreamingCodec, folded, n_finished, run_pieces, streamed
from audiogen_nb.train.codec import (CodecTraining, fit_codec, fit_codec_from_config, rebuild_levels, start_level_codebooks,
                                     with_levels, without_levels)
from audiogen_nb.train.loop import load_checkpoint, read_log
from audiogen_nb.lab.codec_race import _waveform_run
from audiogen_nb.train.parts import open_codec
from audiogen_nb.train.runs import read_recipe
from audiogen_nb.train.shards import weights_fingerprint

SMALL = replace(Codec.preset("tiny"), level_bands=24, level_streams=1, n_q=3)
NOISE = 0.1 * torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return Codec(SMALL).eval()


def levels_of(bands, audio):
    return bands.of(bands.spectrum(windows_of(audio[:, 0], bands.hop_length)))


@pytest.mark.parametrize("frames", [1, 2, 3, 9])
def test_a_spectrum_that_nobody_changes_gives_back_the_sound(frames):
    bands, audio = BandLevels(SMALL), NOISE[..., : 160 * frames]
    windows = bands.windows(bands.spectrum(windows_of(audio[:, 0], 160)))
    assert torch.allclose(bands.joined(windows), audio[:, 0], atol=1e-6)
    assert overlap_add(windows).shape == audio[:, 0].shape


def test_a_band_is_as_loud_as_it_is():
    "White noise of RMS r has a mean power of r^2 in every bin, whatever the window's length"
    bands = BandLevels(SMALL)
    noise = 0.1 * torch.randn(1, 1, 160 * 400, generator=torch.Generator().manual_seed(1))
    power = (2 * levels_of(bands, noise)).exp().mean((0, 1))
    assert (power / 0.01 - 1).abs().max() < 0.25                  # 400 frames of a few bins each: about 5 % of deviation
    assert levels_of(bands, torch.zeros(1, 1, 320)).mean().item() == pytest.approx(-13.8155, abs=1e-3)


def test_bands_part_the_spectrum_and_grow_wider():
    bands = BandLevels(replace(Codec.preset("pocket"), level_bands=64, level_streams=2))
    width = bands.band.bincount()
    assert width.sum() == 481 and width.min() >= 1 and width[-8:].min() > 3 * width[:8].max()
    assert torch.allclose(bands.mean.sum(0), torch.ones(64)) and (bands.band.diff() >= 0).all()


def test_put_brings_smooth_levels_about():
    bands = BandLevels(SMALL)
    wanted = torch.linspace(-3, -9, 24).expand(2, 25, 24)
    after = levels_of(bands, bands.put_audio(NOISE, wanted)).mean(1)[:, 2:-2]
    assert (after - wanted[:, 0, 2:-2]).abs().max() < 0.5


def test_silence_stays_silence_and_nothing_is_infinite():
    bands = BandLevels(SMALL)
    silent = bands.put_audio(NOISE, torch.full((2, 25, 24), -13.8))
    assert silent.abs().max() < 1e-4
    loud = bands.put_audio(torch.zeros(1, 1, 320), torch.zeros(1, 2, 24))
    assert torch.isfinite(loud).all() and loud.abs().max() < 1


@pytest.mark.parametrize(("changes", "says"), [
    ({"level_bands": 24}, "go together"), ({"level_streams": 1}, "go together"),
    ({"level_bands": 24, "level_streams": 2}, "is for the waveform"), ({"level_bands": -1}, "level_bands"),
    ({"level_bands": 2.5, "level_streams": 1}, "whole number")])
def test_a_geometry_that_cannot_be_is_refused(changes, says):
    with pytest.raises((ValueError, TypeError), match=says):
        replace(Codec.preset("tiny"), **changes)


def test_more_bands_than_bins_are_refused():
    with pytest.raises(ValueError, match="take fewer"):
        Codec(replace(SMALL, level_bands=200))


def test_without_levels_a_codec_is_what_it_was():
    kinds = [type(net) for net in networks(Codec.preset("tiny"))]
    assert kinds == [Encoder, Decoder] and [type(net) for net in networks(SMALL)] == [LevelledEncoder, LevelledDecoder]
    assert CodecConfig().latent_dimension == 128 and SMALL.latent_dimension == 32


def test_the_fingerprint_of_a_codec_without_levels_is_what_it_was():
    "Tokens and runs on disk are known by it"
    assert weights_fingerprint(without_levels(load_codec(POCKET))) == "afd9c80b0bbbe615"
    assert "level" not in repr(Codec.preset("pocket")) and "level_bands=24, level_streams=1" in repr(SMALL)
    assert eval(repr(SMALL)) == SMALL and eval(repr(CodecConfig())) == CodecConfig()


def test_both_halves_reach_the_sound(codec):
    latent = torch.randn(1, 32, 12, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        sounds = [codec.decoder(latent * mask[:, None]) for mask in (
            torch.ones(32), torch.cat([torch.zeros(16), torch.ones(16)]), torch.cat([torch.ones(16), torch.zeros(16)]))]
    assert not torch.allclose(sounds[0], sounds[1], atol=1e-4) and not torch.allclose(sounds[0], sounds[2], atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 25])
def test_a_stream_of_codes_gives_what_one_pass_gives(codec, size):
    codes = codec.encode(NOISE)
    whole = codec.decode(codes)
    pieces = torch.cat(list(StreamingCodec(codec).decode_pieces(iter(codes.split(size, -1)))), -1)
    assert torch.allclose(pieces, whole, atol=1e-5 * whole.abs().max().item() + 1e-7)


@pytest.mark.parametrize(("length", "size"), [(1, 1), (159, 50), (160, 7), (161, 161), (3001, 333), (4000, 160)])
def test_a_stream_of_sound_gives_the_codes_of_one_pass(codec, length, size):
    audio = NOISE[..., :length]
    pieces = torch.cat(list(StreamingCodec(codec).encode_pieces(iter(audio.split(size, -1)))), -1)
    assert torch.equal(pieces, codec.encode(audio))


def test_how_late_a_stream_is_is_known(codec):
    for net, piece in ((codec.decoder, torch.randn(1, 1, 32)), (codec.encoder, torch.randn(1, 160, 1))):
        step, given = streamed(net), []
        with torch.no_grad():
            for _ in range(14):
                given.append(step(piece.clone(), False).shape[1])
        n = [n_finished(net, i * piece.shape[1]) for i in range(1, 15)]
        assert torch.tensor(given).cumsum(0).tolist() == n


def test_an_item_is_the_same_in_any_batch(codec):
    codes = codec.encode(NOISE)
    assert torch.equal(codes[1:], codec.encode(NOISE[1:]))
    alone, together = codec.decode(codes[1:]), codec.decode(codes)[1:]
    assert torch.allclose(alone, together, atol=1e-6 * together.abs().max().item() + 1e-8)


def test_folded_and_halved_codecs_sound_alike(codec):
    codes = codec.encode(NOISE)
    whole = codec.decode(codes)
    assert torch.allclose(folded(codec).decode(codes), whole, atol=1e-5 * whole.abs().max().item())
    half = folded(codec, torch.bfloat16)
    assert (half.decode(codes) - whole).norm() < 0.1 * whole.norm() and half.encode(NOISE).shape == codes.shape


def test_levels_join_a_codec_whose_codes_stay():
    torch.manual_seed(3)
    plain = Codec(Codec.preset("tiny")).eval()
    wider = with_levels(plain, 24, 2)
    codes = wider.encode(NOISE)
    assert codes.shape[1] == 4 and torch.equal(codes[:, 2:], plain.encode(NOISE))
    d = plain.config.dimension
    with torch.no_grad():
        waveform = wider.decoder.waveform(wider.quantizer.decode(codes)[:, d:])
    assert torch.equal(waveform, plain.decode(codes[:, 2:]))
    assert not wider.training


def level_run(tmp_path, start, **changes):
    (tmp_path / "c.json").write_text(json.dumps({
        "codec": {"preset": "tiny", "level_bands": 24, "level_streams": 1, "n_q": 3},
        "data": {"recordings": False, "toy": 20, "toy_seconds": 1.0},
        "training": {"only_levels": True, "n_steps": 30, "batch_size": 4, "seconds": 0.4, "warmup_quantizer": 15,
                     "checkpoint_every": 10, **changes}}))
    return fit_codec_from_config(tmp_path / "c.json", tmp_path / "levels", False, start_from=start)


def first_run(tmp_path):
    (tmp_path / "first.json").write_text(json.dumps({
        "codec": "tiny", "data": {"recordings": False, "toy": 6, "toy_seconds": 1.0},
        "training": {"n_steps": 3, "batch_size": 2, "seconds": 0.3, "warmup_quantizer": 1}}))
    return fit_codec_from_config(tmp_path / "first.json", tmp_path / "first", False)


def test_a_training_of_levels_learns_and_leaves_the_waveform_alone(tmp_path):
    plain = first_run(tmp_path)
    codec = level_run(tmp_path, tmp_path / "first")
    log = read_log(tmp_path / "levels")
    assert sum(r["levels"] for r in log[-5:]) < 0.7 * sum(r["levels"] for r in log[:5])
    assert "commitment" in log[-1] and "perplexity_0" in log[-1] and "perplexity_1" not in log[-1]
    assert torch.equal(codec.encode(NOISE)[:, 1:], plain.encode(NOISE))
    again = open_codec(tmp_path / "levels")
    assert torch.equal(again.decode(again.encode(NOISE)), codec.decode(codec.encode(NOISE)))
    with torch.no_grad():                                          # the first streams alone carry the levels
        latent = codec.quantizer.decode(codec.encode(NOISE))[:, :16]
        only = codec.quantizer.decode(codec.encode(NOISE)[:, :1])[:, :16]
    assert torch.equal(latent, only)


def test_a_training_of_levels_goes_on_where_it_was(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    first_run(tmp_path)
    whole = level_run(tmp_path / "one", tmp_path / "first", schedule="constant")
    level_run(tmp_path / "two", tmp_path / "first", schedule="constant", n_steps=20)
    assert load_checkpoint(tmp_path / "two" / "levels" / "checkpoint.pt", {"codec": Codec(SMALL)}) == 20
    again = level_run(tmp_path / "two", tmp_path / "first", schedule="constant")
    assert len(read_log(tmp_path / "two" / "levels")) == 30
    assert torch.equal(whole.decode(whole.encode(NOISE)), again.decode(again.encode(NOISE)))


@pytest.mark.parametrize("changes", [{"discriminator": "tiny"}, {"balance": True}, {"quantizer_dropout": 0.5},
                                     {"freeze_encoder": True, "warmup_quantizer": 0}])
def test_settings_that_levels_have_no_use_for_are_refused(changes):
    with pytest.raises(ValueError, match="only_levels has one loss"):
        CodecTraining(only_levels=True, **changes)


def test_levels_are_given_to_a_finished_codec(tmp_path):
    with pytest.raises(ValueError, match="only_levels gives band levels to a finished codec: pass start_from"):
        level_run(tmp_path, None)
    assert not (tmp_path / "levels").exists()


def test_levels_do_not_take_the_waveforms_streams_away(tmp_path):
    first_run(tmp_path)
    (tmp_path / "c.json").write_text(json.dumps({
        "codec": {"preset": "tiny", "level_bands": 24, "level_streams": 1, "n_q": 2},
        "data": {"recordings": False, "toy": 4, "toy_seconds": 1.0}, "training": {"only_levels": True, "n_steps": 4}}))
    with pytest.raises(ValueError, match="they are 3 of 32; set n_q and card so, got 2 of 32"):
        fit_codec_from_config(tmp_path / "c.json", tmp_path / "levels", False, start_from=tmp_path / "first")


def test_taking_levels_away_gives_the_codec_back(tmp_path):
    plain = first_run(tmp_path)
    wider = level_run(tmp_path, tmp_path / "first")
    again = without_levels(wider)
    assert again.config == plain.config and without_levels(again) is again
    assert all(torch.equal(x, plain.state_dict()[name]) for name, x in again.state_dict().items())
    assert torch.equal(again.decode(again.encode(NOISE)), plain.decode(plain.encode(NOISE)))


def test_a_training_without_levels_begins_with_the_waveforms_half(tmp_path):
    plain = first_run(tmp_path)
    level_run(tmp_path, tmp_path / "first")
    (tmp_path / "c.json").write_text(json.dumps({
        "codec": "tiny", "data": {"recordings": False, "toy": 4, "toy_seconds": 1.0},
        "training": {"n_steps": 1, "batch_size": 2, "seconds": 0.3, "warmup_quantizer": 0, "freeze_encoder": True}}))
    codec = fit_codec_from_config(tmp_path / "c.json", tmp_path / "third", False, start_from=tmp_path / "levels")
    assert torch.equal(codec.encode(NOISE), plain.encode(NOISE))


def test_a_race_begins_with_the_waveforms_half(tmp_path):
    first_run(tmp_path)
    level_run(tmp_path, tmp_path / "first")
    assert _waveform_run(tmp_path / "first", tmp_path / "begin") == tmp_path / "first"
    begin = open_codec(_waveform_run(tmp_path / "levels", tmp_path / "begin"))
    assert begin.config == open_codec(tmp_path / "first").config
    assert torch.equal(begin.encode(NOISE), open_codec(tmp_path / "first").encode(NOISE))
    assert len(read_recipe(tmp_path / "begin")) == 3


def test_levels_of_a_codec_without_are_refused(tmp_path):
    with pytest.raises(ValueError, match="set level_bands and level_streams"):
        fit_codec(Codec(Codec.preset("tiny")), [ToyWorld(4, seed=0, duration=1.0)], CodecTraining(only_levels=True, n_steps=2),
                  tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_all_of_it_can_be_trained_together(tmp_path):
    torch.manual_seed(0)
    codec = Codec(SMALL)
    before = {name: p.clone() for name, p in codec.named_parameters()}
    fit_codec(codec, [ToyWorld(6, seed=0, duration=1.0)], CodecTraining(n_steps=3, batch_size=2, seconds=0.3, warmup_quantizer=1,
              discriminator="tiny", balance=True), tmp_path / "run", progress=False)
    still = [name for name, p in codec.named_parameters() if torch.equal(p, before[name])]
    assert not still and torch.isfinite(codec.decode(codec.encode(NOISE))).all()


def test_a_decoder_trained_further_keeps_codes_and_levels(tmp_path):
    torch.manual_seed(0)
    codec = Codec(SMALL)
    before, codes = {name: p.clone() for name, p in codec.named_parameters()}, codec.eval().encode(NOISE)
    fit_codec(codec, [ToyWorld(6, seed=0, duration=1.0)], CodecTraining(n_steps=2, batch_size=2, seconds=0.3, warmup_quantizer=0,
              freeze_encoder=True), tmp_path / "run", progress=False)
    changed = {name.rsplit(".", 1)[0].split(".")[1] for name, p in codec.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"waveform"} and torch.equal(codec.encode(NOISE), codes)
    assert all(torch.equal(p, before[name]) for name, p in codec.named_parameters() if name.startswith("encoder"))


def test_codebooks_of_levels_start_from_levels(codec):
    torch.manual_seed(1)
    fresh = Codec(SMALL).train()
    start_level_codebooks(fresh, [NOISE], torch.Generator().manual_seed(0))
    first, second = (book.entries for book in fresh.quantizer.codebooks[:2])
    assert not first[:, 16:].any() and second[:, 16:].any()
    levels, commitment, codes = rebuild_levels(fresh, NOISE)
    assert levels.shape == (2, 25, 24) and codes.shape == (2, 1, 25) and commitment.isfinite()
    assert rebuild_levels(fresh, NOISE, quantize=False)[1:] == (None, None)


def test_pieces_of_networks_need_no_codec(codec):
    with torch.no_grad():
        whole = codec.encoder(NOISE)
        pieces = torch.cat(list(run_pieces(codec.encoder, NOISE.split([1, 158, 2, 3839], -1))), -1)
    assert torch.allclose(pieces, whole, atol=1e-4) and F.mse_loss(pieces, whole) < 1e-8


@pytest.fixture(scope="module")
def model():
    "An untrained model whose codec has band levels"
    from audiogen_nb import AudioGen, AudioLM
    from audiogen_nb.hub import POCKET
    from audiogen_nb.sampling.request import Generation
    from audiogen_nb.text.hf import load_text_encoder
    torch.manual_seed(0)
    return AudioGen(Codec(SMALL), AudioLM(replace(AudioLM.preset("tiny"), n_q=3)), load_text_encoder(POCKET / "text"),
                    Generation(duration=0.5, max_duration=1.0))


def test_a_model_with_levels_is_saved_loaded_and_streamed(model, tmp_path):
    from audiogen_nb import AudioGen
    again = AudioGen.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert again.codec.config == SMALL
    sound = model.generate("rain", duration=0.5, seed=1)
    other = again.generate("rain", duration=0.5, seed=1)
    whole = sound.abs().max().item()
    assert sound.shape == (1, 1, 8000) and torch.allclose(sound, other, atol=0.02 * whole)        # float16 weights
    pieces = torch.cat(list(again.stream("rain", duration=0.5, seed=1)), -1)
    assert torch.allclose(pieces.reshape(-1), other.reshape(-1), atol=1e-4 * whole)


def test_no_other_layout_knows_band_levels(model, tmp_path):
    from audiogen_nb.peers.audiocraft import save_audiocraft
    from audiogen_nb.peers.musicgen import musicgen_config
    with pytest.raises(ValueError, match="no codec with band levels; this model's has 24"):
        save_audiocraft(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="no band levels; .* and 24 band levels"):
        musicgen_config(model, None)
