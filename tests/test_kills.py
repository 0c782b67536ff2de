"The fast part of `make kills`, and the lock on the folder of a run."
import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import kills  # noqa: E402  (what `make kills` runs)
from audiogen_nb.train.loop import run_lock

PROGRAM = [sys.executable, "-c", "import sys; from audiogen_nb.cli import main; sys.exit(main())"]


def test_kills_lose_nothing_that_was_finished():
    assert sum(kills.run(4, jobs=("save", "train")).values()) == 4


@pytest.fixture
def config(tmp_path):
    "A training that lasts"
    path = tmp_path / "codec.json"
    path.write_text(json.dumps({"codec": "tiny", "data": kills.TOY, "training": {
        "n_steps": 100_000, "batch_size": 2, "seconds": 0.2, "warmup": 1, "warmup_quantizer": 0, "checkpoint_every": 1, "discriminator": ""}}))
    return path


def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_is_not_in_the_way(config, tmp_path):
    command = [*PROGRAM, "fit-codec", str(config), "--out", str(tmp_path / "run"), "--quiet"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (tmp_path / "run" / "checkpoint.pt").exists():
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run(command, capture_output=True, text=True, timeout=120)
        lines = second.stderr.splitlines()
        assert second.returncode == 2 and len(lines) == 1, second.stderr
        assert f"the process {first.pid} is training there" in lines[0] and str(tmp_path / "run") in lines[0]
        assert first.poll() is None
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with run_lock(tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / ".lock").exists()


def hold(folder, pipe):
    try:
        with run_lock(folder):
            pipe.send(True)
            pipe.recv()
    except FileExistsError as e:
        pipe.send(str(e))


def test_of_many_that_ask_at_once_one_gets_the_folder(tmp_path):
    context, asked = get_context("spawn"), []
    for _ in range(3):
        ours, theirs = context.Pipe()
        process = context.Process(target=hold, args=(tmp_path / "run", theirs))
        process.start()
        asked.append((process, ours))
    answers = [pipe.recv() for _, pipe in asked]
    owner = asked[answers.index(True)]
    assert answers.count(True) == 1 and all(f"the process {owner[0].pid}" in a for a in answers if a is not True)
    owner[1].send("end")
    for process, _ in asked:
        process.join()
    assert not any(tmp_path.glob("run/*"))       # nothing was written; the folder stays if another one than its maker got it


def test_of_processes_that_train_together_the_first_one_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("RANK", "1")
    with run_lock(tmp_path / "run"):
        assert not (tmp_path / "run").exists()
    monkeypatch.setenv("RANK", "0")
    with run_lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text() == str(os.getpid())
