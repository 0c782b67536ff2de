"""Sound as a tensor: levels, edges, files that appear whole, pictures with units, and what is refused."""
import math
from unittest.mock import patch

import pytest
import soundfile
import torch

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
        with pytest.raises(ValueError, match="positive"):
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
    with patch("soundfile.write", side_effect=soundfile.LibsndfileError(2)):
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
