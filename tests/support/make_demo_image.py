"""Writes a screenshot of the demo: `python -m tests.support.make_demo_image PHOTO docs/demo.png [--preset ...]`.

Requires the extra `demo`, selenium, chromium and chromedriver. Other arguments go to `deeplab-jax demo`.
"""

import argparse
import pathlib

from tests.support.demo_browser import Page
from tests.support.demo_server import serving


def main() -> None:
    """Segments the photo on the page and saves a screenshot 1280 pixels wide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    args, rest = parser.parse_known_args()
    if args.output.exists():
        parser.error(f"{args.output} exists; remove it first")
    with serving(*rest) as address, Page(address) as page:
        for _ in range(2):  # the second time nothing is loaded or compiled
            page.open(address)
            page.segment(args.photo.resolve())
        page.screenshot().save(args.output, optimize=True)


if __name__ == "__main__":
    main()
