"""Write drawn photographs to a folder: python -m mapsto.data.scenes FOLDER --count 600 --seed 0 --size 96 --masks."""

import argparse
import sys
from collections.abc import Sequence

from mapsto.data.scenes.scene import SMALLEST
from mapsto.data.scenes.shapes import CLASSES
from mapsto.data.scenes.writing import write


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m mapsto.data.scenes", description="Write drawn photographs to a folder.")
    parser.add_argument("folder", help="a local folder, made if missing")
    parser.add_argument("--count", type=int, default=600, help="images to draw (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="the same seed draws the same images (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=96, help="pixels along a side, +-25 %% (default: %(default)s)")
    parser.add_argument("--classes", help=f"some of {','.join(CLASSES)} (default: all)")
    parser.add_argument("--spoiled", type=int, default=4, help="files that fail to decode (default: %(default)s)")
    parser.add_argument("--masks", action="store_true", help="also write masks/ and manifest.jsonl")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 with a line on standard error for bad arguments."""
    args = _parser().parse_args(argv)
    try:
        if args.count < 1 or args.size < SMALLEST or args.seed < 0:
            raise ValueError(f"--count starts at 1, --size at {SMALLEST} and --seed at 0")
        classes = [name.strip() for name in args.classes.split(",")] if args.classes else None
        counts = write(
            args.folder, args.count, args.seed, (args.size,) * 2, classes, spoiled=args.spoiled, masks=args.masks
        )
    except (ValueError, OSError) as error:
        print(f"mapsto.data.scenes: {error}", file=sys.stderr)
        return 2
    images, spoiled, classes = counts["images"], counts["spoiled"], len(counts["classes"])
    print(f"{args.folder}: {images} images of {classes} classes, {spoiled} spoiled files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
