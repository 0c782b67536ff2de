"""How sounds and sets of sounds are judged. The names below are imported when they are first asked for: nothing that makes sounds needs them."""
from importlib import import_module

_NAMES = {
    "distances": ("frechet_distance", "kl_divergence", "spectral_embedding", "wilson"),
    "embedding": ("AiSFX", "Embedder", "FunctionEmbedder", "HFEmbedder", "fetch_judge", "load_embedder"),
    "listening": ("ListeningTest", "screen_raters", "summarise", "systems_from_folders"),
    "measures": ("bootstrap_interval", "cosine_score", "fad_by_size", "fad_infinity", "inception_score", "kernel_distance",
                 "median_distance", "vendi_score"),
    "protocol": ("Comparison", "compare_reports", "evaluate_on", "evaluation_set", "format_card", "read_report"),
    "quality": ("align", "codec_table", "mel_distance", "si_sdr", "zimtohrli_mos"),
    "recognition": ("RecordingShelf", "evaluate_prompts", "judge_recognition", "read_asked"),
    "report": ("evaluate_model",),
    "scores": ("Yardstick", "jackknife_interval", "score_table"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "AiSFX", "Comparison", "Embedder", "FunctionEmbedder", "HFEmbedder", "ListeningTest", "RecordingShelf", "Yardstick",
    "align", "bootstrap_interval", "codec_table", "compare_reports", "cosine_score", "evaluate_model", "evaluate_on",
    "evaluate_prompts", "evaluation_set", "fad_by_size", "fad_infinity", "fetch_judge", "format_card", "frechet_distance",
    "inception_score", "jackknife_interval", "judge_recognition", "kernel_distance", "kl_divergence", "load_embedder",
    "median_distance", "mel_distance", "read_asked", "read_report", "score_table", "screen_raters", "si_sdr", "spectral_embedding", "summarise",
    "systems_from_folders", "vendi_score", "wilson", "zimtohrli_mos",
]


def __getattr__(name):
    "Import a public name of this package's modules"
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
