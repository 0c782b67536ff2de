"""The command line, called as a person calls it: in a process of its own."""
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch

from audiogen_nb.cli import main
from audiogen_nb.sound import level_db, load_audio, save_audio

PROGRAM = [sys.executable, "-c", "import sys; from audiogen_nb.cli import main; sys.exit(main())"]


@pytest.fixture
def call(capsys):
    "Call the command line here; exit code, stdout, stderr"
    def call(*argv):
        capsys.readouterr()
        return main([str(a) for a in argv]), *capsys.readouterr()
    return call


@pytest.fixture
def refused(call):
    "The one line that a refused command prints"
    def refused(*argv) -> str:
        code, out, err = call(*argv)
        assert code == 2 and out == "", (code, out, err)
        assert len(err.splitlines()) == 1 and err.startswith("audiogen-nb: "), err
        return err
    return refused


def test_the_program_in_a_process_of_its_own(tmp_path):
    done = subprocess.run([*PROGRAM, "generate", "rain", "-o", "nowhere/a.wav"], cwd=tmp_path, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg"])
def test_generate_writes_what_the_library_generates(call, tiny, tiny_folder, tmp_path, name):
    code, out, err = call("generate", "rain", "--model", tiny_folder, "--out", tmp_path / name, "--seed", 3)
    assert code == 0 and out.strip() == str(tmp_path / name), err
    assert "step" in err                                        # the bar
    audio, rate = load_audio(tmp_path / name)
    expected = tiny.generate("rain", seed=3)[0]
    assert rate == tiny.sample_rate and audio.shape == expected.shape
    if not name.endswith(".ogg"):                               # lossless but for 16 bits
        assert (audio - expected.clamp(-1, 1)).abs().max() < 1 / 2**14


def test_several_texts_make_numbered_files_independent_of_each_other(call, tiny, tiny_folder, tmp_path):
    texts = [f"sound {i}" for i in range(10)]
    code, out, err = call("generate", *texts, "--model", tiny_folder, "-o", tmp_path / "a.wav", "--seed", 3, "--duration", 0.2, "--quiet")
    assert code == 0 and err == ""
    assert [line.rsplit("/", 1)[1] for line in out.splitlines()] == [f"a-{i:02}.wav" for i in range(1, 11)]
    last = tiny.generate(texts[9], duration=0.2, seed=3)[0]
    assert (load_audio(tmp_path / "a-10.wav")[0] - last.clamp(-1, 1)).abs().max() < 1e-3


def test_continuation_keeps_the_prompt(call, tiny, tiny_folder, tmp_path):
    start = save_audio(tmp_path / "start.wav", 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0)), 16_000)
    code, _, err = call("generate", "--prompt-audio", start, "--model", tiny_folder, "-o", tmp_path / "a.wav",
                        "--duration", 1, "--seed", 0, "--quiet")
    assert code == 0, err
    expected = tiny.continuation(load_audio(start)[0], 16_000, duration=1.0, seed=0)[0]
    assert (load_audio(tmp_path / "a.wav")[0] - expected.clamp(-1, 1)).abs().max() < 1e-3


def test_an_existing_file_is_kept_unless_forced(call, refused, tiny_folder, tmp_path):
    path = save_audio(tmp_path / "a.wav", torch.zeros(1, 100), 16_000)
    before = path.read_bytes()
    assert "--force" in refused("generate", "rain", "-o", path, "--model", "no/model")
    assert path.read_bytes() == before
    assert call("generate", "rain", "-o", path, "--model", tiny_folder, "--force", "--quiet")[0] == 0
    assert path.read_bytes() != before


