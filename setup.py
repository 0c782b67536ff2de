"""Packaging: everything is read from settings.ini, the project's one configuration file."""
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

notebooks = cfg["notebooks_requirements"].split()
development, site = cfg["dev_requirements"].split(), cfg["docs_requirements"].split()
lora, captions = cfg["lora_requirements"].split(), cfg["captions_requirements"].split()
book = notebooks + lora + captions        # the chapters use every extra
licences = {"apache2": "Apache-2.0"}
statuses = ["1 - Planning", "2 - Pre-Alpha", "3 - Alpha", "4 - Beta", "5 - Production/Stable"]

package = here / cfg["lib_path"]      # everything in it that is not code: the bundled model, its configurations, tables
data = [p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    long_description=(here / "README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    author=cfg["author"], author_email=cfg["author_email"], keywords=cfg["keywords"], license=licences[cfg["license"]],
    classifiers=[f"Development Status :: {statuses[int(cfg['status']) - 1]}", "Programming Language :: Python :: 3",
                 "Topic :: Multimedia :: Sound/Audio", "Topic :: Scientific/Engineering :: Artificial Intelligence"],
    packages=find_packages(include=[cfg["lib_name"], cfg["lib_name"] + ".*"]), package_data={cfg["lib_name"]: data},
    python_requires=">=" + cfg["min_python"], install_requires=cfg["requirements"].split(),
    extras_require={"notebooks": book, "lora": lora, "captions": captions, "docs": site,
                    "dev": book + development + site},
    entry_points={"console_scripts": cfg["console_scripts"].split()}, zip_safe=False,
)
