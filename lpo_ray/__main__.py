"""``python -m lpo_ray`` is ``lpo-ray``. The working folder, which ``-m`` puts first on the search path, comes last."""

import sys

if not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))  # else a folder or file there with the name of a package would take its place

from lpo_ray.cli.app import main

main()
