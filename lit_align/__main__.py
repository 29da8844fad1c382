"""``python -m lit_align``."""

from lit_align.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
