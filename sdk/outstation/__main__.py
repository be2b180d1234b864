"""``python -m outstation`` is the console script ``outstation``."""

from outstation.cli.main import main

if __name__ == "__main__":
    main()
