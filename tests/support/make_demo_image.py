"""Writes an image of the demo's page: `python tests/make_demo_image.py PHOTO docs/demo.png [--preset ...]`.

Needs the extra demo, selenium, chromium and chromedriver. What stands behind the two files goes to `deeplab-jax demo`.
"""

import argparse
import pathlib

from tests.support.demo_browser import Page, serving


def main() -> None:
    """Labels the photo on the page and saves the page, 1280 pixels wide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    args, rest = parser.parse_known_args()
    if args.output.exists():
        parser.error(f"{args.output} exists; remove it first")
    with serving(*rest) as address, Page(address) as page:
        for _ in range(2):  # the second time, nothing is loaded and compiled
            page.open(address)
            page.label(args.photo.resolve())
        page.screenshot().save(args.output, optimize=True)


if __name__ == "__main__":
    main()
