"""URIs and bytes: object store, job protocol, formats; knows nothing of models' mathematics or of Ray."""
