"""`python -m mmcompile`: the same as the `mmcompile` command."""

from mmcompile.cli import main

if __name__ == "__main__":
    main()
