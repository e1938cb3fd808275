"""Seeded runs of whole stages under faults on one Ray cluster; ``python -m tests.faults.harness --help``."""
