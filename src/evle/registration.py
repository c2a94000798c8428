"""Both families in transformers' Auto classes without importing transformers: `import evle` stays cheap.

transformers keeps tables of names and imports a model's module when it is first asked for. `install` enters our names
into these tables as soon as transformers reads them, and answers its imports of our modules with ours.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, cast

AUTO = "transformers.models.auto"
TABLES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    f"{AUTO}.configuration_auto": {"CONFIG_MAPPING_NAMES": {"eve": "EVEConfig", "vle": "VLEConfig"}},
    f"{AUTO}.modeling_auto": {
        "MODEL_MAPPING_NAMES": {"eve": "EVEModel", "vle": "VLEModel"},
        "MODEL_FOR_PRETRAINING_MAPPING_NAMES": {"eve": "EVEForPreTraining", "vle": "VLEForPreTraining"},
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES": {"eve": "EVEForRetrieval", "vle": "VLEForRetrieval"},
        "MODEL_FOR_MASKED_LM_MAPPING_NAMES": {"vle": "VLEForMLM"},
        "MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING_NAMES": {"eve": "EVEForVQA", "vle": "VLEForVQA"},
    },
    f"{AUTO}.processing_auto": {"PROCESSOR_MAPPING_NAMES": {"eve": "EVEProcessor", "vle": "VLEProcessor"}},
}
"""Modules of transformers, their tables, and our rows: model type -> name of the class."""
FAMILIES = {"transformers.models.eve": "evle.models.eve", "transformers.models.vle": "evle.models.vle"}
"""The modules in which transformers looks for these classes, and where they are."""
LOADING = "sentence_transformers.base.model"
"""The module of sentence-transformers whose `BaseModel._load_modules` reads a model folder."""


def install() -> None:
    """Have the Auto classes know both families, whenever they are imported; at once if they have been already."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder())
    if any(name in sys.modules for name in TABLES):  # too late for the tables: the families register themselves
        for module in FAMILIES.values():
            import_module(module)
    if LOADING in sys.modules:
        load_ours(sys.modules[LOADING])


def load_ours(module: ModuleType) -> None:
    """Have sentence-transformers load folders of evle as modules of evle, which it would not do of its own accord.

    Named in modules.json, a class outside of that library needs `trust_remote_code`, even when it is installed; and one
    folder could not serve `SentenceTransformer` and `CrossEncoder` both.
    """
    base: Any = module.BaseModel
    theirs = base._load_modules
    if getattr(theirs, "loads_evle", False):
        return

    def _load_modules(self: Any, source: str, *args: Any, **options: Any) -> tuple[Any, Any]:
        if not import_module("evle.models.folders").is_ours(source, options.get("revision")):
            return cast("tuple[Any, Any]", theirs(self, source, *args, **options))
        ours = import_module("evle.interop.sentence_transformers")
        return ours.modules_for(self.model_type, source, options.get("revision")), {}

    _load_modules.loads_evle = True  # type: ignore[attr-defined]
    base._load_modules = _load_modules


class Finder(MetaPathFinder):
    """Finds the modules of `TABLES`, `FAMILIES` and `LOADING`, and no others."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in FAMILIES:
            return ModuleSpec(fullname, FamilyLoader())
        if fullname not in (*TABLES, LOADING):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = TableLoader(spec.loader.name, spec.loader.path)
        return spec


class TableLoader(SourceFileLoader):
    """Runs a module of another library as usual, then enters what is ours."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if module.__name__ == LOADING:
            load_ours(module)
            return
        for table, rows in TABLES[module.__name__].items():
            names = getattr(module, table, None)
            if isinstance(names, dict):
                for model_type, class_name in rows.items():
                    names.setdefault(model_type, class_name)


class FamilyLoader(Loader):
    """A module that holds the public names of one of ours."""

    def exec_module(self, module: ModuleType) -> None:
        ours = import_module(FAMILIES[module.__name__])
        vars(module).update({name: getattr(ours, name) for name in ours.__all__})
