"""The job protocol: fingerprint first, objects and markers, manifest last.

Knows nothing of what the objects hold.
"""
