"""Bytes to rows and back: images, latents, weights, labels; knows no store, no job and no neural network."""
