"""The image formats, a module each; only ``formats/registry.py`` imports them."""
