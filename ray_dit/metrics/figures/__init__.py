"""The figures of merit, a module each; `ray_dit.metrics.registry` lists them."""
