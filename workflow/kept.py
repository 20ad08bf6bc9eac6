"""Draw the page of every point whose records the repository keeps, without its data.

    python workflow/kept.py

A point with results of its own keeps the page that `run.py` made. Only what changed is drawn again,
and where nothing did, nothing is imported: PyTorch alone would take three seconds.
"""

import hashlib
import json
import time
from pathlib import Path

BOOK = Path("book")
KEPT = BOOK / "records"
NOTEBOOKS = Path("notebooks")
RESULTS = Path("results")


def digest(paths: list[Path], before: str = "") -> str:
    """A short hash of files, and of what else decides the page of a record."""
    sha = hashlib.sha256(before.encode())
    for path in paths:
        content = path.read_bytes()
        sha.update(f"{len(content)}\0".encode() + content)
    return sha.hexdigest()[:16]


def has_results(record: Path) -> bool:
    """Whether the point of a record was run here, and has a page of its own."""
    return (RESULTS / record.relative_to(KEPT)).exists()


def outdated() -> dict[Path, tuple[Path, str]]:
    """Record → its page, and the digest that is to stand there, where another one does or none."""
    found = {}
    code = digest(sorted([*Path("rconv").rglob("*.py"), *Path("workflow").glob("*.py")]))
    for record in sorted(KEPT.glob("*/*.json")):
        point = record.relative_to(KEPT)
        page, notebook = BOOK / point.with_suffix(".ipynb"), NOTEBOOKS / f"{point.parent}.md"
        now = digest([record, notebook], code)
        then = page.exists() and json.loads(page.read_text())["metadata"].get("drawn_from")
        if then != now and not has_results(record):
            found[record] = page, now
    return found


def main() -> None:
    """Draw what is missing or out of date, and say how much it was."""
    start, todo = time.process_time(), outdated()
    if not todo:
        return
    import nbformat
    from draw import draw
    from run import replace

    drawn = 0
    for record, (page, now) in todo.items():
        if has_results(record):  # by now: the grid may run beside this
            continue
        try:
            notebook = draw(record)
        except Exception as error:
            error.add_note(f"The page of {record} could not be drawn.")
            raise
        notebook.metadata["drawn_from"] = now
        if not has_results(record):
            replace(page, nbformat.writes(notebook) + "\n")
            drawn += 1
    print(f"Records: {drawn} pages drawn, {time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()
