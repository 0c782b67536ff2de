"""Sound as a tensor: levels, edges, files that appear whole, pictures with units, and what is refused."""
import math
import os
import subprocess
import sys
import warnings
from unittest.mock import patch

import numpy as np
import pytest
import soundfile
import torch

from audiogen_nb.soundfiles import read_tags
from audiogen_nb.sound import (check_audio, draw_mel, fade, fit_length, hz_to_mel, level_db, load_audio, log_mel, peak_db,
                               peak_hz, play, resample, save_audio, set_level, show)

RATE = 16_000
TONE = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(RATE) / RATE)[None]      # (1, T)


@pytest.mark.parametrize("audio, error, message", [
    (torch.zeros(1, 0), ValueError, "empty"), (torch.tensor([[0., float("nan")]]), ValueError, "sound has NaN"),
    (torch.tensor([[0., float("inf")]]), ValueError, "infinite"), (torch.zeros(1, 4, dtype=torch.int16), TypeError, "full scale"),
    ([0.0, 0.1], TypeError, "torch tensor")])
def test_what_is_not_audio_is_refused(audio, error, message):
    with pytest.raises(error, match=message):
        check_audio(audio, "sound")


def test_levels():
    assert check_audio(TONE) is TONE
    assert level_db(torch.zeros(1, 8)).item() == -120
    assert abs(level_db(TONE).item() - 20 * math.log10(0.5 / math.sqrt(2))) < 1e-3
    assert abs(peak_db(TONE).item() - 20 * math.log10(0.5)) < 1e-3
    batch = torch.stack([TONE, 0.1 * TONE])
    assert (level_db(set_level(batch, -30.0)) + 30).abs().max() < 1e-3
    assert set_level(TONE, 20.0).abs().max() <= 0.9901 and set_level(TONE, 20.0, peak=0.5).abs().max() <= 0.5001
    assert torch.equal(set_level(torch.zeros(1, 4), -20.0), torch.zeros(1, 4))


def test_length_and_edges():
    assert torch.equal(fit_length(TONE, 5), TONE[:, :5])
    assert torch.equal(fit_length(TONE, RATE + 2)[:, -2:], torch.zeros(1, 2))
    soft = fade(TONE, RATE, 0.1)
    assert soft[0, 0] == 0 and soft[0, -1].abs() < 1e-3 and torch.equal(soft[0, 1600:-1600], TONE[0, 1600:-1600])
    assert fade(TONE, RATE, 0.2)[0, :1600].square().sum() < soft[0, :1600].square().sum()


def test_resampling_keeps_the_pitch():
    high = torch.sin(2 * math.pi * 440 * torch.arange(44_100) / 44_100)[None]
    low = resample(high, 44_100, RATE)
    assert low.shape == (1, RATE) and abs(peak_hz(low[0], RATE) - 440) < 1 and abs(peak_hz(high[0], 44_100) - 440) < 1
    for rates in ((0, RATE), (RATE, -1)):
        with pytest.raises(ValueError, match="at least 1"):
            resample(high, *rates)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_files_round_trip(tmp_path, suffix):
    path = save_audio(tmp_path / f"tone{suffix}", TONE, RATE)
    back, rate = load_audio(path)
    assert rate == RATE and back.shape == TONE.shape and (level_db(back) - level_db(TONE)).abs() < 0.5
    assert suffix == ".ogg" or (back - TONE).abs().max() < 1 / 32_000            # 16 bits, rounded
    assert load_audio(path, 8_000)[0].shape == (1, 8_000)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary file is left"


def test_stereo_is_averaged(tmp_path):
    soundfile.write(tmp_path / "two.wav", torch.stack([TONE[0], torch.zeros(RATE)], 1).numpy(), RATE)
    assert (load_audio(tmp_path / "two.wav")[0] - TONE / 2).abs().max() < 1 / 16_000


