"""`python -m bayeslora` is the `bayeslora` command."""

from bayeslora.cli import main

if __name__ == "__main__":
    main()
