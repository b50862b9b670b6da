"""`python -m fsl_cli`, the same as `fsl`."""

from fsl_cli.cli import main

raise SystemExit(main())
