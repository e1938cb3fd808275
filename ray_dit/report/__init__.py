"""Images and the self-contained HTML report."""
