"""The process that exports: ``python -m myllm_optimum.exporter SOURCE TARGET TASK``. Its last line says what failed."""

from __future__ import annotations

import sys


def main() -> None:
    """Export a folder in the hub's layout, and check the graph's numbers against the model's."""
    from optimum.exporters.onnx import main_export

    source, target, task = sys.argv[1:]
    try:
        main_export(source, target, task=task, local_files_only=True, trust_remote_code=False, do_validation=True)
    except Exception as error:  # noqa: BLE001 - the libraries raise whatever they like
        text = " ".join(str(error).split())
        sys.exit(f"{type(error).__name__}: {text}")


if __name__ == "__main__":
    main()
