"The codec against AudioCraft's own numbers, and what training promises."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiogen_nb import Codec
from audiogen_nb.codec import CODEC_PRESETS
from audiogen_nb.fit import read_log
from audiogen_nb.losses import MelLoss

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("name", CODEC_PRESETS)
@pytest.mark.parametrize("n_samples", [1, 319, 320, 321, 1000])
def test_any_length_gives_whole_frames(name, n_samples):
    torch.manual_seed(0)
    codec = Codec(Codec.preset(name)).eval()
    codes = codec.encode(0.1 * torch.randn(1, 1, n_samples))
    assert codes.shape == (1, codec.n_q, -(-n_samples // codec.hop_length))
    assert codec.decode(codes).shape == (1, 1, codes.shape[-1] * codec.hop_length)


def test_mel_loss_equals_audiocraft():
    parity = load_file(DATA / "losses_mel.safetensors")
    fake = parity["fake"].requires_grad_()
    loss = MelLoss(16_000, tuple(2 ** i for i in range(6, 11)), f_min=64, form="audiocraft")(parity["real"], fake)
    loss.backward()
    torch.testing.assert_close(loss.detach(), parity["msspec_loss"], rtol=1e-4, atol=0)
    torch.testing.assert_close(fake.grad, parity["msspec_grad_wrt_fake"], rtol=1e-3, atol=1e-6)


TRAIN = """
import sys
from audiogen_nb.fit import fit_codec_from_config
fit_codec_from_config(sys.argv[1], sys.argv[2], progress=False)
"""


def test_killed_training_resumes_to_the_same_bits(tmp_path):
    "SIGKILL in the middle of a run, then the same command again: as if nothing had happened"
    config = {"codec": "tiny", "data": {"recordings": False, "toy": 10, "toy_seconds": 1.0},
              "training": {"n_steps": 60, "batch_size": 3, "seconds": 0.3, "warmup_quantizer": 4, "checkpoint_every": 5}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "config.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], check=True, env=environment)
    killed = subprocess.Popen([*command, str(tmp_path / "killed")], env=environment)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    state = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert 0 < state["step"] < 60, "the run was killed before its end"
    subprocess.run([*command, str(tmp_path / "killed")], check=True, env=environment)
    whole, resumed = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["codec"] for name in ("whole", "killed"))
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "killed")
