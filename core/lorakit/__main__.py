"""`python -m lorakit`, the same as `lorakit`."""

from lorakit.cli import main

if __name__ == "__main__":
    main()
