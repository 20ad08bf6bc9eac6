"""Public names that are imported, and PyTorch with them, when they are first used.

A package lists its public names once: as imports below `if TYPE_CHECKING:` in its `__init__.py`.
Type checkers and editors read these lines. They are not executed; `lazy` reads them too.
"""

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module

TYPE_CHECKING = bool()  # noqa: UP018
"""False. Type checkers take it for True by its name, and editors, which do not evaluate the call,
read both branches. That of `typing` would be a slow import."""


@cache
def exports(package: str) -> dict[str, tuple[str, str]]:
    """Read the public names of a package from its source.

    Returns name → the module that defines it, and its name there. A submodule is listed with the
    package in place of that module.
    """
    tree = ast.parse(import_module(package).__spec__.loader.get_source(package))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.asname or alias.name: (line.module, alias.name)
        for block in blocks
        if ast.unparse(block.test) == "TYPE_CHECKING"
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }


def lazy(
    package: str, **computed: Callable[[], object]
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Make the `__getattr__` and the `__dir__` of a package; `__all__` comes from the former.

    Python asks them for what the package does not contain yet. An imported submodule is contained,
    so no public name may be that of a submodule with another content. `computed` has further names
    and the functions that compute their values.
    """

    def get(name: str) -> object:
        module, attribute = exports(package).get(name, (None, name))
        if name == "__all__":
            value = sorted(exports(package))
        elif name in computed:
            value = computed[name]()
        elif module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        elif module == package:
            value = import_module(f"{package}.{name}")
        else:
            value = getattr(import_module(module), attribute)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *exports(package), *computed, "__all__"})

    return get, names
