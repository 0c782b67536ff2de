"""Models of the hub, played by a folder: what is fetched, how each fault is told; and cards that stay true."""
import errno
import json
import re
import shutil
import warnings
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import errors

from audiogen_nb import AudioGen, Codec
from audiogen_nb.data.clips import Clip
from audiogen_nb.data.recordings import PACKAGES, chosen_packages
from audiogen_nb.hub import AUDIOCRAFT_FILES, POCKET, derived_card, layout_of, make_card, model_folder, with_card
from audiogen_nb.peers.convert import convert
from audiogen_nb.sound import save_audio
from audiogen_nb.train.codec import fit_codec_from_config
from audiogen_nb.train.lm import _licence_of, fit_lm_from_config, what_was_heard

PARITY = Path(__file__).parent / "data" / "parity"
NAME = "someone/mine"
TEXT = "---\nlicense: cc-by-sa-3.0\n---\n# Bells\n\nRecorded by Ada, who wants to be named. Ünïcode ♫\n"


def http(kind, status):
    "An error of the hub's library, as after an answer with that status"
    return kind("said the server", response=SimpleNamespace(headers={}, request=None, status_code=status))


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_folder):
    "A hub: its repositories are folders; what is fetched is copied into a cache"
    hub = SimpleNamespace(folder=tmp_path / "repo", cache=tmp_path / "cache" / "models--someone--mine" / "snapshots" / "0a",
                          fetched=[], calls=[], listing=None, download=None)
    shutil.copytree(tiny_folder, hub.folder)
    files = lambda: sorted(p.relative_to(hub.folder).as_posix() for p in hub.folder.rglob("*") if p.is_file())

    def list_repo_files(repo_id, *, revision=None, repo_type=None, token=None):
        hub.calls.append(("list", repo_id, revision, token))
        if hub.listing: raise hub.listing
        return files()

    def snapshot_download(repo_id, *, revision=None, token=None, cache_dir=None, local_files_only=False, allow_patterns=None):
        hub.calls.append(("download", repo_id, revision, token, cache_dir, local_files_only))
        if local_files_only and not hub.cache.is_dir(): raise errors.LocalEntryNotFoundError("nothing cached")
        if local_files_only: return str(hub.cache)
        if hub.download: raise hub.download
        for file in files():
            if any(fnmatch(file, p) for p in allow_patterns or ["*"]) and not (hub.cache / file).exists():
                (hub.cache / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(hub.folder / file, hub.cache / file)
                hub.fetched.append(file)
        return str(hub.cache)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", list_repo_files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


# What is fetched

OURS = ["README.md", "codec.safetensors", "config.json", "lm.safetensors", "text/config.json", "text/table.safetensors", "text/vocab.txt"]


def test_of_our_layout_only_what_is_needed_and_once(hub, tiny):
    for extra in ("pytorch_model.bin", "checkpoints/lm.safetensors", "samples/rain.wav", "optimizer.pt", ".gitattributes"):
        (hub.folder / extra).parent.mkdir(exist_ok=True)
        (hub.folder / extra).write_bytes(b"x")
    model = AudioGen.from_pretrained(NAME)
    assert sorted(hub.fetched) == OURS
    assert model.generate("rain", duration=0.2, seed=1).equal(tiny.generate("rain", duration=0.2, seed=1))
    AudioGen.from_pretrained(NAME)
    assert sorted(hub.fetched) == OURS, "fetched twice"


def lay(folder, *names):
    shutil.rmtree(folder)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


@pytest.mark.parametrize("files, wanted", [
    ([*AUDIOCRAFT_FILES, "README.md", "x.wav"], AUDIOCRAFT_FILES),
    (["config.json", "generation_config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "spiece.model",
      "preprocessor_config.json", *AUDIOCRAFT_FILES],
     ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "spiece.model"]),
    (["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
      "model.fp16.safetensors", "pytorch_model-00001-of-00002.bin"],
     ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
], ids=["audiocraft", "musicgen", "musicgen in parts"])
def test_of_other_layouts_only_what_is_needed(hub, files, wanted):
    lay(hub.folder, *files)
    assert model_folder(NAME) == hub.cache
    assert sorted(hub.fetched) == sorted(wanted)


@pytest.mark.parametrize("files, message", [
    (["config.json", "pytorch_model.bin"], "its weights are pickles"),
    (["README.md", "a.gguf"], "it has README.md, a.gguf"),
    (["config.json", "lm.safetensors", "text/config.json"], "codec.safetensors is missing"),
    (["state_dict.bin"], "compression_state_dict.bin is missing"),
])
def test_a_repository_without_a_whole_model(hub, files, message):
    lay(hub.folder, *files)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)) as e:
        model_folder(NAME)
    assert "\n" not in str(e.value) and NAME in str(e.value)
    if "pickles" in message:
        assert not hub.fetched, "gigabytes that cannot be read were fetched"


