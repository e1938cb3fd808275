"""The job protocol: fingerprint first, objects and markers, manifest last; knows nothing of what the objects hold."""
