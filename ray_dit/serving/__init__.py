"""The image endpoint: step-level batching engine, HTTP API and page on Ray Serve."""
