"""Objects under URIs, in a folder, on S3 or wherever fsspec reaches; and what lies in them as bytes."""
