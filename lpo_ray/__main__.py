"""``python -m lpo_ray`` is ``lpo-ray``."""

from lpo_ray.cli.app import main

main()