def test_what_is_asked_of_the_hub_is_passed_on(hub, tmp_path):
    AudioGen.from_pretrained(NAME, revision="v2", token="hf_x", cache_dir=tmp_path)
    assert hub.calls == [("list", NAME, "v2", "hf_x"), ("download", NAME, "v2", "hf_x", tmp_path, False)]
    hub.calls.clear()
    AudioGen.from_pretrained(NAME, local_files_only=True)
    assert [call[0] for call in hub.calls] == ["download"] and hub.calls[0][-1] is True, "the network was used"
    with pytest.raises(TypeError, match="revison"):
        AudioGen.from_pretrained(NAME, revison="v2")


# Faults

FAULTS = {
    "gated": (http(errors.GatedRepoError, 403), "gated: accept its terms on its page, huggingface.co/someone/mine, and log in"),
    "no repository": (http(errors.RepositoryNotFoundError, 401), "neither a folder here nor on the hub, or it is private"),
    "no revision": (http(errors.RevisionNotFoundError, 404), "pass a branch, a tag or a commit"),
    "no login": (errors.LocalTokenNotFoundError("no token"), "token=True asks for a login"),
    "bad name": (errors.HFValidationError("bad"), "possible name"),
    "forbidden": (http(errors.HfHubHTTPError, 403), "does not let you have"),
    "server": (http(errors.HfHubHTTPError, 503), "status 503; that is a fault of the server"),
    "too many": (http(errors.HfHubHTTPError, 429), "status 429"),
    "offline": (errors.OfflineModeIsEnabled("HF_HUB_OFFLINE"), "the network must not be used"),
    "no network": (ConnectionError("refused"), "cannot reach the hub"),
    "slow": (TimeoutError("slow"), "cannot reach the hub"),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), "cannot store .* No space left on device"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", ["listing", "download"])
def test_each_fault_has_its_own_sentence(hub, fault, where):
    error, message = FAULTS[fault]
    setattr(hub, where, error)
    with pytest.raises((FileNotFoundError, ValueError, OSError), match=message) as e:
        AudioGen.from_pretrained(NAME, revision="v9")
    assert type(e.value) in (ValueError, OSError) or isinstance(e.value, FileNotFoundError)
    assert "\n" not in str(e.value) and "mine" in str(e.value)
    others = [m for f, (_, m) in FAULTS.items() if m != message]
    assert not any(re.search(m, str(e.value)) for m in others), "two faults share a sentence"


def test_a_fault_of_the_library_is_not_dressed_up(hub):
    hub.listing = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        model_folder(NAME)


@pytest.mark.parametrize("error, said", [(ConnectionError(), "cannot reach the hub"), (http(errors.HfHubHTTPError, 502), "status 502"),
                                         (errors.OfflineModeIsEnabled(), None)])
