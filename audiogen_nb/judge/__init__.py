"""How sounds and sets of sounds are judged. The names below are imported when they are first asked for: nothing that makes sounds needs them."""
from importlib import import_module

_NAMES = {
    "distances": ("frechet_distance", "kl_divergence", "spectral_embedding", "wilson"),
    "embedding": ("AiSFX", "Embedder", "FunctionEmbedder", "HFEmbedder", "fetch_judge", "load_embedder"),
    "listening": ("ListeningTest", "screen_raters", "summarise", "systems_from_folders"),
    "measures": ("bootstrap_interval", "cosine_score", "fad_by_size", "fad_infinity", "inception_score", "kernel_distance",
                 "median_distance", "vendi_score"),
    "quality": ("align", "codec_table", "mel_distance", "si_sdr", "zimtohrli_mos"),
    "report": ("evaluate_model",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "AiSFX", "Embedder", "FunctionEmbedder", "HFEmbedder", "ListeningTest", "align", "bootstrap_interval", "codec_table",
    "cosine_score", "evaluate_model", "fad_by_size", "fad_infinity", "fetch_judge", "frechet_distance", "inception_score",
    "kernel_distance", "kl_divergence", "load_embedder", "median_distance", "mel_distance", "screen_raters", "si_sdr",
    "spectral_embedding", "summarise", "systems_from_folders", "vendi_score", "wilson", "zimtohrli_mos",
]


def __getattr__(name):
    "Import a public name of this package's modules"
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
