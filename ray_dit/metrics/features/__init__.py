"""The feature networks, a module each; `ray_dit.metrics.registry` lists them."""
