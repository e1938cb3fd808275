"""Published and diffusers' DiT weights to model folders and back; without Ray."""
