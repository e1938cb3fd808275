"""The pipeline's stages on Ray, a file each; a stage never imports another stage."""
