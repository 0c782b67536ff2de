"""Sphinx's settings; `docs/build.py` calls Sphinx with them."""
import ast
import sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path

from sphinx.pycode import ModuleAnalyzer

sys.path.insert(0, str(Path(__file__).parent))
import api

settings = ConfigParser(delimiters=["="])
settings.read(api.ROOT / "settings.ini", encoding="utf-8")
project, author, copyright = (settings["DEFAULT"][key] for key in ("title", "author", "copyright"))

extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
nb_execution_mode = "off"                                # the pages show the committed outputs
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]                      # a level of headings may be left out
mathjax_path = "mathjax/tex-chtml.js"                    # build.py puts it into _static
viewcode_follow_imported_members = False                 # following them would import the library
python_maximum_signature_line_length = 90
add_module_names, toc_object_entries_show_parents = False, "hide"

html_theme = "sphinx_book_theme"
html_title = project
html_static_path, html_css_files = ["static"], ["book.css"]
html_copy_source = False
html_theme_options = {"home_page_in_toc": True, "collapse_navbar": True, "show_toc_level": 2,
                      "navbar_persistent": [], "use_download_button": False, "use_fullscreen_button": False,
                      "pygments_light_style": "friendly", "pygments_dark_style": "github-dark"}


@cache
def find_source(app, module):
    "A module's text and the lines of its names, for the pages that show sources"
    analyzer = ModuleAnalyzer.for_string(api.source(module), module)
    analyzer.find_tags()
    methods = [node for node in ast.parse(analyzer.code).body if api.patched(node)]
    tags = {f"{api.patched(m)}.{m.name}": analyzer.tags[m.name] for m in methods}
    return analyzer.code, analyzer.tags | tags


def setup(app):
    app.connect("viewcode-find-source", find_source)
