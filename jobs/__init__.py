"""What is submitted to a cluster: an entry point per stage, and recipes with hardware, time and figures."""
