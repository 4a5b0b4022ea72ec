"""``python -m rectilinear``."""

from rectilinear.cli.main import main

if __name__ == "__main__":
    main()