def test_without_the_hub_a_copy_in_the_cache_is_used(hub, error, said):
    model_folder(NAME)
    hub.listing = hub.download = error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert model_folder(NAME) == hub.cache
    assert [said in str(w.message) for w in caught] == ([True] if said else []), "a copy that may be old is used in silence"
    (hub.cache / "lm.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="the cache is not complete, lm.safetensors is missing"):
        model_folder(NAME)
    with pytest.raises(FileNotFoundError, match="the cache is not complete, lm.safetensors is missing"):
        model_folder(NAME, local_files_only=True)


def test_a_real_cache_without_a_network(tmp_path, tiny_folder, monkeypatch):
    "With the hub's own library: its cache is written by hand, the network is off"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--someone--mine" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny_folder, snapshot)
    (tmp_path / "models--someone--mine" / "refs").mkdir()
    (tmp_path / "models--someone--mine" / "refs" / "main").write_text("a" * 40)
    for local in (True, False):
        model = AudioGen.from_pretrained(NAME, cache_dir=tmp_path, local_files_only=local)
        assert model.provenance["source"] == NAME
        with pytest.raises(FileNotFoundError, match="not in the cache"):
            AudioGen.from_pretrained("someone/else", cache_dir=tmp_path, local_files_only=local)
    with pytest.raises(FileNotFoundError, match="revision 'v2'.* not in the cache"):
        AudioGen.from_pretrained(NAME, cache_dir=tmp_path, revision="v2", local_files_only=True)
    with pytest.raises(ValueError, match="possible name"):
        AudioGen.from_pretrained("some one/m*ne", cache_dir=tmp_path)


def test_names_that_are_no_model(tmp_path, tiny_folder, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    for name, message in ((tmp_path / "a.wav", "is a file"), (tiny_folder / "config.json", "is a file"), (tmp_path / "empty", "holds no model"),
                          ("nobody", "no folder of that name"), ("a/b/c", "no folder"), ("../x", "no folder"), ("x/", "no folder")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            AudioGen.from_pretrained(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="call from elsewhere"):
        AudioGen.from_pretrained("empty/sub")
    with pytest.warns(UserWarning, match="revision is of no effect"):
        model_folder(tiny_folder, revision="v2")


# Saving and pushing

def test_exist_ok_replaces_a_model_and_nothing_else(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "m")
    with pytest.raises(FileExistsError):
        tiny.save_pretrained(tmp_path / "m")
    tiny.save_pretrained(tmp_path / "m", weights="int8", exist_ok=True)
    tiny.save_pretrained(tmp_path / "fresh", exist_ok=True)
    (tmp_path / "empty").mkdir()
    tiny.save_pretrained(tmp_path / "empty", exist_ok=True)
    for folder in ("m", "fresh", "empty"):
        AudioGen.from_pretrained(tmp_path / folder)
    (tmp_path / "m" / "my notes.txt").write_text("years of work")
    (tmp_path / "home" / "thesis").mkdir(parents=True)
    (tmp_path / "home" / "thesis" / "a.tex").write_text("x")
    for folder, named in (("m", "my notes.txt"), ("home", "thesis/a.tex")):
        with pytest.raises(FileExistsError, match=f"other things than a model .*{named}"):
            tiny.save_pretrained(tmp_path / folder, exist_ok=True)
    assert (tmp_path / "m" / "my notes.txt").read_text() == "years of work" and (tmp_path / "home" / "thesis" / "a.tex").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "fresh", "home", "m"], "a temporary is left"


def test_a_save_that_fails_leaves_the_old_model(tiny, tmp_path, monkeypatch):
    tiny.save_pretrained(tmp_path / "m", card=TEXT)
    monkeypatch.setattr("audiogen_nb.hub.save_file", MagicMock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        tiny.save_pretrained(tmp_path / "m", exist_ok=True)
    assert AudioGen.from_pretrained(tmp_path / "m").card == TEXT and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_push(tiny, monkeypatch):
    api, pushed = MagicMock(), {}
    api.upload_folder.side_effect = lambda folder_path, **more: pushed.update(
        more, files={p.name for p in Path(folder_path).iterdir()}, card=(Path(folder_path) / "README.md").read_text("utf-8")) or "there"
    monkeypatch.setattr(huggingface_hub, "HfApi", MagicMock(return_value=api))
    model = AudioGen(*tiny.parts[:4], provenance={"card": TEXT})
    assert model.push_to_hub(NAME, private=True, token="hf_x", revision="second", commit_message="Better bells") == "there"
    assert huggingface_hub.HfApi.call_args.kwargs == {"token": "hf_x"} and api.create_repo.call_args.kwargs["private"] is True
    assert (pushed["revision"], pushed["commit_message"], pushed["card"]) == ("second", "Better bells", TEXT)
    assert pushed["files"] == {"README.md", "codec.safetensors", "config.json", "lm.safetensors", "text"}
    api.model_info.return_value.private = False
    api.upload_folder.reset_mock()
    with pytest.raises(ValueError, match="is there already, and public"):
        model.push_to_hub(NAME, private=True)
    assert not api.upload_folder.called
    api.create_repo.side_effect = http(errors.HfHubHTTPError, 401)
    with pytest.raises(FileNotFoundError, match="hf auth login"):
        model.push_to_hub(NAME)


# Cards

def head(text) -> dict:
    "The YAML at the head of a card; the hub's own library must read it, too"
    found = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])
    assert huggingface_hub.ModelCard(text).data.to_dict().keys() >= found.keys() - {"base_model"}
    return found


def test_the_card_of_a_model_without_a_history_says_so(tiny, tmp_path):
    text = (tiny.save_pretrained(tmp_path / "m") / "README.md").read_text(encoding="utf-8")
    assert head(text) == {"license": "unknown", "library_name": "audiogen_nb", "pipeline_tag": "text-to-audio", "language": "en",
                          "tags": ["audiogen", "text-to-audio"]}
    assert "Not stated" in text and "pocket" not in text.lower().replace("pockettextencoder", "")
    for word in ("Debian", "CC BY", "toy"):
        assert word not in text


@pytest.mark.parametrize("licence, name", [("CC BY-NC 4.0 (no commercial use), as far as these are Meta's", "cc-by-nc-4.0"), ("MIT", "mit"),
                                           ("Apache-2.0", "apache-2.0"), ("CC BY-SA 3.0, GPL-2+; see README.md", "other"),
                                           ("not stated; it follows from your sounds", "unknown"), (None, "unknown"), (["a"], "other")])
def test_a_licence_in_the_words_of_the_hub(tiny, licence, name):
    assert head(make_card(tiny.parts._replace(provenance={"licence": licence})))["license"] == name


def test_a_card_is_kept(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "a", card=TEXT)
    model = AudioGen.from_pretrained(tmp_path / "a")
    assert model.card == TEXT
    model.save_pretrained(tmp_path / "b", weights="int8")
    assert (tmp_path / "b" / "README.md").read_text(encoding="utf-8") == TEXT
    assert "Ada" not in (tmp_path / "b" / "config.json").read_text()
    tiny.save_pretrained(tmp_path / "c", card="Words of mine.")
    text = (tmp_path / "c" / "README.md").read_text()
    assert text.endswith("Words of mine.") and head(text)["license"] == "unknown"


def test_the_bundled_card_is_true_and_kept(pocket, tmp_path):
    text = (POCKET / "README.md").read_text(encoding="utf-8")
    assert (pocket.save_pretrained(tmp_path / "p", "int8") / "README.md").read_text(encoding="utf-8") == text
    assert head(text)["license"] == "other" and head(text)["pipeline_tag"] == "text-to-audio"
    assert re.search(r"sonic-pi-samples`: CC0 1.0.*MIT", text), "Debian's file has 35 of them under MIT"
    assert "MIT" in pocket.provenance["licence"]


def test_a_card_that_is_no_text_of_the_folder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "m")
    secret = tmp_path / "secret"
    secret.write_text("key")
    (tmp_path / "m" / "README.md").unlink()
    assert "card" not in with_card({}, tmp_path / "m") and "Not stated" in AudioGen.from_pretrained(tmp_path / "m").card
    (tmp_path / "m" / "README.md").symlink_to(secret)
    with pytest.raises(ValueError, match="a link out of its folder"):      # the next push would publish it
        AudioGen.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / "README.md").unlink()
    (tmp_path / "m" / "README.md").write_bytes(b"\xef\xbb\xbf# Caf\xe9\n" + b"x" * 100)
    assert with_card({}, tmp_path / "m")["card"].startswith("# Caf")
    (tmp_path / "m" / "README.md").write_bytes(b"x" * 1_000_001)
    with pytest.raises(ValueError, match="at most 1000000"):
        with_card({}, tmp_path / "m")


