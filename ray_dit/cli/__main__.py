"""`python -m ray_dit.cli`, the same as `ray-dit`."""

from ray_dit.cli import main

if __name__ == "__main__":
    main()
