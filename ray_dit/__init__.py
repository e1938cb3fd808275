"""Train class-conditional diffusion transformers and mass-produce labelled images with them on Ray."""

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "load":  # on demand, since it needs torch: settings and --help do without
        from ray_dit.pipeline import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