@pytest.mark.parametrize("argv, says", [
    (["generate"], "TEXT is missing"),
    (["generate", "  "], "TEXT is empty"),
    (["generate", "rain", "-o", "a.mp3"], "must end in .wav"),
    (["generate", "rain", "-o", "nowhere/a.wav"], "does not exist"),
    (["generate", "rain", "-o", "."], "must end in"),
    (["generate", "rain", "-o", "/proc/a.wav"], "cannot write in the folder"),
    (["generate", "rain", "--duration", "0"], "duration must be above 0"),
    (["generate", "rain", "--duration", "nan"], "duration must be above 0"),
    (["generate", "rain", "--temperature", "0"], "temperature must be above 0"),
    (["generate", "rain", "--guidance-scale", "-1"], "guidance_scale must be 0 or more"),
    (["generate", "rain", "--top-k", "-1"], "top_k"),
    (["generate", "rain", "--top-p", "2"], "top_p"),
    (["generate", "rain", "--top-k", "5", "--top-p", "0.5"], "cannot both be used"),
    (["generate", "rain", "--seed", "-1"], "--seed"),
    (["generate", "rain", "--best-of", "0"], "--best-of"),
    (["generate", "--prompt-audio", "none.wav", "--best-of", "2"], "--best-of"),
    (["generate", "rain", "--negative-prompt", " "], "--negative-prompt"),
    (["generate", "rain", "--negative-prompt", "wind", "--guidance-scale", "1"], "--guidance-scale above 1"),
    (["fit-lora", "nowhere", "--out", "run"], "no folder nowhere"),
    (["generate", "rain", "--prompt-audio", "none.wav"], "no sound file at none.wav"),
    (["evaluate", "-o", "report.txt"], ".json"),
    (["codec", "encode", "none.wav", "a.safetensors"], "no sound file at none.wav"),
    (["codec", "encode", "none.wav", "a.wav"], ".safetensors"),
    (["codec", "decode", "none.safetensors", "a.wav"], "no file of codes"),
    (["fit-codec", "none.json", "--out", "run"], "none.json"),
    (["lab"], "no index.ipynb"),
    (["generate", "rain", "--loud"], "--loud"),
    (["sing"], "sing"),
])
def test_bad_input_is_one_line_before_any_model_is_loaded(refused, argv, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if argv[0] == "generate":
        argv = [*argv, "--model", "no/model"]        # would fail otherwise, with another sentence
    assert says in refused(*argv)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["nowhere", "./nowhere"])
def test_a_model_that_is_not_there(refused, model, tmp_path):
    assert model in refused("generate", "rain", "--seed", 0, "--model", model, "-o", tmp_path / "a.wav")


def test_ctrl_c_exits_130_and_leaves_nothing(tiny_folder, tmp_path):
    code = ("import sys, time, audiogen_nb.pipeline as a; a._write = lambda *_, **__: (print('on', flush=True), time.sleep(60)); "
            "from audiogen_nb.cli import main; sys.exit(main())")
    argv = ["generate", "rain", "--model", str(tiny_folder), "-o", str(tmp_path / "a.wav")]
    process = subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert process.stdout.readline() == "on\n", process.communicate(timeout=30)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err
    assert not any(tmp_path.iterdir())


def test_codec_round_trip_keeps_length_and_equals_the_library(call, tiny, tiny_folder, tmp_path):
    audio = 0.1 * torch.randn(1, 5001, generator=torch.Generator().manual_seed(1))
    save_audio(tmp_path / "a.wav", audio, 16_000)
    assert call("codec", "encode", tmp_path / "a.wav", tmp_path / "a.safetensors", "--model", tiny_folder)[0] == 0
    assert call("codec", "decode", tmp_path / "a.safetensors", tmp_path / "b.flac", "--model", tiny_folder)[0] == 0
    back, saved = load_audio(tmp_path / "b.flac")[0], load_audio(tmp_path / "a.wav")[0]
    expected = tiny.codec.decode(tiny.codec.encode(saved[None]))[0, :, :5001].clamp(-1, 1)
    assert back.shape == saved.shape and (back - expected).abs().max() < 1e-3


def test_codes_of_another_codec_are_refused(call, refused, tiny_folder, tmp_path):
    save_audio(tmp_path / "a.wav", torch.zeros(1, 4000), 16_000)
    assert call("codec", "encode", tmp_path / "a.wav", tmp_path / "a.safetensors", "--model", tiny_folder)[0] == 0
    assert "another codec" in refused("codec", "decode", tmp_path / "a.safetensors", tmp_path / "b.wav", "--model", "pocket")
    assert "holds no codes" in refused("codec", "decode", tmp_path / "a.wav", tmp_path / "b.wav", "--model", "pocket")


def test_the_bundled_model_makes_sound_without_a_network(call, tmp_path):
    code, out, err = call("generate", "a dog barks", "-o", tmp_path / "a.wav", "--duration", 1, "--seed", 0, "--quiet")
    assert code == 0 and err == ""
    audio, rate = load_audio(tmp_path / "a.wav")
    assert audio.shape[-1] == rate and level_db(audio).item() > -60


def test_help_and_no_arguments_show_the_commands(call, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["audiogen-nb"])
    for argv in [["--help"], []]:
        code, out, err = call(*argv)
        assert code == 0 and err == "" and "generate" in out and "codec" in out
    assert "--guidance-scale" in call("generate", "--help")[1]


def test_the_program_is_installed_under_its_name(root):
    assert "console_scripts = audiogen-nb=audiogen_nb.cli:main" in (root / "settings.ini").read_text()


def test_the_commands_in_the_readme_work(call, root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (root / "README.md").read_text()
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("audiogen-nb ")]
    assert len(commands) >= 5
    (tmp_path / "many.txt").write_text("rain\na bell rings\n", encoding="utf-8")
    for _, *argv in commands:
        code, out, err = call(*argv)
        assert code == 0, (argv, err)
    assert "demo.wav" in text and (tmp_path / "two-2.flac").exists() and (tmp_path / "many-2.wav").exists()
