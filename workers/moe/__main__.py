"""`python -m workers.moe SPEC.json`: import a Hugging Face folder."""

from typing import Any

from workers.moe.importing import ImportSpec, import_folder
from workers.protocol import run


def main(spec: ImportSpec) -> dict[str, Any]:
    return import_folder(spec)


if __name__ == "__main__":
    run(main, ImportSpec)
