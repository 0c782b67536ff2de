"""AudioGen, text to audio: the library that the chapters in nbs/ write."""
__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .codec.vq import Codec
    from .pipeline import AudioGen, load_audiocraft
    from .sampling.loop import AudioLM

__all__ = ["AudioGen", "Codec", "AudioLM", "load_audiocraft"]

# sampling.loop teaches the language model to write, so it is taken from there
_HOMES = {"AudioGen": "pipeline", "Codec": "codec.vq", "AudioLM": "sampling.loop", "load_audiocraft": "pipeline"}


def __getattr__(name):
    "Import a public name when it is first asked for, so that `import audiogen_nb` and `audiogen-nb --help` stay quick"
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
