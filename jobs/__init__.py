"""What one submits to a cluster: an entry point a stage, and recipes with hardware, time and expected figures."""
