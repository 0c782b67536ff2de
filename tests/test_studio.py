"""The playground without a browser: the function, the thread, the widgets."""
import time

import pytest
import torch

from audiogen_nb.lab.studio import Job, Playground, Settings, Stopped, make_take, playground, take_figure, take_player


def wait(app):
    app.job.wait(60)
    assert not app.run.start.disabled and app.run.halt.disabled


def test_a_take_is_what_generate_gives_and_can_be_made_again(tiny):
    take = make_take(tiny, "rain", seed=3)
    assert torch.equal(take.audio, tiny.generate("rain", seed=3)[0])
    assert take.settings == dict(prompt="rain", duration=0.5, guidance_scale=3.0, temperature=1.0, top_k=250, seed=3,
                                 negative_prompt=None, best_of=1)
    drawn = make_take(tiny, "rain")
    assert torch.equal(make_take(tiny, **drawn.settings).audio, drawn.audio)


@pytest.mark.parametrize("change", [dict(prompt="wind"), dict(duration=0.25), dict(temperature=0.2), dict(top_k=2), dict(seed=4),
                                    dict(guidance_scale=8.0), dict(negative_prompt="rain")])
def test_every_setting_reaches_the_pocket_model(pocket, change):
    plain = dict(prompt="a dog barks", duration=0.5, guidance_scale=3.0, temperature=1.0, top_k=250, seed=3)
    a, b = make_take(pocket, **plain), make_take(pocket, **{**plain, **change})
    assert a.audio.shape != b.audio.shape or not torch.equal(a.audio, b.audio)
    assert a.label != b.label


def test_picture_and_player(tiny):
    take = make_take(tiny, "rain", seed=3)
    assert take_figure(take).startswith(b"\x89PNG") and "<audio" in take_player(take)


def test_drawing_leaves_pyplot_alone(tiny):
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    take_figure(make_take(tiny, "rain", seed=3))
    assert plt.get_fignums() == before


def test_settings_start_from_the_model_and_read_as_arguments(tiny):
    settings = Settings(tiny.generation)
    assert settings.duration.max == tiny.generation.limit == 2.5 and settings.read()["duration"] == 0.5 and settings.read()["seed"] is None
    settings.random.value, settings.seed.value, settings.prompt.value = False, 9, "rain"
    assert make_take(tiny, **settings.read()).settings["seed"] == 9


def test_a_press_makes_a_take_and_the_newest_is_on_top(tiny):
    app = Playground(tiny)
    for prompt in ["rain", "wind"]:
        app.settings.prompt.value = prompt
        app.run.start.click()
        wait(app)
    assert [take.settings["prompt"] for take in app.history.takes] == ["wind", "rain"]
    assert "made 0.5 s" in app.run.line.value and "2 takes" in app.history.count.value
    app.history.clear.click()
    assert not app.history.takes


def test_stop_ends_a_generation_of_the_real_loop_early(tiny):
    seen, ends = [], []

    def on_step(step, n_steps):
        seen.append((step, n_steps))
        if step == 3:
            job.stop()
        time.sleep(0.01)

    job = Job(lambda callback: make_take(tiny, "rain", callback=callback), on_step, lambda *end: ends.append(end))
    job.wait(60)
    assert seen[-1][0] == 3 < seen[-1][1] and ends[0][0] is None and isinstance(ends[0][1], Stopped)


@pytest.mark.parametrize("prompt, says", [("", "prompt is empty"), ("rain", "the sky fell")])
def test_an_error_is_a_sentence_and_the_app_stays_usable(tiny, prompt, says, monkeypatch):
    app = Playground(tiny)
    app.settings.prompt.value = prompt
    with monkeypatch.context() as m:
        m.setattr(tiny, "generate", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("the sky <fell>")), raising=False)
        app.generate()
        wait(app)
    assert says in app.run.line.value.replace("&lt;", "").replace("&gt;", "") and "Traceback" not in app.run.line.value
    app.settings.prompt.value = "rain"
    app.generate()
    wait(app)
    assert len(app.history.takes) == 1


def test_the_default_is_the_bundled_model(pocket):
    assert playground().model.n_parameters == pocket.n_parameters


@pytest.mark.parametrize("what", ["take_figure", "take_player", "make_take"])
@pytest.mark.parametrize("error", [RuntimeError("no font"), SystemExit(3), MemoryError("full")])
def test_the_button_always_comes_back(tiny, monkeypatch, what, error):
    if what != "make_take" and not isinstance(error, Exception):
        pytest.skip("only the work itself is guarded against an exit")
    def fails(*args, **more): raise error
    import audiogen_nb.lab.studio as studio
    board = studio.Playground(tiny)
    monkeypatch.setattr(studio, what, fails)
    board.generate(); board.job.wait(60)
    assert not board.run.start.disabled and board.run.halt.disabled
    assert (str(error) in board.run.line.value) and "#c62828" in board.run.line.value
    assert what == "make_take" or board.take is not None, "the sound that was made is kept"
    monkeypatch.undo()
    board.generate(); board.job.wait(60)
    assert "made" in board.run.line.value and len(board.history.takes) == 1


def test_the_button_comes_back_when_no_thread_can_start(tiny, monkeypatch):
    import audiogen_nb.lab.studio as studio
    board = studio.Playground(tiny)
    def refuse(*args): raise RuntimeError("can't start new thread")
    monkeypatch.setattr(studio.threading.Thread, "start", refuse)
    board.generate()
    assert not board.run.start.disabled and "new thread" in board.run.line.value
