"""`python -m fsl_cli`, the same as `fsl`."""

from fsl_cli.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