def test_files_that_cannot_be_written(tmp_path):
    save_audio(tmp_path / "tone.wav", TONE, RATE)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_audio(tmp_path / "tone.wav", TONE, RATE)
    save_audio(tmp_path / "tone.wav", TONE[:, :100], RATE, overwrite=True)
    with pytest.raises(ValueError, match="suffix"):
        save_audio(tmp_path / "tone.mp4", TONE, RATE)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        save_audio(tmp_path / "no" / "x.wav", TONE, RATE)
    with pytest.raises(ValueError, match="one mono clip"):
        save_audio(tmp_path / "x.wav", torch.stack([TONE, TONE]), RATE)
    with patch("soundfile.SoundFile.write", side_effect=soundfile.LibsndfileError(2)):
        with pytest.raises(OSError, match="is the disk full?"):
            save_audio(tmp_path / "x.wav", TONE, RATE)
    with pytest.warns(UserWarning, match="clipping loud.wav: peak 6.0 dBFS"):
        save_audio(tmp_path / "loud.wav", 4 * TONE, RATE)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loud.wav", "tone.wav"]


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"not audio at all")
    with pytest.raises(ValueError, match="convert it"):
        load_audio(tmp_path / "bad.wav")
    with pytest.raises(FileNotFoundError, match="no sound file"):
        load_audio(tmp_path / "none.wav")


def test_mel():
    assert abs(hz_to_mel(1000).item() - 1000) < 0.1
    pair = torch.sin(2 * math.pi * torch.tensor([[300.], [3000.]]) * torch.arange(RATE) / RATE)
    band = log_mel(pair, RATE).mean(-1).argmax(-1)
    assert (band - (hz_to_mel([300, 3000]) / hz_to_mel(8000) * 65 - 1)).abs().max() <= 1
    assert log_mel(TONE[None], RATE, n_fft=512, hop_length=128, n_mels=32).shape == (1, 1, 32, 1 + RATE // 128)
    assert abs(log_mel(torch.zeros(1, RATE), RATE).max().item() - math.log(1e-5)) < 1e-4


def test_pictures_have_units():
    import matplotlib.pyplot as plt
    above, below, bar = [*(figure := show(TONE, RATE, "a tone")).axes, *figure.axes[1].child_axes]
    assert above.get_title() == "a tone" and above.get_ylabel() == "amplitude"
    assert below.get_xlabel() == "time (s)" and below.get_ylabel() == "frequency (Hz)" and bar.get_title() == "dB"
    ticks = dict(zip((t.get_text() for t in below.get_yticklabels()), below.get_yticks()))
    ridge = log_mel(TONE, RATE)[0].mean(-1).argmax().item()
    assert ticks["250"] < ridge < ticks["1000"], "a tone of 440 Hz is drawn between 250 and 1000 Hz"
    assert draw_mel(plt.figure().subplots(), TONE, RATE, hop_length=1024, n_mels=16).get_array().shape == (16, 16)
    plt.close("all")


def test_player():
    player = play(TONE, RATE, label="<440 Hz>").data
    assert "&lt;440 Hz" in player and len(player) < TONE.numel()
    assert "figcaption" not in play(TONE, RATE).data and play(TONE, RATE, level=None).data != play(TONE, RATE).data


# What people's files, rates and shapes do to it

@pytest.mark.parametrize("stack", [256, 1024])
def test_long_ogg_needs_little_stack(tmp_path, stack):
    "The encoder of OGG puts what it is given on the stack: a call with 60 s at 44.1 kHz used to end the process"
    code = ("import numpy as np, soundfile; from audiogen_nb.soundfiles import write_sound\n"
            "x = np.random.default_rng(0).uniform(-0.3, 0.3, 60 * 44_100).astype('float32')\n"
            "write_sound('a.ogg', x, 44_100, '.ogg'); assert soundfile.info('a.ogg').frames == len(x)")
    done = subprocess.run(["bash", "-c", f"ulimit -s {stack}; exec {sys.executable} -c \"{code}\""], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_player_of_any_rate():
    for rate in (500, 200_001, 300_000):
        assert "data:audio/ogg" in play(TONE, rate).data


@pytest.mark.parametrize("suffix, rate", [(".ogg", 200_001), (".ogg", 300_000), (".flac", 70_001), (".flac", 700_000)])
def test_what_a_format_cannot_hold_is_refused(tmp_path, suffix, rate):
    with pytest.raises(ValueError, match=f"cannot hold a rate of {rate} Hz"):
        save_audio(tmp_path / f"x{suffix}", TONE, rate)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rates", [(44_099, 16_000), (16_001, 16_000), (16_000, 44_101), (999_983, 16_000)])
def test_coprime_rates_take_little_memory(rates):
    "torchaudio's filter bank would take 2.8 GB from 44 099 Hz; the pitch is kept all the same"
    seconds = torch.arange(rates[0]) / rates[0]
    low = resample(torch.sin(2 * math.pi * 440 * seconds)[None], *rates)
    assert low.shape == (1, rates[1]) and abs(peak_hz(low[0], rates[1]) - 440) < 1
    assert resample(torch.zeros(2, 3, 1000), 44_099, 16_000).shape == (2, 3, 363)
    with pytest.raises(ValueError, match="no gradients"):
        resample(torch.zeros(1, 10, requires_grad=True), *rates)


def test_both_resamplers_agree():
    "44 100 to 16 000 Hz by torchaudio, 44 099 by soxr: the same sweep, away from the ends and the band's edge"
    def sweep(rate):
        t = torch.arange(rate) / rate
        return torch.sin(2 * math.pi * (100 * t + 1000 * t.square()))[None]
    a, b = resample(sweep(44_100), 44_100, RATE), resample(sweep(44_099), 44_099, RATE)
    assert (a - b)[..., 400:-400].abs().max() < 0.01


def test_numbers_of_other_libraries_are_numbers(tmp_path):
    path = save_audio(str(tmp_path / "a.wav"), TONE, np.int64(RATE))
    assert load_audio(path, torch.tensor(8000))[1] == 8000 and resample(TONE, np.int32(RATE), 8000).shape[-1] == RATE // 2
    with pytest.raises(TypeError, match="sample_rate must be a whole number"):
        save_audio(tmp_path / "b.wav", TONE, 16_000.5)


@pytest.mark.parametrize("shape", [(2, 100), (2, 1, 100), (1, 2, 100)])
def test_one_clip_at_a_time(tmp_path, shape):
    for call in (lambda x: play(x, RATE), lambda x: show(x, RATE), lambda x: save_audio(tmp_path / "x.wav", x, RATE)):
        with pytest.raises(ValueError, match="one mono clip"):
            call(torch.zeros(shape))
    assert log_mel(torch.zeros(shape), RATE).shape == (*shape[:-1], 64, 1)
    assert log_mel(torch.zeros(100), RATE).shape == (64, 1)


def test_other_people_s_defaults():
    "torch.set_default_dtype changes no more than the rounding of a filter bank"
    noise = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))
    code = lambda: (log_mel(noise, RATE), resample(noise, RATE, 8000), fade(noise, RATE))
    wanted = code()
    try:
        torch.set_default_dtype(torch.float64)
        assert all(a.dtype == b.dtype and (a - b).abs().max() < 1e-4 for a, b in zip(code(), wanted))
    finally:
        torch.set_default_dtype(torch.float32)


