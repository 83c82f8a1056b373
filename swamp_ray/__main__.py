"""``python -m swamp_ray`` is the same as ``swamp``."""

from swamp_ray.cli import main

if __name__ == "__main__":
    main(prog_name="swamp")
