"""Makes a page of each notebook, cell by cell; the notebook itself lies beside it to be downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `tutorial.md` where there is `tutorial.ipynb`."""
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        assert file.abs_src_path is not None
        notebook = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))
        name = file.src_uri.removesuffix(".ipynb")
        files.append(File.generated(config, f"{name}.md", content=page(notebook, Path(file.src_uri).name)))
    return files


def page(notebook: dict[str, Any], name: str) -> str:
    """Write a notebook as Markdown.

    Args:
        notebook: As it lies in its file.
        name: The file's name, which the page links to below its heading.
    """
    parts: list[str] = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    heading, _, rest = parts[0].partition("\n")
    note = f"This page is a notebook: [{name}]({name}) to download and run. Its outputs are not shown here."
    return "\n\n".join([heading, note, rest.strip(), *parts[1:]]) + "\n"
