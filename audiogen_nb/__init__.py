"""AudioGen, text to audio: the library that the chapters in nbs/ write."""
__version__ = "0.1.0"

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pipeline import AudioGen, AudioLM, Codec

__all__ = ["AudioGen", "Codec", "AudioLM"]


def __getattr__(name):
    "Import a public class when it is first asked for, so that `import audiogen_nb` and `audiogen-nb --help` stay quick"
    if name in __all__:
        from . import pipeline
        return getattr(pipeline, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
