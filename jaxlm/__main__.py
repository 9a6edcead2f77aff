"""`python -m jaxlm` is `jaxlm`."""

from jaxlm.cli import main

if __name__ == "__main__":
    main()
