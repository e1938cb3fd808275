"""Objects under URIs: in a folder, on S3 or wherever fsspec reaches; knows nothing of what lies in them."""