@pytest.mark.parametrize("card", ["", "---\n", "---\n---\n", "---\n- a\n---\n# X", "---\na: [\n---\n# X", "---\r\nlicense: mit\r\n---\r\n# X",
                                  "---\n" + "[" * 5000 + "\n---\n", "# {} and {x}"])
def test_odd_cards_are_worked_with(tiny, card):
    text = derived_card(tiny.parts._replace(provenance={"card": card}), "{}, changed", "What was done.")
    assert head(text)["library_name"] == "audiogen_nb" and "What was done." in text and ", changed" in text


def test_conversion_keeps_the_card(tmp_path, tiny):
    model = AudioGen.from_pretrained(PARITY)
    codec = Codec(replace(Codec.preset("tiny"), lstm_layers=1))             # what AudioCraft has a place for
    AudioGen(codec, *tiny.parts[1:4]).save_pretrained(tmp_path / "ours", card=TEXT)
    back = convert(tmp_path / "ours", tmp_path / "theirs", "audiocraft")
    text = (back / "README.md").read_text(encoding="utf-8")
    assert layout_of(back) == "audiocraft" and "Recorded by Ada" in text
    assert head(text)["license"] == "cc-by-sa-3.0" and head(text)["library_name"] == "audiocraft"
    ours = convert(PARITY, tmp_path / "read")
    text = (ours / "README.md").read_text(encoding="utf-8")
    assert model.provenance["licence"] in text and "AudioCraft" in text and head(text)["library_name"] == "audiogen_nb"
    assert json.loads((ours / "config.json").read_text())["provenance"]["licence"] == model.provenance["licence"]


