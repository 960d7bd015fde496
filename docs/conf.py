"""Configuration of the documentation site. Build it with `sphinx-build -W docs build/docs`; this needs no network.

`-W` turns warnings into errors: broken links and anchors, names in docstrings without an entry, pages outside the menu.
"""

import pathlib
import sys

import deeplab_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "docs" / "_extensions"))

project = "deeplab_jax"
release = version = deeplab_jax.__version__
copyright = "the deeplab_jax authors, Apache-2.0"
html_title = f"deeplab_jax {release}"

extensions = [
    "myst_nb",  # Markdown and notebooks
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "repository_files",
    "signatures",
    "tables",
]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build"]
templates_path = []

# ---- Pages in Markdown ----
myst_heading_anchors = 3  # `page.md#a-heading` is a link that is checked
highlight_language = "text"  # for blocks that name none

# ---- Notebooks: shown with their committed outputs ----
nb_execution_mode = "off"
nb_output_stderr = "show"  # `.ci/notebooks` checks that there is none
suppress_warnings = ["mystnb.unknown_mime_type"]

copybutton_exclude = ".linenos, .gp, .go"

# ---- Docstrings ----
nitpicky = True
# A name in backticks links to its entry. Names that start with `deeplab_jax.` must have an entry; others can be config
# fields, values or arguments.
default_role = "py:obj"
nitpick_ignore_regex = [(r"py:.*", r"(?!deeplab_jax\.).*|deeplab_jax\.(\w+\.)*_\w+")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "fully-qualified"  # `signatures` shortens them
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_custom_sections = [("Options", "params_style")]  # constructor options in class docstrings
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

# ---- Theme: no fonts or scripts from other hosts ----
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