def test_opposite_phase_is_said(tmp_path):
    soundfile.write(tmp_path / "two.wav", torch.stack([TONE[0], -0.99 * TONE[0]], 1).numpy(), RATE)
    with pytest.warns(UserWarning, match="two.wav are of opposite phase"):
        load_audio(tmp_path / "two.wav")
    soundfile.write(tmp_path / "ok.wav", torch.stack([TONE[0], 0 * TONE[0]], 1).numpy(), RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_audio(tmp_path / "ok.wav")


def test_a_header_is_only_a_claim(tmp_path):
    path = save_audio(tmp_path / "a.wav", TONE, RATE)
    data = bytearray(path.read_bytes())
    for rate in (1, 99, 2_000_000_000):
        data[24:28] = rate.to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"says {rate} Hz"):
            load_audio(path, RATE)
    data[24:28], data[40:44] = RATE.to_bytes(4, "little"), (2 ** 31 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    assert load_audio(path)[0].shape == TONE.shape                # 2 GB claimed, a second there


def test_tags_stay_in_the_file(tmp_path):
    for suffix in (".wav", ".flac", ".ogg"):
        path = save_audio(tmp_path / f"a{suffix}", TONE, RATE, tags={"prompt": "a dog\n雨", "seed": 2 ** 60})
        assert read_tags(path) == {"prompt": "a dog\n雨", "seed": 2 ** 60}
    with soundfile.SoundFile(tmp_path / "b.wav", "w", RATE, 1) as file:
        file.comment = "not ours"
    assert read_tags(tmp_path / "b.wav") == {}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf8(tmp_path):
    for end in ("wav", "ogg"):
        path = tmp_path / os.fsdecode(b"h\xf6ren." + end.encode())                 # latin-1, as old archives have it
        save_audio(path, TONE, RATE, tags={"prompt": "rain"})
        assert load_audio(path)[0].shape == TONE.shape and read_tags(path)["prompt"] == "rain"
    assert len(list(tmp_path.iterdir())) == 2
