"""What tests share: tiny models and images, a real S3 server, faults, and the comparison of two commits' bytes."""
