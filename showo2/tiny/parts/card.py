"""The model card beside the shipped parts."""

import json
from pathlib import Path


def write_card(folder: Path) -> None:
    """Write `MODEL_CARD.md` from the `quality.json` of every part that lies in `folder`."""
    found = {p.parent.name: json.loads(p.read_text()) for p in sorted(folder.glob("*/quality.json"))}
    (folder / "MODEL_CARD.md").write_text(json.dumps(found, indent=2) + "\n")