# What a trained model owes to whom

def config(folder, name, **sections):
    (folder / name).write_text(json.dumps(sections))
    return folder / name


def test_a_model_of_own_sounds_does_not_claim_others_licences(tmp_path):
    sounds = tmp_path / "secret place" / "my bells"
    sounds.mkdir(parents=True)
    for i in range(6):
        save_audio(sounds / f"bell {i}.wav", 0.05 * torch.randn(1, 16_000, generator=torch.Generator().manual_seed(i)), 16_000)
    data = {"folder": str(sounds)}
    codec = {"n_steps": 2, "batch_size": 2, "seconds": 0.5, "warmup_quantizer": 1}
    fit_codec_from_config(config(tmp_path, "codec.json", codec="tiny", data=data, training=codec), tmp_path / "codec", progress=False)
    tokens = {"weights": [1.0], "n_items": 4, "n_held_out": 2, "seconds": 0.5, "mix_probability": 0.5, "seed": 0}
    made = fit_lm_from_config(
        config(tmp_path, "lm.json", lm="tiny", data=data, tokens=tokens, training={"n_steps": 2, "batch_size": 2},
               generation={"duration": 0.5, "max_duration": 0.5}), tmp_path / "codec", tmp_path / "kitchen", progress=False)
    text = (tmp_path / "kitchen" / "model" / "README.md").read_text(encoding="utf-8")
    assert "# kitchen\n" in text and "`my bells`" in text and head(text)["license"] == "unknown"
    assert made.provenance["licence"] == "not stated; it follows from your sounds" and made.card == text
    for word in ("Debian", "CC BY", "GPL", "pocket", "toy world", "secret place"):
        assert word not in text, word
    assert "secret place" not in (tmp_path / "kitchen" / "model" / "config.json").read_text()


def stage(**data):
    return {"lm": "tiny", "data": data}


def test_what_was_heard(monkeypatch):
    clip = lambda package, who: Clip(torch.zeros(1, 10), 16_000, ("x",), "x", f"{package} | x | {who}")
    there = [clip("openttd-opensfx", '"Bell". By Ada. License: CC0.'), clip("sonic-pi-samples", PACKAGES["sonic-pi-samples"].licence)]
    monkeypatch.setattr("audiogen_nb.train.lm.read_recordings", lambda folder, rate, packages: there)
    of = lambda *stages: what_was_heard(list(stages), 16_000)
    toy = of(stage(recordings=False, toy=5))
    assert toy.licence.startswith("not stated") and "toy world" in toy.about and not toy.credits
    both = of(stage(recordings=False, toy=5), stage(toy=5))            # the codec's, or an earlier run's, recordings count
    assert both.licence == "CC BY-SA 3.0, CC0 1.0, MIT; see README.md", "only the packages that were heard"
    assert "By Ada" in both.credits and "widelands" not in both.credits and "toy world" in both.about
    own = of(stage(folder="/x/bells"), stage(recordings=True))
    assert own.licence.startswith("not stated; it follows from your sounds, and from the recordings: CC BY-SA 3.0")
    def gone(folder, rate, packages): raise FileNotFoundError
    monkeypatch.setattr("audiogen_nb.train.lm.read_recordings", gone)
    absent = of(stage(recordings_folder="/gone"))
    assert "how many is not known" in absent.about and all(package in absent.credits for package in chosen_packages()) and "GPL-2+" in absent.licence
    assert "btanks-data" not in absent.credits, "the first edition, where nothing else was asked for"


