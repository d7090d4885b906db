"""`python -m server`, for places without the console script."""

from server.cli.main import main

if __name__ == "__main__":
    main()
