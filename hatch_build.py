"""Project links, and a readme whose links work outside of the repository.

Both need the repository's public address: `repository` in pyproject.toml, or PROJECT_URL.
Without one there are no project links, and the readme names its files without linking to them.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"(!?)\[([^\]]+)\]\((?![a-z]+:|#)([^)\s]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """Fills `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling with the `project` table."""
        address = os.environ.get("PROJECT_URL") or self.config.get("repository", "")
        text = (Path(self.root) / "README.md").read_text("utf-8")
        text = outside_links(text, address, f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = project_urls(address)


def outside_links(text: str, address: str, tag: str) -> str:
    """The readme with each relative link made absolute; without an address, made plain text."""

    def outside(link: re.Match[str]) -> str:
        image, label, target = link.groups()
        if not address:
            return "" if image else label
        kind = "raw" if image else "blob"
        return f"{image}[{label}]({address.rstrip('/')}/{kind}/{tag}/{target})"

    return _LINK.sub(outside, text)


def project_urls(address: str) -> dict[str, str]:
    """What an index shows beside the project; nothing without an address."""
    if not address:
        return {}
    base = address.rstrip("/")
    return {
        "Source": base,
        "Documentation": f"{base}/tree/HEAD/docs",
        "Changelog": f"{base}/blob/HEAD/CHANGELOG.md",
        "Issues": f"{base}/issues",
    }
