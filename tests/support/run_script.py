"""Runs the scripts beside exported networks: `run_script.py SCRIPT IMAGE MASK SCRIPT IMAGE MASK...`.

A separate program that cannot import deeplab_jax or flax, so a script has to do everything itself.
"""

import runpy
import sys

sys.modules["deeplab_jax"] = sys.modules["flax"] = None  # importing them raises

if __name__ == "__main__":
    words = sys.argv[1:]
    for script, image, mask in zip(words[::3], words[1::3], words[2::3], strict=True):
        sys.argv = [script, image, mask]
        runpy.run_path(script)