def test_a_card_credits_every_package_of_both_editions(monkeypatch):
    asked = []
    def there(folder, rate, packages):
        asked.append(packages)
        return [Clip(torch.zeros(1, 10), 16_000, ("x",), "x", f"{name} | x | {PACKAGES[name].licence}") for name in chosen_packages(packages)]
    def gone(folder, rate, packages): raise FileNotFoundError
    for read in (there, gone):
        monkeypatch.setattr("audiogen_nb.train.lm.read_recordings", read)
        heard = what_was_heard([stage(recordings=True), stage(recordings="all"), stage(recordings=["btanks-data"])], 16_000)
        assert all(heard.credits.count(f"`{name}`: {PACKAGES[name].licence}") == 1 for name in PACKAGES)
        for term in ("CC BY-SA 3.0", "CC BY-SA 4.0", "CC BY 3.0", "GPL-2+", "LGPL-2.1", "MPL", "Artistic-1.0", "WTFPL-2", "public domain"):
            assert term in heard.licence.removesuffix("; see README.md").split(", "), term
    assert asked == [True, "all", ["btanks-data"]]


def test_every_package_has_a_licence_that_is_understood():
    for name, package in PACKAGES.items():
        assert _licence_of(f"- Debian package `{name}`: {package.licence}", set(), {}).endswith("; see README.md"), name


@pytest.mark.parametrize("text, terms", [
    ("LGPL-2.1 or MPL, the team", "LGPL-2.1, MPL"), ("LGPL-3+, someone", "LGPL-3+"), ("GPL-2, GPL-2+ and AGPL-3", "GPL-2, GPL-2+, AGPL-3"),
    ("GPL, a company", "GPL"), ("Artistic-1.0, x", "Artistic-1.0"), ("GFDL-1.2+, WTFPL-2", "GFDL-1.2+, WTFPL-2"),
    ("CC BY-SA 3.0. And MITRA, CC0 1.0", "CC BY-SA 3.0, CC0 1.0")])
def test_licences_are_not_taken_for_others(text, terms):
    assert _licence_of(f"- Debian package `x`: {text}", set(), {}) == f"{terms}; see README.md"


def test_adapters_keep_the_makers(tiny, tmp_path):
    pytest.importorskip("peft")
    from audiogen_nb.train.lora import LoRATraining, fit_lora, merge_lora
    clips = [Clip(0.05 * torch.randn(1, 16_000), 16_000, ("a bell",), "bell", f"{i}") for i in range(3)]
    base = AudioGen(*tiny.parts[:4], provenance={"card": TEXT, "licence": "CC BY-SA 3.0", "source": "someone/bells"})
    settings = LoRATraining(n_steps=2, batch_size=2, rank=2, n_items=4)
    fit_lora(base, clips, tmp_path / "run", settings, progress=False)
    merged = merge_lora(base, tmp_path / "run" / "adapter")
    text = (merged.save_pretrained(tmp_path / "m") / "README.md").read_text(encoding="utf-8")
    assert "# Bells, adapted" in text and "adapted to 3 clips" in text and "2 steps" in text and "Recorded by Ada" in text
    assert head(text)["base_model"] == "someone/bells" and head(text)["license"] == "other"
    assert merged.provenance["licence"].startswith("CC BY-SA 3.0;") and base.card == TEXT
    again = merge_lora(AudioGen.from_pretrained(tmp_path / "m"), tmp_path / "run" / "adapter", scale=0.5)
    assert [again.provenance["lora"]["scale"], again.provenance["lora_before"][0]["scale"]] == [0.5, 1.0]
    assert "Recorded by Ada" in again.card and "scale 0.5" in again.card and "scale 1" in again.card
    (tmp_path / "run" / "recipe.json").unlink()                                 # adapters that came alone
    assert "adapted to some clips" in merge_lora(base, tmp_path / "run" / "adapter").card
    bare = merge_lora(tiny, tmp_path / "run" / "adapter")
    assert head(bare.card)["license"] == "unknown" and "pocket" not in bare.card.lower().replace("pockettextencoder", "")
