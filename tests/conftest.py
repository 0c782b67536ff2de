"""Shared by all tests: the tree under test comes first, one thread per process, caches in a temporary folder."""
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")
# `make test` asks Python to warn where a file is opened in the locale's encoding, and pyproject.toml makes that an error
# in the library; the programs that tests start are not asked, for other packages would speak up on their stderr
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.pop("PYTHONWARNDEFAULTENCODING", None)


# What another processor, which rounds and sums otherwise, could break: `make numeric` runs it once more.
NUMERIC = {"test_audiogen", "test_codec", "test_codec_parity", "test_data", "test_evaluate", "test_lm", "test_longer", "test_lora",
           "test_losses", "test_mixing", "test_official", "test_quantizer", "test_sampling", "test_streams", "test_text", "test_words"}
NUMERIC_NOTEBOOKS = {f"nbs/{name}.ipynb" for name in (
    "worlds/toy", "worlds/toy_kinds", "02_sound", "04_mixing", "05_seanet", "06_codebook", "07_residual", "08_losses", "13_transformer",
    "15_sampling", "engine/balancer", "engine/chunks", "engine/linear", "engine/windows", "peers/audiocraft_codec")}


def pytest_configure(config):
    config.addinivalue_line("markers", "numeric: what another processor, which rounds and sums otherwise, could break")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "Two workers: the tests of a file stay together and share what they set up, each notebook goes to whoever is free"
    from xdist.scheduler import LoadScopeScheduling

    class FilesAndNotebooks(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid if "::test_notebook_runs[" in nodeid else nodeid.split("::")[0]
    return FilesAndNotebooks(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        notebook = item.originalname == "test_notebook_runs" and item.callspec.params["name"] in NUMERIC_NOTEBOOKS
        if notebook or item.path.stem in NUMERIC or item.originalname == "test_two_processes_equal_one":
            item.add_marker("numeric")


@pytest.fixture(scope="session")
def root() -> Path:
    "The project's folder"
    return ROOT


@pytest.fixture(scope="session")
def tiny():
    "An untrained model of a few thousand parameters: obeys every rule, makes noise"
    import torch
    from audiogen_nb import AudioGen, AudioLM, Codec
    from audiogen_nb.hub import POCKET
    from audiogen_nb.sampling.request import Generation
    from audiogen_nb.text.hf import load_text_encoder
    torch.manual_seed(0)
    return AudioGen(Codec(Codec.preset("tiny")), AudioLM(AudioLM.preset("tiny")), load_text_encoder(POCKET / "text"),
                    Generation(duration=0.5, max_duration=1.0))


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory):
    "The folder that it was saved to"
    return tiny.save_pretrained(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pocket():
    "The bundled model"
    from audiogen_nb import AudioGen
    return AudioGen.from_pretrained("pocket")
