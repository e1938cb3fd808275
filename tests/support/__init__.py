"""What tests share: tiny models and images, a real S3 server, faults, comparing two commits' bytes."""
