"""Run `dvc plots show`, or `diff`, offline: the page loads the plotting libraries that are installed with Snakemake.

python tools/plots.py               the results in this folder
python tools/plots.py diff HEAD     beside those of a commit
"""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

TEMPLATE = Path(".dvc/tmp/plots.html")
PAGE = """<!DOCTYPE html>
<html>
<head><meta charset="utf-8">{{refresh_tag}}<title>DVC plots</title>{scripts}</head>
<body>{{plot_divs}}</body>
</html>
"""


def main() -> int:
    assets = files("snakemake.assets") / "data"
    scripts = [Path(str(assets / name / f"{name}.js")).as_uri() for name in ("vega", "vega-lite", "vega-embed")]
    TEMPLATE.parent.mkdir(parents=True, exist_ok=True)
    TEMPLATE.write_text(PAGE.format(scripts="".join(f'<script src="{uri}"></script>' for uri in scripts)))
    command, *options = sys.argv[1:] if sys.argv[1:2] == ["diff"] else ["show", *sys.argv[1:]]
    return subprocess.call(["dvc", "plots", command, "--html-template", str(TEMPLATE.resolve()), *options])


if __name__ == "__main__":
    sys.exit(main())
