"""How `sphinx-build -W docs build/docs` makes the site: offline, and every warning is an error.

Broken links and anchors between pages, names in docstrings that are on no page, and pages that are in no menu are
warnings.
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

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "repository_files", "signatures", "tables"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
templates_path = []

# ---- Pages in Markdown ----
myst_heading_anchors = 3  # `page.md#a-heading` is a link that is checked
highlight_language = "text"  # of blocks that name none

# ---- Docstrings ----
nitpicky = True
# A name in backticks links to its entry. One that begins with `deeplab_jax.` has to have one; others may be a config
# field, a value or an argument.
default_role = "py:obj"
nitpick_ignore_regex = [(r"py:.*", r"(?!deeplab_jax\.).*")]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "fully-qualified"  # made short by `signatures`
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_google_docstring = True
napoleon_custom_sections = [("Options", "params_style")]  # of the constructors of a class
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

# ---- The theme: its own files only, no fonts or scripts from elsewhere ----
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
